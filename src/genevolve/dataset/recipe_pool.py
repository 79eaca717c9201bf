"""Recipes: task family, factual gap, visual anchor, requirements, difficulty -> a request (method.md, section 2; ours).

A recipe is a function of (data seed, cell, number in the cell): drawing more of them never changes those that were
drawn before. A cell is a split, a track and, for SFT, whether the trajectory carries a guide.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, NamedTuple, Protocol

from genevolve.dataset.duplicates import masked
from genevolve.dataset.errors import DatasetError
from genevolve.dataset.recipes import Named, difficulty, make_scene, write_question
from genevolve.dataset.wording import gold_prompt
from genevolve.records import Difficulty, EvalType, Program, Record, Reference, Request, Split
from genevolve.scene import Scene
from genevolve.tools.entity import Entity
from genevolve.tools.facts import Fact
from genevolve.tools.lookalikes import thumbnails
from genevolve.tools.splits import split_entities
from genevolve.tools.world import World

TEXT_SHARE = 0.6
"""Given to make_scene; scenes with fewer than two requirements are drawn again, which makes it about .65."""
TWO_SUBJECTS = 0.35
FLAG_SHARE = 0.5
"""Of factual gaps: countries have most facts, objects most looks."""
SECOND_CLUE = 0.5
"""P(the second subject of a Knowledge-Anchored request is named through a fact, too)."""
LEAST_REQUIREMENTS = 2
TWINS = 0.75
"""Mean difference (of 255) of two 18-pixel thumbnails below which no judge can tell the pictures apart at a copy's size."""

GT_SPLITS: tuple[Split, ...] = ("evolve", "validation", "bench")
SFT_SPLITS: tuple[Split, ...] = ("sft", "sft_heldout")


class Cell(NamedTuple):
    """What requests of one kind have in common; every cell has its own quota."""

    split: Split
    track: EvalType
    guided: bool = False


class Drawn(Protocol):
    """A recipe, whoever wrote it, as the build needs it."""

    @property
    def request(self) -> Request: ...

    @property
    def guided(self) -> bool: ...

    def template(self) -> str:
        """Return the question without what it names and letters (`Seen.add`), or an empty string."""
        ...

    def asking(self, request: Request) -> Drawn:
        """Return the same recipe with another request record."""
        ...


@dataclass(frozen=True)
class Unwritten:
    """A recipe that came to nothing."""

    id: str
    reason: str
    seed: Record
    """what it should have been made of"""


class Draws(Protocol):
    """Whoever draws recipes."""

    def draw_all(self, cells: Sequence[Cell]) -> Sequence[Drawn | Unwritten]:
        """Return the next recipe of each cell, in order; a cell may be named many times."""
        ...


@dataclass(frozen=True)
class Recipe:
    """One drawn recipe: the request, and what only the teacher and the audit may know."""

    request: Request
    named: tuple[Named, ...]
    facts: tuple[Fact | None, ...]
    guided: bool
    key: str
    """names the random streams of this recipe: they do not depend on what else was drawn, as the id does"""

    @property
    def scene(self) -> Scene:
        assert self.request.scene is not None
        return self.request.scene

    def template(self) -> str:
        return masked(self.request.question, [n.phrase() for n in self.named], self.scene.text)

    def asking(self, request: Request) -> Recipe:
        return replace(self, request=request)


class Pool:
    """The entities one split may ask for, grouped as recipes draw them."""

    def __init__(self, entities: Sequence[Entity]) -> None:
        self.by_category = _grouped((e.category, e) for e in entities)
        self.gaps: dict[Literal["flag", "object"], dict[str, list[Entity]]] = {
            "flag": _grouped((f.relation, e) for e in entities if e.kind == "flag" for f in e.facts),
            "object": _grouped((f.relation, e) for e in entities if e.kind == "object" for f in e.facts),
        }
        if len(entities) < 2 or not any(self.gaps.values()):
            raise DatasetError("A split has too few entities with facts to make requests of.")

    def named(self, rng: Random) -> Entity:
        """Draw a category by the root of its size, then an entity: no category drowns the others."""
        return rng.choice(_by_root(rng, self.by_category))

    def gap(self, rng: Random) -> tuple[Entity, Fact]:
        """Draw a kind, a relation by the root of how many entities have it, an entity, and one of its facts."""
        kind: Literal["flag", "object"] = "flag" if rng.random() < FLAG_SHARE else "object"
        relations = self.gaps[kind] or next(g for g in self.gaps.values() if g)
        name = _weighted(rng, {r: math.sqrt(len(v)) for r, v in relations.items()})
        entity = rng.choice(relations[name])
        return entity, rng.choice([f for f in entity.facts if f.relation == name])


def _grouped(rows: Iterable[tuple[str, Entity]]) -> dict[str, list[Entity]]:
    out: dict[str, dict[str, Entity]] = {}
    for key, entity in rows:
        out.setdefault(key, {})[entity.id] = entity
    return {key: [found[i] for i in sorted(found)] for key, found in sorted(out.items())}


def _by_root(rng: Random, groups: Mapping[str, list[Entity]]) -> list[Entity]:
    return groups[_weighted(rng, {k: math.sqrt(len(v)) for k, v in groups.items()})]


def _weighted(rng: Random, weights: Mapping[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def twins(world: World) -> set[str]:
    """Return ids of entities whose picture looks the same as another picture of the world: they are no subjects.

    Chad and Romania, Indonesia and Monaco; but also Norway, because Svalbard's flag is among the pictures.
    """
    import numpy as np

    rows = world.database.execute("SELECT file, entity, svg FROM art ORDER BY file").fetchall()
    small = thumbnails({file: svg for file, _, svg in rows})
    table = np.stack([np.frombuffer(small[file], dtype=np.uint8).astype(np.int16) for file, _, _ in rows])
    brightness = table.mean(axis=1)
    out = set()
    for i, (_, entity, _) in enumerate(rows):
        near = np.flatnonzero(np.abs(brightness - brightness[i]) < TWINS)  # a bound: twins are equally bright
        if entity and (np.abs(table[near] - table[i]).mean(axis=1) < TWINS).sum() > 1:
            out.add(str(entity))
    return out


def make_pools(world: World, data_seed: int) -> dict[Split, Pool]:
    """Return a pool per split; entities are disjoint, and twins are in none."""
    left_out = twins(world)
    splits = split_entities(world, data_seed)
    return {s: Pool([world.entity(i) for i in ids if i not in left_out]) for s, ids in splits.items()}


class Drawer:
    """Draws recipes cell by cell and numbers them, k-000001 and q-000001 onwards."""

    def __init__(self, pools: Mapping[Split, Pool], data_seed: int) -> None:
        self.pools, self.data_seed = pools, data_seed
        self._drawn: Counter[Cell] = Counter()
        self._numbers: Counter[str] = Counter()

    def draw_all(self, cells: Sequence[Cell]) -> list[Recipe]:
        return [self.draw(cell) for cell in cells]

    def draw(self, cell: Cell) -> Recipe:
        """Return the cell's next recipe."""
        number = self._drawn[cell]
        self._drawn[cell] += 1
        letter = cell.track[0]
        self._numbers[letter] += 1
        key = f"{self.data_seed}|{cell.split}|{cell.track}|{cell.guided}|{number}"
        return _recipe(key, self.pools[cell.split], cell, f"{letter}-{self._numbers[letter]:06d}")


def _recipe(key: str, pool: Pool, cell: Cell, recipe_id: str) -> Recipe:
    rng = Random(f"recipe|{key}")
    knowledge = cell.track == "knowledge_anchored"
    entities, facts = _subjects(rng, pool, knowledge)
    named = tuple(Named(e.id, e.name, f.clue if f else None, e.category) for e, f in zip(entities, facts, strict=True))
    while True:
        scene = make_scene(rng, [e.id for e in entities], TEXT_SHARE)
        if len(scene.requirements()) >= LEAST_REQUIREMENTS:
            break
    level = difficulty(scene, knowledge)
    request = Request(
        id=recipe_id,
        question=write_question(rng, scene, named),
        eval_type=cell.track,
        category=entities[0].category,
        difficulty=_level(level),
        split=cell.split,
        scene=scene,
        gold_program=gold_program(scene, entities),
    )
    return Recipe(request, named, tuple(facts), cell.guided, key)


def _subjects(rng: Random, pool: Pool, knowledge: bool) -> tuple[list[Entity], list[Fact | None]]:
    """Draw one or two different entities; of a Knowledge-Anchored request the first has a factual gap at least."""
    two = rng.random() < TWO_SUBJECTS
    while True:
        rows: list[tuple[Entity, Fact | None]] = [pool.gap(rng) if knowledge else (pool.named(rng), None)]
        if two:
            rows.append(pool.gap(rng) if knowledge and rng.random() < SECOND_CLUE else (pool.named(rng), None))
            rng.shuffle(rows)
        if len({e.id for e, _ in rows}) == len(rows):
            return [e for e, _ in rows], [f for _, f in rows]


def _level(value: str) -> Difficulty:
    levels: dict[str, Difficulty] = {"easy": "easy", "medium": "medium", "hard": "hard"}
    return levels[value]


def gold_program(scene: Scene, entities: Sequence[Entity]) -> Program:
    """Return the program that leaves nothing open, with the entities' own pictures as references."""
    return Program(
        gen_prompt=gold_prompt(scene),
        reference_images=tuple(Reference(img_id=f"IMG_{i:03d}", note=e.name) for i, e in enumerate(entities, 1)),
        files=tuple(e.file for e in entities),
    )
