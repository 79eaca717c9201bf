"""The gate: may a policy take the champion's place? Evidence in, a decision in words with its numbers out (ours)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve.bench.stats import Paired, paired_bootstrap
from genevolve.records import Request

LOOKED_AT = ("eval_type", "difficulty", "category")
"""The splits of which none may fall."""
OTHERS = "others"
"""What all categories that are too small to be looked at are called together."""

Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class Split:
    """One split of the gate half, compared."""

    name: str
    """`category: flags`"""
    paired: Paired
    fell: bool

    def sentence(self) -> str:
        p = self.paired
        return f"{self.name} {p.diff:+.4f} [{p.low:+.4f}, {p.high:+.4f}] over {p.n} requests"


@dataclass(frozen=True)
class Decision:
    """What the gate says of a policy, and why."""

    promote: bool
    paired: Paired
    margin: float
    split_margin: float
    splits: tuple[Split, ...]

    def words(self, policy: str, rival: str) -> str:
        """Say the decision and its reasons with numbers, in one line, and name the splits whose fall may be luck."""
        p = self.paired
        seen = f"{p.diff:+.4f} on {p.n} gate requests, 95% interval [{p.low:+.4f}, {p.high:+.4f}]"
        fallen = [s.sentence() for s in self.splits if s.fell]
        unsure = [s.sentence() for s in self.splits if s.paired.diff < -self.split_margin and not s.fell]
        also = f"Fell by more than {self.split_margin:g}, but not for sure, and so no reason: {'; '.join(unsure)}."
        behind = f" {also}" if unsure else ""
        if self.promote:
            looked = (
                f"none of {len(self.splits)} splits fell" if self.splits else "no split was large enough to look at"
            )
            return f"{policy} takes the place of {rival}: {seen} above {self.margin:g}; {looked}.{behind}"
        reasons = []
        if p.low <= self.margin:
            reasons.append(f"its lower end does not exceed {self.margin:g}")
        if fallen:
            reasons.append(f"fell by more than {self.split_margin:g}: {'; '.join(fallen)}")
        return f"{policy} does not take the place of {rival}: {seen}; {'; '.join(reasons)}.{behind}"

    def to_dict(self) -> dict[str, Any]:
        splits = {s.name: {**s.paired.to_dict(), "fell": s.fell} for s in self.splits}
        return {"promoted": self.promote, "paired": self.paired.to_dict(), "splits": splits}


def decide(
    before: Scores,
    after: Scores,
    requests: Sequence[Request],
    *,
    margin: float,
    split_margin: float,
    split_rows: int,
    resamples: int,
    seed: int,
) -> Decision:
    """Compare a policy (`after`) with its rival (`before`) on the gate half: request id -> score, None: missing.

    It is promoted when the lower end of the 95% interval of the paired difference exceeds `margin` and no split fell. A
    split (track, difficulty, category; of `split_rows` pairs at least) fell when its mean did, by more than
    `split_margin`, and for sure: the upper end of its own interval is below 0, lest the noise of a small split turns a
    good policy down. Categories of fewer pairs are looked at together, as `category: others`.
    Raises BenchError when the two sides hold other requests.
    """
    groups: dict[str, list[str]] = {}
    for request in _pooled(requests, before, after, split_rows):
        if request.id in before:
            for what in LOOKED_AT:
                groups.setdefault(f"{what}: {getattr(request, what)}", []).append(request.id)
    whole = paired_bootstrap(before, after, resamples, seed)
    splits = []
    for name, ids in sorted(groups.items()):
        known = [i for i in ids if before[i] is not None and after.get(i) is not None]
        if len(known) >= split_rows:
            pair = paired_bootstrap({i: before[i] for i in ids}, {i: after[i] for i in ids}, resamples, seed)
            splits.append(Split(name, pair, pair.diff < -split_margin and pair.high < 0))
    promote = whole.low > margin and not any(s.fell for s in splits)
    return Decision(promote, whole, margin, split_margin, tuple(splits))


def _pooled(requests: Sequence[Request], before: Scores, after: Scores, rows: int) -> list[Request]:
    """Return the requests with every category of fewer than `rows` pairs called OTHERS."""
    pairs = Counter(r.category for r in requests if before.get(r.id) is not None and after.get(r.id) is not None)
    return [r if pairs[r.category] >= rows else r.model_copy(update={"category": OTHERS}) for r in requests]
