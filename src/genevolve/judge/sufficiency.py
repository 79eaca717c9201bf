"""R_text: could a perfect generator make the ground truth from this program? Five bins. (Ours, for the embedded world.)

Read from the program alone: its text (with the reader every part shares, `render.program`), its reference files, and the
skills the trajectory asked for. No picture is looked at.

    references   = share of the scene's subjects whose entity is among the reference files and which the text addresses by
                   that file's ordinal ("The first reference image"); the right file without its ordinal counts half
    requirements = mean over the scene's requirements and one `whole` per subject: 1 in exact wording, .5 in loose wording
                   with the right value, 0 when missing, wrong, or bound to another subject
    skills       = share of the scene's skills (SKILL_OF its requirements, and `whole`'s) that were asked for
    raw          = .4 references + .5 requirements + .1 skills, to the nearest quarter, a tie going down

Caps, because a perfect generator cannot draw what it is not told: no right reference .25; one right of two .5; any
requirement short of exact .75.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from genevolve.judge.base import ProgramJob
from genevolve.records import Program
from genevolve.render.program import Layout, Slot, SubjectLayout, parse_prompt
from genevolve.scene import NUMBERS, SKILL_OF, Scene

REFERENCES, REQUIREMENTS, SKILLS = 0.4, 0.5, 0.1


class SufficiencyJudge:
    """The embedded ProgramJudge."""

    def __init__(self, entity_of: Mapping[str, str]) -> None:
        """`entity_of`: image file (as in Program.files) -> entity id of what it shows; files of no entity are left out."""
        self.entity_of = entity_of
        self.reasons: list[str] = []
        self.notes: list[dict[str, Any]] = []

    def score(self, jobs: Sequence[ProgramJob]) -> list[float | None]:
        """Return R_text in {0, .25, .5, .75, 1} per job; 0 without a program; None when a request has no scene to check."""
        found = [self._one(job) for job in jobs]
        self.reasons = ["" if f is not None else "the program judge gave no score" for f in found]
        self.notes = [{} for _ in jobs]
        return found

    def _one(self, job: ProgramJob) -> float | None:
        if job.request.scene is None:
            return None
        if job.program is None:
            return 0.0
        entities = [self.entity_of.get(f, "") for f in job.program.files]
        return sufficiency(job.request.scene, job.program, entities, job.skills)


def sufficiency(scene: Scene, program: Program, entities: Sequence[str], activated_skills: Sequence[str]) -> float:
    """Return the binned score of a program; `entities` are those of its files, in order."""
    layout = parse_prompt(program.gen_prompt)
    ordinals = [_ordinal(s.entity, entities) for s in scene.subjects]
    addressed = [_addressed(layout, o) for o in ordinals]
    right = sum(o is not None for o in ordinals)
    references = sum((o is not None) * (0.5 if a is None else 1.0) for o, a in zip(ordinals, addressed, strict=True))
    credits = requirement_credits(scene, layout, addressed)
    wanted = {SKILL_OF[kind] for kind, _, _ in scene.requirements()} | {SKILL_OF["whole"]}
    raw = (
        REFERENCES * references / len(scene.subjects)
        + REQUIREMENTS * sum(credits) / len(credits)
        + SKILLS * len(wanted & set(activated_skills)) / len(wanted)
    )
    cap = 0.25 if right == 0 else 0.5 if right < len(scene.subjects) else 0.75 if min(credits) < 1 else 1.0
    return min(cap, quarter(raw))


def quarter(raw: float) -> float:
    """Return the nearest of {0, .25, .5, .75, 1}, a tie going down."""
    return min(1.0, max(0.0, math.ceil(round(raw * 4 - 0.5, 9)) / 4))


def requirement_credits(scene: Scene, layout: Layout, addressed: Sequence[SubjectLayout | None]) -> list[float]:
    """Return one credit in {0, .5, 1} per requirement of the scene, then one per subject for `whole`."""
    credits = []
    for kind, index, value in scene.requirements():
        if index is None:
            credits.append(_text(scene, layout) if kind == "text" else _credit(getattr(layout, kind), value))
            continue
        subject = addressed[index]
        wanted = str(NUMBERS.index(value)) if kind == "count" else value
        credits.append(0.0 if subject is None else _credit(getattr(subject, kind), wanted))
    return credits + [0.0 if s is None else _credit(s.whole, "yes") for s in addressed]


def _ordinal(entity: str, entities: Sequence[str]) -> int | None:
    return entities.index(entity) if entity in entities else None


def _addressed(layout: Layout, ordinal: int | None) -> SubjectLayout | None:
    return next((s for s in layout.subjects if s.ordinal == ordinal), None)


def _credit(slot: Slot, wanted: str) -> float:
    if slot.value != wanted:
        return 0.0
    return 1.0 if slot.sureness == "exact" else 0.5


def _text(scene: Scene, layout: Layout) -> float:
    """Lettering counts letter by letter; said in the wrong place it is worth what loose wording is."""
    if layout.text.value is None or scene.text is None or layout.text.value.upper() != scene.text.upper():
        return 0.0
    placed = scene.text_place is None or layout.text_place.value == scene.text_place
    return 1.0 if layout.text.sureness == "exact" and placed else 0.5
