"""Which copies show which asked subject: groups of a picture against the subjects of the ground truth.

The ground truth shows the right subjects and keeps to the scene, so it tells which of its groups is which subject. In
the generated picture a group belongs to the subject it looks like most; a look-alike or an altered subject, which
looks like none, takes the place that is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from genevolve.judge.identity import Cut
from genevolve.judge.layout import Cell
from genevolve.render.style import CANVAS
from genevolve.scene import Position, Scene, Subject

SLACK = 5
"""Pixels a copy may reach over the middle line and still stand in its half."""


@dataclass(frozen=True)
class Group:
    """Copies of one thing, and one of them cut out."""

    cells: tuple[Cell, ...]
    cut: Cut


def seen(subject: Subject, group: Group | None) -> dict[str, bool]:
    """Return for every asked kind (count, position, colour) of a subject whether its group shows it."""
    cells = group.cells if group else ()
    out = {}
    if subject.count is not None:
        out["count"] = len(cells) == subject.count
    if subject.position is not None:
        position = subject.position
        out["position"] = bool(cells) and all(stands_in(position, c) for c in cells)
    if subject.colour is not None:
        out["colour"] = bool(cells) and all(c.colour == subject.colour for c in cells)
    return out


def stands_in(position: Position, cell: Cell) -> bool:
    """Return whether a copy stands entirely in a half of the picture."""
    left, top, right, bottom = cell.bounds
    middle = CANVAS / 2
    return {
        "left": right <= middle + SLACK,
        "right": left >= middle - SLACK,
        "upper": bottom <= middle + SLACK,
        "lower": top >= middle - SLACK,
    }[position]


def of_truth(scene: Scene, groups: Sequence[Group]) -> list[Group | None]:
    """Return the ground truth's group of each subject: the pairing that keeps most of what the scene asks."""
    slots: list[Group | None] = [*groups, *([None] * len(scene.subjects))]
    best: list[Group | None] = [None] * len(scene.subjects)
    top = -1
    for order in itertools.permutations(range(len(slots)), len(scene.subjects)):
        chosen = [slots[i] for i in order]
        kept = sum(
            2 * (group is not None) + sum(seen(subject, group).values())
            for subject, group in zip(scene.subjects, chosen, strict=True)
        )
        if kept > top:
            best, top = chosen, kept
    return best


def by_likeness(costs: Sequence[Sequence[float]], subjects: int) -> list[int | None]:
    """Return the group index of each subject with the least total cost; `costs[group][subject]`. None: no group is left."""
    groups = len(costs)
    slots: list[int | None] = [*range(groups), *([None] * max(0, subjects - groups))]
    best: list[int | None] = [None] * subjects
    least = float("inf")
    for order in itertools.permutations(slots, subjects):
        cost = sum(costs[g][s] for s, g in enumerate(order) if g is not None)
        if cost < least:
            best, least = list(order), cost
    return best
