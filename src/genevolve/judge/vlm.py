"""Judges behind an OpenAI-compatible server: KScore of a picture, sufficiency of a program (method.md, section 3).

Temperature 0, image 1 the generated picture, image 2 the ground truth, one JSON object with the rationale first. The rubric
is the system message: a Markdown file, ours in `rubrics/` or the user's. What strangers wrote (request, program) stands
fenced as JSON (`services.fence`).

A judgement that fails (no answer, no usable JSON after TRIES questions, a picture that is none) is missing with its
reason; a refused key, a spent budget or a service that is down (`services.steady`) ends the command. Each question is paid
once (family `kscore`, `sufficiency`), and every raw answer stands in `notes`, which the stages keep beside the score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from genevolve.errors import SettingsError
from genevolve.judge.base import JudgeJob, ProgramJob
from genevolve.judge.verdict import KScoreVerdict, SufficiencyVerdict, moved, refuse_foreign
from genevolve.records import Program, Request, Score
from genevolve.services import loop
from genevolve.services.chat import Ask, Chat, system, user
from genevolve.services.client import CallError
from genevolve.services.fence import fenced
from genevolve.services.steady import Steady

RUBRICS = Path(__file__).parent / "rubrics"
TRIES = 3
ORDINALS = ("first", "second")
CLOSING = "Answer with the JSON object alone."

V = TypeVar("V", KScoreVerdict, SufficiencyVerdict)
Pictures = Callable[[Request, Program], Sequence[tuple[str, bytes]]]
"""The pictures a program judge is shown, each with its caption: ground truth, then references."""


def rubric_text(file: str, default: str) -> str:
    """Return a rubric: of `file`, or ours named `default` where it is empty. Raises SettingsError, one sentence."""
    path = Path(file) if file else RUBRICS / f"{default}.md"
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as e:
        raise SettingsError(f"The rubric {path} cannot be read ({e.strerror}).") from e
    except UnicodeDecodeError as e:
        raise SettingsError(f"The rubric {path} is not UTF-8 text.") from e
    if not text:
        raise SettingsError(f"The rubric {path} is empty.")
    return text


@dataclass(frozen=True)
class Wording:
    """How a judge is asked: its rubric, the most tokens of an answer, further fields of the request's body."""

    rubric: str
    max_tokens: int = 4096
    options: dict[str, Any] = field(default_factory=dict)

    def ask(self, text: str, images: Sequence[tuple[str, bytes]]) -> Ask:
        return Ask((system(self.rubric), user(text, images)), max_tokens=self.max_tokens, extra=self.options)


class VlmImageJudge:
    """An ImageJudge; the judgements of a batch are under way together, as many as the service allows."""

    def __init__(self, chat: Chat, wording: Wording) -> None:
        self.chat, self.wording, self._steady = chat, wording, Steady("The judge")
        self.reasons: list[str] = []
        self.notes: list[dict[str, Any]] = []

    def score(self, jobs: Sequence[JudgeJob]) -> list[Score | None]:
        """Return one Score per job, None where it is missing. Raises ServiceError, BudgetError and TryLaterError."""
        found = loop.spread((self._one(job) for job in jobs), self.chat.client.endpoint.concurrency)
        self.reasons, self.notes = [f.reason for f in found], [f.note for f in found]
        return [None if f.verdict is None else f.verdict.score() for f in found]

    async def _one(self, job: JudgeJob) -> _Found[KScoreVerdict]:
        text = f"{fenced('request', job.request.question)}\n\n{CLOSING}"
        images = [("Image 1, the generated picture:", job.image), ("Image 2, the ground truth:", job.gt)]
        judged = [job.request.question]
        return await _found(
            self.chat, self._steady, self.wording, text, lambda: images, KScoreVerdict, "kscore", judged
        )


class VlmProgramJudge:
    """A ProgramJudge that reads the program and looks at ground truth and references; batches as VlmImageJudge's."""

    def __init__(self, chat: Chat, wording: Wording, pictures: Pictures) -> None:
        """`pictures` is called when a job's turn comes; OSError and ValueError of it leave that job missing."""
        self.chat, self.wording, self.pictures, self._steady = chat, wording, pictures, Steady("The judge")
        self.reasons: list[str] = []
        self.notes: list[dict[str, Any]] = []

    def score(self, jobs: Sequence[ProgramJob]) -> list[float | None]:
        """Return R_text per job: 0 without a program, None where it is missing. Raises ServiceError, BudgetError and TryLaterError."""
        found = loop.spread((self._one(job) for job in jobs), self.chat.client.endpoint.concurrency)
        self.reasons, self.notes = [f.reason for f in found], [f.note for f in found]
        scores = [None if f.verdict is None else f.verdict.snapped()["sufficiency"] for f in found]
        return [0.0 if job.program is None else s for job, s in zip(jobs, scores, strict=True)]

    async def _one(self, job: ProgramJob) -> _Found[SufficiencyVerdict]:
        program = job.program
        if program is None:
            return _Found(None)
        text = f"{fenced('request', job.request.question)}\n\n{fenced('program', program_value(job, program))}\n\n{CLOSING}"
        judged = [job.request.question, program.gen_prompt, *(r.note for r in program.reference_images)]
        return await _found(
            self.chat,
            self._steady,
            self.wording,
            text,
            lambda: self.pictures(job.request, program),
            SufficiencyVerdict,
            "sufficiency",
            judged,
        )


def program_value(job: ProgramJob, program: Program) -> dict[str, Any]:
    """Return what a judge reads of a program."""
    references = [{"ordinal": o, "note": r.note} for o, r in zip(ORDINALS, program.reference_images, strict=False)]
    return {
        "gen_prompt": program.gen_prompt,
        "reference_images": references,
        "activated_skills": sorted(set(job.skills)),
    }


@dataclass(frozen=True)
class _Found(Generic[V]):
    """A verdict or the reason why there is none, and what an audit needs."""

    verdict: V | None
    reason: str = ""
    note: dict[str, Any] = field(default_factory=dict)


async def _found(
    chat: Chat,
    steady: Steady,
    wording: Wording,
    text: str,
    pictures: Callable[[], Sequence[tuple[str, bytes]]],
    form: type[V],
    family: str,
    judged: Sequence[str],
) -> _Found[V]:
    heard: list[str] = []
    note: dict[str, Any] = {"model": chat.model, "answers": heard}

    def check(verdict: V, raw: str) -> None:
        refuse_foreign(verdict, raw, judged)

    try:
        ask = wording.ask(text, pictures())
    except (CallError, OSError, ValueError) as e:
        return _Found(None, f"the judge was not asked: {e}", note)
    try:
        verdict, _ = await chat.object(ask, form, family=family, tries=TRIES, check=check, heard=heard)
    except CallError as e:
        steady.failed(e)
        return _Found(None, f"the judge gave no score: {e.reason}", note)
    steady.answered()
    if snapped := moved(verdict):
        note["snapped"] = snapped
    return _Found(verdict, note=note)
