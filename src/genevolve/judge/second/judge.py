"""The second judge: KScore's four dimensions, each by another rule than the first judge's.

faithfulness        requirements seen, lettering aside: all 1, more than a third .5, else 0; nothing asked: subjects there
visual_correctness  mean over subjects: 1 when the asked entity's reference is the nearest of it and its look-alikes and near
                    enough, .5 when it is the nearest but altered, 0 when another is nearer; unasked groups count as 0
text_accuracy       the best banner: 1 the asked letters, .5 a near miss or the wrong end of the picture, else 0
aesthetics          mean of four: sharp edges, range of tones, a free frame, subjects neither lost nor crammed
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from genevolve.judge import kscore
from genevolve.judge.base import JudgeError, JudgeJob
from genevolve.judge.second import glyphs, likeness
from genevolve.judge.second.copies import Box, Group, Picture, copies, groups, read_picture
from genevolve.records import Score
from genevolve.render.style import CANVAS
from genevolve.scene import Position, Scene, Subject

if TYPE_CHECKING:
    from genevolve.tools.world import World

SAME = 1.25
"""Distance up to which a copy shows its nearest reference unaltered."""
ALIKE = 4.0
"""Distance up to which it shows it altered; beyond, it shows something else."""
MISSING = 9.0
"""Distance of a copy that cannot be cut out: more than any two pictures are apart."""
OVER = 6
"""Pixels a copy may reach over a middle line."""


def references_of(world: World) -> Callable[[str], list[str]]:
    """Return what SecondJudge asks of a world; the callable raises ToolError for an unknown entity."""
    return lambda entity: [world.svg(i) for i in (entity, *world.entity(entity).lookalikes)]


@dataclass(frozen=True)
class Sighting:
    """A group read as copies of one subject: their boxes, and the distance to the subject and to its nearest look-alike."""

    boxes: tuple[Box, ...]
    own: float
    rival: float

    @property
    def mark(self) -> float:
        """1: the very thing, .5: altered, 0: something else."""
        if self.own > min(self.rival, ALIKE):
            return 0.0
        return 1.0 if self.own <= SAME else 0.5


class SecondJudge:
    """An ImageJudge that knows the world's reference pictures. Make one per worker; `reasons` as the Protocol says."""

    def __init__(self, references: Callable[[str], Sequence[str]]) -> None:
        """`references`: entity id -> SVG texts of its picture and of its look-alikes, its own first (`references_of`)."""
        self.reasons: list[str] = []
        self.notes: list[dict[str, Any]] = []
        self._references = lru_cache(maxsize=4096)(references)

    def score(self, jobs: Sequence[JudgeJob]) -> list[Score | None]:
        """Return one Score per job; None, and a sentence in `reasons`, where the picture or the request cannot be read."""
        self.reasons, self.notes = [""] * len(jobs), [{} for _ in jobs]
        out: list[Score | None] = []
        for i, job in enumerate(jobs):
            try:
                out.append(self.judge(job))
            except Exception as e:  # whatever broke, this sample is missing and the others are not
                self.reasons[i] = f"request {job.request.id}: not judged ({type(e).__name__}: {e})"
                out.append(None)
        return out

    def judge(self, job: JudgeJob) -> Score:
        """Return the Score of one picture; raise JudgeError when picture or request cannot be read."""
        scene = job.request.scene
        if scene is None:
            raise JudgeError("the request has no scene; the second judge knows embedded requests only")
        picture = read_picture(job.image)
        found = groups(picture.units, len(scene.subjects))
        sightings, extra = self.assign(scene, picture, found)
        seen = requirements(scene, picture, sightings)
        marks = [0.0 if s is None else s[1].mark for s in sightings]
        said = [glyphs.read_banner(picture.rgb, p) for p in picture.banners]
        notes = [f"{name} {'yes' if ok else 'NO'}" for name, ok in seen]
        notes += [_told(s, m) for s, m in zip(sightings, marks, strict=True)]
        notes.append(f"{extra} unasked; read {said}; {picture.setting}")
        return kscore.build(
            faithfulness=_faithfulness([ok for _, ok in seen] or [s is not None for s in sightings]),
            visual_correctness=sum(marks) / (len(marks) + extra),
            text_accuracy=_text(scene, picture, said),
            aesthetics=aesthetics(picture),
            rationale="; ".join(notes),
        )

    def assign(
        self, scene: Scene, picture: Picture, found: Sequence[Group]
    ) -> tuple[list[tuple[Group, Sighting] | None], int]:
        """Return what shows each subject (None: nothing), the pairing with the least total distance, and the groups left."""
        few = sorted(found, key=lambda g: -sum(u.area for u in g.units))[:4]
        seen = [[self.sight(picture, g, s.entity) for s in scene.subjects] for g in few]
        places: list[int | None] = [*range(len(few)), *([None] * max(0, len(scene.subjects) - len(few)))]
        orders = itertools.permutations(places, len(scene.subjects))
        best = min(orders, key=lambda o: sum(seen[g][s].own for s, g in enumerate(o) if g is not None))
        chosen = [None if g is None else (few[g], seen[g][s]) for s, g in enumerate(best)]
        return chosen, len(found) - sum(c is not None for c in chosen)

    def sight(self, picture: Picture, group: Group, entity: str) -> Sighting:
        """Return a group read as copies of an entity, or of that look-alike which it resembles more."""
        references = self._references(entity)
        patches: dict[int, likeness.Patch | None] = {}
        boxes: dict[int, list[Box]] = {}
        for n in {likeness.repeats(svg) for svg in references}:
            boxes[n] = copies(group, n)
            patches[n] = likeness.patch(picture, boxes[n][0], group.colour)

        def distance(svg: str, scales: Sequence[float]) -> float:
            patch = patches[likeness.repeats(svg)]
            return MISSING if patch is None else likeness.distance(patch, likeness.art(svg), scales)

        rough = [distance(svg, likeness.TRIES[:1]) for svg in references[1:]]
        own = distance(references[0], likeness.TRIES)
        if not rough:
            return Sighting(tuple(boxes[likeness.repeats(references[0])]), own, MISSING)
        nearest = references[1 + rough.index(min(rough))]
        rival = distance(nearest, likeness.TRIES)
        shown = references[0] if own <= rival else nearest
        return Sighting(tuple(boxes[likeness.repeats(shown)]), own, rival)


def requirements(
    scene: Scene, picture: Picture, sightings: Sequence[tuple[Group, Sighting] | None]
) -> list[tuple[str, bool]]:
    """Return (requirement in words, whether it is seen) for everything asked but the lettering."""
    out = []
    for i, (subject, found) in enumerate(zip(scene.subjects, sightings, strict=True), 1):
        out += [(f"{what} of subject {i}", ok) for what, ok in _of_subject(subject, found)]
    for kind in ("light", "material", "pattern"):
        if getattr(scene, kind) is not None:
            out.append((f"{kind} {getattr(scene, kind)}", getattr(picture.setting, kind) == getattr(scene, kind)))
    return out


def _of_subject(subject: Subject, found: tuple[Group, Sighting] | None) -> list[tuple[str, bool]]:
    boxes = found[1].boxes if found else ()
    out = []
    if subject.count is not None:
        out.append((f"count {subject.count} (seen {len(boxes)})", len(boxes) == subject.count))
    if subject.position is not None:
        out.append((f"position {subject.position}", bool(boxes) and all(inside(subject.position, b) for b in boxes)))
    if subject.colour is not None:
        out.append((f"colour {subject.colour}", found is not None and found[0].colour == subject.colour))
    return out


def inside(position: Position, box: Box) -> bool:
    """Return whether a box keeps to a half of the picture."""
    axis = 0 if position in ("left", "right") else 1
    if position in ("left", "upper"):
        return box[axis + 2] <= CANVAS / 2 + OVER
    return box[axis] >= CANVAS / 2 - OVER


def _faithfulness(kept: Sequence[bool]) -> float:
    share = sum(kept) / len(kept)
    return 1.0 if share == 1 else 0.5 if share > 1 / 3 else 0.0


def _text(scene: Scene, picture: Picture, said: Sequence[str]) -> float | None:
    if scene.text is None:
        return None
    if not set("".join(scene.text.upper().split())) <= set(glyphs.ALPHABET):
        raise JudgeError(f"the second judge reads capital letters only, not {scene.text!r}")
    marks = [
        glyphs.agreement(letters, scene.text) * (1.0 if scene.text_place in (None, place) else 0.5)
        for letters, place in zip(said, picture.banners, strict=True)
    ]
    return max(marks, default=0.0)


def _told(found: tuple[Group, Sighting] | None, mark: float) -> str:
    if found is None:
        return "subject not found"
    group, s = found
    return f"{len(s.boxes)} on {group.colour}, distance {s.own:.2f} (rival {s.rival:.2f}) -> {mark:g}"


def aesthetics(picture: Picture) -> float:
    """Return the mean of four parts in [0, 1]; 0 when no subject is seen.

    sharpness: standard deviation of the Laplacian of grey, full from 8 of 255. tones: 2nd to 98th percentile of grey, full
    from 60. frame: no subject within 8 pixels of the edge. fullness: subjects cover 1.5% to 70% of the picture.
    """
    import cv2

    if not picture.units:
        return 0.0
    grey = cv2.cvtColor(picture.rgb, cv2.COLOR_RGB2GRAY)
    low, high = np.percentile(grey, (2, 98))
    free = np.ones_like(picture.mask)
    free[8:-8, 8:-8] = False
    parts = (
        min(1.0, float(cv2.Laplacian(grey, cv2.CV_32F).std()) / 8),
        min(1.0, float(high - low) / 60),
        1.0 if picture.mask[free].mean() < 0.02 else 0.0,
        1.0 if 0.015 <= picture.mask.mean() <= 0.7 else 0.0,
    )
    return sum(parts) / len(parts)
