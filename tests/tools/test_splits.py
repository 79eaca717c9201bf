"""Entities are shared out once, in proportion, the same way for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve.tools.splits import SIZES, split_entities
from genevolve.tools.world import World


def test_splits_are_disjoint_complete_and_of_the_sizes_asked(world: World) -> None:
    splits = split_entities(world, seed=0)
    everything = [i for ids in splits.values() for i in ids]
    assert sorted(everything) == sorted(world.entities)
    assert {s: len(splits[s]) for s in SIZES} == SIZES
    assert len(splits["sft"]) >= len(everything) / 2


def test_the_seed_decides(world: World) -> None:
    assert split_entities(world, 0) == split_entities(world, 0)
    assert split_entities(world, 0)["bench"] != split_entities(world, 1)["bench"]


@pytest.mark.parametrize("seed", range(5))
def test_every_split_has_its_share_of_each_category_and_of_facts(world: World, seed: int) -> None:
    splits = split_entities(world, seed)
    for category in {e.category for e in world.entities.values()}:
        share = sum(e.category == category for e in world.entities.values()) / len(world.entities)
        for split, ids in splits.items():
            got = sum(world.entity(i).category == category for i in ids)
            assert abs(got - share * len(ids)) <= 3, (split, category)
    facts = sum(bool(e.facts) for e in world.entities.values()) / len(world.entities)
    for ids in splits.values():
        assert abs(sum(bool(world.entity(i).facts) for i in ids) - facts * len(ids)) <= 9


def test_a_small_world_is_split_in_proportion_and_a_tiny_one_refused(world: World) -> None:
    some = list(world.entities.values())[::10]
    splits = split_entities(World(Path(), some, ""), seed=0)
    assert all(splits.values())
    assert len(splits["sft"]) >= len(some) / 2 - 2
    with pytest.raises(ValueError, match="too small"):
        split_entities(World(Path(), some[:4], ""), seed=0)
