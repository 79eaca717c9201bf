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
        return r.eval_type, r.difficulty, lettered, r.category, hashlib.sha256(r.id.encode()).hexdigest()

    half: dict[str, Literal["gate", "report"]] = {
        r.id: "report" if i % 2 else "gate" for i, r in enumerate(sorted(bench, key=key))
    }
    return [r.model_copy(update={"half": half[r.id]}) for r in bench]


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
