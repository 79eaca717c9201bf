"""One picture, read: backdrop, banners, and the groups of copies it may show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from genevolve.judge import assign, backdrop, identity, layout
from genevolve.judge.assign import Group
from genevolve.judge.backdrop import Backdrop, Image, Mask
from genevolve.judge.identity import Cut
from genevolve.judge.layout import Cell
from genevolve.scene import Scene, TextPlace

READINGS = 8
"""At most so many readings of a picture are looked at."""
MISSING = 60.0
"""Cost of a subject that is nowhere, in units of Lab distance: as much as an unrelated thing."""
CLEAR = 10.0
"""Mean Lab distance per subject below which a reading is taken although it is not the likeliest."""


@dataclass(frozen=True)
class View:
    """What was read from one picture."""

    picture: Image
    backdrop: Backdrop
    banners: tuple[TextPlace, ...]
    foreground: Mask
    readings: tuple[tuple[Group, ...], ...]
    """Each: the groups of one way to read the picture; the likeliest first; one empty reading when nothing is there."""


@dataclass(frozen=True)
class Pairing:
    """The subjects of a scene in one picture."""

    groups: tuple[Group | None, ...]
    """one per subject of the scene"""
    extra: int
    """groups that belong to no subject"""


@lru_cache(maxsize=2)  # a ground truth held against itself is read once
def look(data: bytes) -> View:
    """Read a picture; raise JudgeError when the bytes are none."""
    picture = backdrop.decode(data)
    banners = tuple(backdrop.banners(picture))
    found = backdrop.recognise(picture)
    if not found.found:
        return View(picture, found, banners, np.zeros(picture.shape[:2], dtype=bool), ((),))
    mask = backdrop.foreground(picture, found)
    behind = backdrop.drawn(found.light, found.pattern, found.material).astype(np.float32)
    cuts: dict[Cell, Cut | None] = {}
    readings = []
    for cells in layout.readings(picture, mask)[:READINGS]:
        groups = []
        for number in sorted({c.group for c in cells}):
            members = tuple(c for c in cells if c.group == number)
            key = Cell(members[0].bounds, members[0].colour, 0)
            if key not in cuts:
                cuts[key] = identity.cut(picture, behind, key)
            copy = cuts[key]
            if copy is not None:
                groups.append(Group(members, copy))
        readings.append(tuple(groups))
    return View(picture, found, banners, mask, tuple(readings))


def pair_truth(scene: Scene, view: View) -> Pairing:
    """Return the subjects in the ground truth: the reading and pairing that keep most of what the scene asks."""
    best, top = Pairing((None,) * len(scene.subjects), 0), -1
    for groups in view.readings:
        chosen = assign.of_truth(scene, groups)
        extra = len(groups) - sum(g is not None for g in chosen)
        kept = sum(
            2 * (g is not None) + sum(assign.seen(s, g).values()) for s, g in zip(scene.subjects, chosen, strict=True)
        )
        if kept - extra > top:
            best, top = Pairing(tuple(chosen), extra), kept - extra
    return best


def pair_generated(truth: Pairing, view: View) -> Pairing:
    """Return the subjects in a generated picture: the likeliest reading, or one that shows the true subjects clearly."""
    known: dict[tuple[int, int], float] = {}

    def cost(group: Group, subject: int) -> float:
        true = truth.groups[subject]
        key = (id(group.cut), subject)
        if key not in known:
            known[key] = MISSING if true is None else min(MISSING, identity.likeness(true.cut, group.cut).local)
        return known[key]

    count = len(truth.groups)
    ranked: list[tuple[float, Pairing]] = []
    for groups in view.readings:
        chosen = assign.by_likeness([[cost(g, s) for s in range(count)] for g in groups], count)
        total = sum(MISSING if g is None else cost(groups[g], s) for s, g in enumerate(chosen))
        extra = len(groups) - sum(g is not None for g in chosen)
        pairing = Pairing(tuple(None if g is None else groups[g] for g in chosen), extra)
        ranked.append((total / count + MISSING * extra, pairing))
        if ranked[0][0] < CLEAR:
            return ranked[0][1]
    least = min(ranked, key=lambda row: row[0])
    return least[1] if least[0] < CLEAR else ranked[0][1]
