"""Two models that say what others may learn from: the audit of a trajectory, the visual filter of a ground truth.

Both answer with whole numbers from 1 to 5 in one JSON object; thresholds of the audit stand in `dataset.audit`, those of
the filter here (ours). An answer that cannot be used after TRIES questions leaves the record out, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from genevolve.dataset.audit import Audit, verdict
from genevolve.dataset.models.asking import Asking, Mark, Marks, marked
from genevolve.dataset.models.writer import ModelRecipe
from genevolve.experience.summarise_llm import attempt
from genevolve.records import Program, Request, Trajectory
from genevolve.services import loop
from genevolve.services.fence import fenced
from genevolve.services.steady import Steady
from genevolve.tools.base import ToolError

FILTER_AT_LEAST = {"compliance": 4, "reference_use": 4, "coherence": 4, "quality": 3}
UNREADABLE = (OSError, ValueError, ToolError)
"""What reading a reference picture may raise."""
CLOSING = "Answer with the JSON object alone."
Pictures = Callable[[Program], Sequence[bytes]]
"""A program's reference pictures as a model is shown them, PNG or JPEG. Raises UNREADABLE."""


class AuditMarks(Marks):
    """The paper's six dimensions."""

    prompt_suitability: Mark
    reference_grounding: Mark
    process_quality: Mark
    skill_integration: Mark
    final_prompt_faithfulness: Mark
    supervised_value: Mark


class FilterMarks(Marks):
    """The paper's four criteria of a ground truth."""

    compliance: Mark
    reference_use: Mark
    coherence: Mark
    quality: Mark


class Auditor:
    """Audits trajectories that passed the program checks, as many at a time as the service allows."""

    def __init__(self, asking: Asking, pictures: Pictures) -> None:
        self.asking, self.pictures, self._steady = asking, pictures, Steady("The build")

    def audit(self, pairs: Sequence[tuple[ModelRecipe, Trajectory]]) -> list[Audit | str]:
        """Return an Audit of each pair, in order, or why there is none. Raises as `marked`."""
        return loop.spread((self._one(*pair) for pair in pairs), self.asking.chat.client.endpoint.concurrency)

    async def _one(self, recipe: ModelRecipe, t: Trajectory) -> Audit | str:
        assert t.program is not None
        shown = {name: value for name, value in attempt(t).items() if value is not None}
        made_of = recipe.sheet.model_dump(exclude={"id", "split", "question", "ticket"})
        parts = [("request", t.question), ("recipe", made_of), ("attempt", shown)]
        text = "\n\n".join([*(fenced(tag, value) for tag, value in parts), CLOSING])
        judged = [t.question, *(m.content for m in t.messages[1:])]
        try:
            images = _captioned(1, self.pictures(t.program))
        except UNREADABLE as e:
            return f"the auditor was not asked: {e}"
        found = await marked(self.asking, AuditMarks, "audit", text, images, judged, self._steady)
        if found.marks is None:
            return f"the auditor gave no scores: {found.reason}"
        scores = found.marks.scores()
        habits = f"try {t.rollout + 1}"
        request = recipe.request
        common = {"id": request.id, "split": request.split, "habits": habits, "scores": scores}
        return Audit.model_validate({**common, "reason": verdict(scores), "said": found.marks.said()})


class VisualFilter:
    """Looks at ground truths, as many at a time as the service allows."""

    def __init__(self, asking: Asking, pictures: Pictures) -> None:
        self.asking, self.pictures, self._steady = asking, pictures, Steady("The build")

    def reasons(self, pairs: Sequence[tuple[Request, bytes]]) -> list[str]:
        """Return per request and picture (PNG) why it is left out, or an empty string. Raises as `marked`."""
        return loop.spread((self._one(*pair) for pair in pairs), self.asking.chat.client.endpoint.concurrency)

    async def _one(self, request: Request, png: bytes) -> str:
        program = request.gold_program
        assert program is not None
        parts = [("request", request.question), ("program", program.gen_prompt)]
        text = "\n\n".join([*(fenced(tag, value) for tag, value in parts), CLOSING])
        try:
            images = [("Image 1, the picture:", png), *_captioned(2, self.pictures(program))]
        except UNREADABLE as e:
            return f"the judge was not asked: {e}"
        judged = [request.question, program.gen_prompt]
        found = await marked(self.asking, FilterMarks, "gt_filter", text, images, judged, self._steady)
        return f"the judge failed: {found.reason}" if found.marks is None else too_low(found.marks.scores())


def too_low(scores: Mapping[str, int]) -> str:
    """Return which scores of the filter are too low, or an empty string."""
    return ", ".join(f"{name} {scores[name]}" for name, least in FILTER_AT_LEAST.items() if scores[name] < least)


def _captioned(first: int, pictures: Sequence[bytes]) -> list[tuple[str, bytes]]:
    ordinals = ("first", "second")
    return [
        (f"Image {n}, the {ordinal} reference image:", data)
        for n, (ordinal, data) in enumerate(zip(ordinals, pictures, strict=False), first)
    ]
