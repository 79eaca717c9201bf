"""The bench's two fixed halves, and what no two splits may share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal, get_args

from genevolve.dataset.duplicates import refuse_shared
from genevolve.dataset.errors import DatasetError
from genevolve.records import Request, Split


def with_halves(bench: Sequence[Request]) -> list[Request]:
    """Return the bench requests in the same order, each in the gate or the report half.

    Halves alternate along (eval_type, difficulty, lettering or not, category, hash of the id): each has its share of everything.
    """

    def key(r: Request) -> tuple[str, str, bool, str, str]:
        lettered = r.scene is not None and r.scene.text is not None
        return (
            r.eval_type or "",
            r.difficulty or "",
            lettered,
            r.category or "",
            hashlib.sha256(r.id.encode()).hexdigest(),
        )

    half: dict[str, Literal["gate", "report"]] = {
        r.id: "report" if i % 2 else "gate" for i, r in enumerate(sorted(bench, key=key))
    }
    return [r.model_copy(update={"half": half[r.id]}) for r in bench]


VALIDATION_SHARE = 129 / 2575
"""Of the RL pool (method.md, section 2)."""


def cut_validation(
    pool: Sequence[Request], already: int = 0, wanted: int | None = None
) -> tuple[list[Request], list[Request]]:
    """Return (the rest, the cut), both in the pool's order: requests to set aside so that `wanted` are, with `already`.

    Each track gives its share, smallest hash of the id first, so that the choice hangs on the ids alone. `wanted` None: the
    paper's share of pool and `already` together, at least one; the rest keeps at least one.
    """
    total = len(pool) + already
    n = max(1, round(VALIDATION_SHARE * total)) if wanted is None else wanted
    n = min(max(0, n - already), max(0, len(pool) - 1))
    tracks: dict[str, list[Request]] = {}
    for r in sorted(pool, key=lambda r: hashlib.sha256(r.id.encode()).hexdigest()):
        tracks.setdefault(r.eval_type or "", []).append(r)
    shares = {t: n * len(rows) / len(pool) for t, rows in tracks.items()}
    counts = {t: int(share) for t, share in shares.items()}
    for t in sorted(shares, key=lambda t: (counts[t] - shares[t], t))[: n - sum(counts.values())]:
        counts[t] += 1
    cut = {r.id for t, rows in tracks.items() for r in rows[: counts[t]]}
    return [r for r in pool if r.id not in cut], [r for r in pool if r.id in cut]


def check_splits(requests: Iterable[Request]) -> None:
    """Raise DatasetError when two splits share an entity, or the bench a near-duplicate with another split."""
    by_split: dict[Split, list[Request]] = {s: [] for s in get_args(Split)}
    for r in requests:
        by_split[r.split].append(r)
    entities = {s: {x.entity for r in rows if r.scene for x in r.scene.subjects} for s, rows in by_split.items()}
    for a, b in combinations(by_split, 2):
        if shared := entities[a] & entities[b]:
            raise DatasetError(f"The splits {a} and {b} share entities, {sorted(shared)[0]} among them.")
    refuse_shared(by_split["bench"], [r for s, rows in by_split.items() if s != "bench" for r in rows])
