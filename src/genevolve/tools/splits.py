"""Which entity belongs to which split: the subject of requests of one split only, a distractor anywhere."""

from __future__ import annotations

import hashlib
from typing import get_args

from genevolve.records import Split
from genevolve.tools.world import World

SIZES: dict[Split, int] = {"bench": 110, "validation": 50, "evolve": 130, "sft_heldout": 30}
"""Entities a split gets in a world that is large enough; `sft` gets the rest."""


def split_entities(world: World, seed: int) -> dict[Split, list[str]]:
    """Return sorted entity ids by split: disjoint, complete, and in proportion over category and having facts or not.

    In a smaller world the sizes shrink in proportion: half of all entities always stay in `sft` at least.
    """
    total = len(world.entities)
    scale = min(1.0, total / (2 * sum(SIZES.values())))
    sizes = {split: max(1, round(scale * size)) for split, size in SIZES.items()}
    if total <= sum(sizes.values()):
        raise ValueError(f"a world of {total} entities is too small to be split")
    order = _interleaved(world, seed)
    out: dict[Split, list[str]] = {split: [] for split in get_args(Split)}
    # Walking the interleaved order with fixed strides gives every split its share of every stratum.
    credit = dict.fromkeys(sizes, 0.0)
    for position, entity_id in enumerate(order):
        for split, size in sizes.items():
            credit[split] = size * (position + 1) / total - len(out[split])
        neediest = max(sizes, key=lambda s: (credit[s], sizes[s]))
        out[neediest if credit[neediest] >= 0.5 else "sft"].append(entity_id)
    return {split: sorted(ids) for split, ids in out.items()}


def _interleaved(world: World, seed: int) -> list[str]:
    """Return all ids stratum after stratum, shuffled by hash inside each."""

    def key(entity_id: str) -> tuple[str, bool, bytes]:
        entity = world.entity(entity_id)
        draw = hashlib.sha256(f"{seed}|{entity_id}".encode()).digest()
        return entity.category, bool(entity.facts), draw

    return sorted(world.entities, key=key)
