"""Experience memory: a bounded store of bundles, searched by the question they came from (paper, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from genevolve.experience.embed import Embedder
from genevolve.experience.text import demands, mask
from genevolve.records import Bundle, read_jsonl, write_jsonl

KEYS: dict[str, Callable[[str], str]] = {"question": lambda q: q, "masked": mask, "demands": demands}
"""What of a question is embedded: all of it (paper); with quotations, names and codes masked; or only its demands (ours)."""

_DECIMALS = 5
"""Cosines are compared at five decimals: the last bits of a float32 embedding depend on how a batch was padded."""


@dataclass(frozen=True)
class Retrieved:
    """The bundle for one request and the cosine between the two keys."""

    bundle: Bundle
    similarity: float
    own: bool


@dataclass(frozen=True)
class Nearest:
    """The nearest bundle whatever the gate says: what a gate is calibrated on."""

    bundle: Bundle
    similarity: float


class ExperienceMemory:
    """At most `capacity` bundles (paper: 500).

    Eviction, "FIFO + reward-gap" (the exact rule is ours): when a bundle comes to a full memory, the oldest quarter
    is up for eviction and the bundle with the smallest gap in it goes; of equal gaps, the oldest. Recent experience
    is safe, old experience stays while its contrast is strong.

    Retrieval: the bundle whose source question is nearest, when its cosine reaches `gate`; else nothing. Of bundles
    equally near the newest wins (it contrasts trajectories of the nearest policy), then the larger gap.
    """

    def __init__(self, embedder: Embedder, gate: float, capacity: int = 500, key: str = "question") -> None:
        if capacity < 1:
            raise ValueError(f"The capacity of the experience memory must be at least 1, not {capacity}.")
        if key not in KEYS:
            raise ValueError(f"The memory key must be one of {', '.join(KEYS)}, not '{key}'.")
        self.embedder, self.gate, self.capacity, self.key = embedder, gate, capacity, key
        self._bundles: list[Bundle] = []
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._bundles)

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """All bundles, the oldest first."""
        return tuple(self._bundles)

    def add(self, bundles: Iterable[Bundle]) -> list[Bundle]:
        """Store bundles in order and return those evicted for them; a bundle whose id is stored replaces that one."""
        gone = []
        for bundle in bundles:
            known = next((i for i, b in enumerate(self._bundles) if b.id == bundle.id), None)
            if known is not None:
                self._bundles[known] = bundle
                continue
            if len(self._bundles) >= self.capacity:
                old = range(-(-self.capacity // 4))
                gone.append(self._bundles.pop(min(old, key=lambda i: (self._bundles[i].gap, i))))
            self._bundles.append(bundle)
        self.evicted += len(gone)
        return gone

    def nearest(self, requests: Sequence[tuple[str, str]], own: bool = True) -> list[Nearest | None]:
        """Return, for (request id, question) rows, the nearest bundle of each; None when the memory offers none.

        `own=False` leaves a request's own bundles out: what is then found is transfer from another request.
        """
        if not self._bundles or not requests:
            return [None] * len(requests)
        to_key = KEYS[self.key]
        stored = self.embedder.embed([to_key(b.question) for b in self._bundles])
        asked = self.embedder.embed([to_key(question) for _, question in requests])
        cosines = asked @ stored.T  # [requests, bundles]
        out: list[Nearest | None] = []
        for row, (request_id, _) in zip(cosines, requests, strict=True):
            rows = [i for i, b in enumerate(self._bundles) if own or b.request_id != request_id]
            ranks = [(round(float(row[i]), _DECIMALS), self._bundles[i].step, self._bundles[i].gap, i) for i in rows]
            best = max(ranks, default=None)
            out.append(Nearest(self._bundles[best[3]], best[0]) if best else None)
        return out

    def retrieve(self, requests: Sequence[tuple[str, str]], own: bool = True) -> list[Retrieved | None]:
        """Return, for (request id, question) rows, the bundle each is to be guided by, or None below the gate."""
        return [
            Retrieved(n.bundle, n.similarity, n.bundle.request_id == request_id)
            if n and n.similarity >= self.gate
            else None
            for n, (request_id, _) in zip(self.nearest(requests, own), requests, strict=True)
        ]

    def save(self, path: str | Path) -> int:
        """Write the bundles as JSON lines, whole or not at all, the oldest first; return how many."""
        return write_jsonl(path, self._bundles)

    @classmethod
    def load(
        cls, path: str | Path, embedder: Embedder, gate: float, capacity: int = 500, key: str = "question"
    ) -> ExperienceMemory:
        """Read a saved memory. Raises RecordError, naming file, line and field, at a corrupt line."""
        memory = cls(embedder, gate, capacity, key)
        memory.add(read_jsonl(path, Bundle))
        memory.evicted = 0
        return memory
