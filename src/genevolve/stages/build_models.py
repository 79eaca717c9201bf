"""Stage `build` with models: written requests, a teacher over the real tools, audits, ground truths, filter (docs/data.md).

The order of the steps, quotas, duplicates, yields and files are the embedded build's (`dataset.build`). What is paid is
kept where all paid answers are (`.cache/web`): every question to writer, teacher, auditor, filter and search, every
drawn picture; trajectories that have ended stand in a journal as well. So a killed build, started again, walks the same
way over what it has, and pays anew for nothing but the calls that were under way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.agent.rollout import rollouts, trajectory_id
from genevolve.agent.session import Limits
from genevolve.agent.system import system_prompt
from genevolve.dataset.audit import Audit
from genevolve.dataset.build import build
from genevolve.dataset.expectations import MODEL
from genevolve.dataset.lessons import prompt_fault, turns_fault, unfinished
from genevolve.dataset.models.writer import ModelRecipe, Sheet
from genevolve.dataset.report import check_dataset, make_report, write_dataset, write_json
from genevolve.dataset.truth import Truth
from genevolve.dataset.workers import Taught
from genevolve.files import write_whole
from genevolve.policy.base import Sampling
from genevolve.records import Message, Request, Trajectory, write_jsonl
from genevolve.render.base import RenderJob
from genevolve.services.cache import store
from genevolve.settings import Settings
from genevolve.stages.backends import (
    WORLD,
    make_renderer,
    make_tools,
    reference_bytes,
    system_text,
)
from genevolve.stages.build import JOURNAL
from genevolve.stages.data_models import make_auditor, make_filter, make_teacher, make_writer, teacher_text
from genevolve.stages.journal import Journal

if TYPE_CHECKING:
    from genevolve.tools.world import World

RECIPES = "recipes.jsonl"
TRUTHS = "truths"
"""Below the store: ground truths that were drawn in this process."""
TOP_P = 0.95
STAGES = ("teacher", "program checks", "audit", "")
"""How far a trajectory came, in order; empty: it passed."""


def build_with_models(settings: Settings, out: Path) -> dict[str, Any]:
    """Build the dataset into `out`; return its report. Raises SettingsError, DatasetError, and what the services raise."""
    world = _world(settings, out)
    writer, workshop = make_writer(settings), ModelWorkshop(settings, out)
    try:
        built = build(settings.dataset, writer, workshop, out / "gt")
    finally:
        workshop.close()
    sheets = [workshop.sheets[r.id] for r in built.requests]
    write_dataset(built, lambda file: reference_bytes(out, file), out)
    write_jsonl(out / RECIPES, sheets)
    check_dataset(built, settings.dataset, out, {s.id: s.requirements for s in sheets}, MODEL)
    (out / JOURNAL).unlink(missing_ok=True)
    report = make_report(built, world, out)
    write_json(out / "report.json", report)
    pictures = [r.gt_image for r in built.requests if r.gt_image][:8]
    return {**report, "images": pictures, "traces": {"teacher": built.trajectories["sft"][:4]}}


def _world(settings: Settings, out: Path) -> World | None:
    """Build the embedded world where one of the tools needs it."""
    from genevolve.tools.world import World, build_world

    if "embedded" not in (settings.world.search, settings.world.image_search):
        return None
    build_world(out / WORLD)
    return World.open(out / WORLD)


class ModelWorkshop:
    """Teacher, checks, auditor, generator and filter (a `dataset.workers.Teaches`)."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self.tools, self.teacher = make_tools(settings, out), make_teacher(settings)
        self.auditor, self.filter = make_auditor(settings, out), make_filter(settings, out)
        self.renderer = make_renderer(settings)
        self.student = system_text(settings)
        self.system = teacher_text(settings)
        s, d = settings.sampling, settings.dataset
        self.sampling = Sampling(d.teacher_temperature, TOP_P, s.max_turn_tokens, s.max_context, s.batch)
        self.sheets: dict[str, Sheet] = {}
        told = {"system": self.system, "model": self.teacher.model, "options": d.teacher_options}
        about = {**told, "sampling": [d.teacher_temperature, s.max_turn_tokens, s.max_context, s.rounds, s.tool_calls]}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.journal = Journal(out / JOURNAL, {"teacher": digest, "seed": settings.seeds.data_seed})

    def close(self) -> None:
        self.journal.close()

    def teach(self, recipes: Sequence[ModelRecipe]) -> list[Taught]:
        """Play, check and audit each recipe, again up to `dataset.teacher_tries` times where it did not pass."""
        self.sheets.update({r.request.id: r.sheet for r in recipes})
        best: dict[str, Taught] = {}
        left = list(recipes)
        for number in range(self.settings.dataset.teacher_tries):
            if not left:
                break
            for taught in self._judged(left, self._played([r.request for r in left], number)):
                known = best.get(taught.recipe.request.id)
                if known is None or STAGES.index(taught.stage) > STAGES.index(known.stage):
                    best[taught.recipe.request.id] = taught
            left = [r for r in left if best[r.request.id].stage]
        return [best[r.request.id] for r in recipes]

    def _played(self, requests: Sequence[Request], number: int) -> list[Trajectory]:
        """Return try `number` of each request, as far as the journal does not have it played anew."""
        from tqdm import tqdm

        ids = [trajectory_id(r, number) for r in requests]
        known = {i for i in ids if i in self.journal.known and self.journal.known[i].termination != "error"}
        earlier = {trajectory_id(r, n) for r in requests for n in range(number)}
        with tqdm(total=len(ids), initial=len(known), desc="teacher", unit="trajectory", delay=1) as bar:

            def done(t: Trajectory) -> None:
                self.journal.add(t)
                bar.update()

            s = self.settings.sampling
            rollouts(
                self.teacher,
                requests,
                number + 1,
                self.tools,
                self.sampling,
                self.settings.seeds.data_seed,
                system=self.system,
                limits=Limits(s.tool_calls, s.rounds),
                on_done=done,
                known=known | earlier,
            )
        return [self._as_student(self.journal.known[i]) for i in ids]

    def _as_student(self, t: Trajectory) -> Trajectory:
        """Return a trajectory behind the prompt that a student will read."""
        prompt = Message(role="system", content=system_prompt(self.student))
        return t.model_copy(update={"messages": (prompt, *t.messages[1:])})

    def _judged(self, recipes: Sequence[ModelRecipe], played: Sequence[Trajectory]) -> list[Taught]:
        out: list[Taught] = []
        for recipe, t in zip(recipes, played, strict=True):
            stage, reason = _fault(recipe, t)
            asked = recipe.request.model_copy(update={"gold_program": t.program})
            out.append(Taught(recipe.asking(asked), t, f"try {t.rollout + 1}", stage, reason))
        sound = [(i, r, t) for i, (r, t) in enumerate(zip(recipes, played, strict=True)) if not out[i].stage]
        for (i, _, t), found in zip(sound, self.auditor.audit([(r, t) for _, r, t in sound]), strict=True):
            heard = found if isinstance(found, Audit) else None
            reason = found if isinstance(found, str) else found.reason
            mine = out[i]
            out[i] = Taught(mine.recipe, t, mine.habits, "audit" if reason else "", reason, heard)
        return out

    def truth(self, requests: Sequence[Request]) -> list[Truth]:
        """Draw the teacher's program of each request and filter the pictures."""
        pictures = self._drawn(requests)
        drawn = [(r, png) for r, png in zip(requests, pictures, strict=True) if png is not None]
        reasons = iter(self.filter.reasons(drawn))
        return [Truth(None, "the generator failed") if p is None else Truth(p, next(reasons)) for p in pictures]

    def _drawn(self, requests: Sequence[Request]) -> list[bytes | None]:
        jobs = []
        for r in requests:
            assert r.gold_program is not None
            references = tuple(reference_bytes(self.out, f) for f in r.gold_program.files)
            jobs.append(RenderJob(r.id, r.gold_program.gen_prompt, references, self.settings.seeds.data_seed))
        if self.settings.render.backend in ("service", "gemini"):  # they keep what they drew, and draw side by side
            return self.renderer.render(jobs)
        return [self._kept(job) for job in jobs]

    def _kept(self, job: RenderJob) -> bytes | None:
        """Draw one program, or find it drawn: an hour of a GPU must not be lost to a kill."""
        return kept_picture(store() / TRUTHS, self.settings, job, lambda: self.renderer.render([job])[0])


def kept_picture(folder: Path, settings: Settings, job: RenderJob, draw: Callable[[], bytes | None]) -> bytes | None:
    """Return the picture of a job, drawn unless `folder` has it for the same generator, program and seed."""
    references = [hashlib.sha256(r).hexdigest() for r in job.references]
    values = [settings.section_values("render"), job.request_id, job.gen_prompt, references, job.seed]
    path = folder / f"{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()}.png"
    if path.is_file():
        return path.read_bytes()
    png = draw()
    if png is not None:
        write_whole(path, png)
    return png


def _fault(recipe: ModelRecipe, t: Trajectory) -> tuple[str, str]:
    """Return (stage, reason) where a trajectory is not valid or fails a program check, else two empty strings."""
    if reason := unfinished(t):
        return "teacher", reason
    assert t.program is not None
    reason = turns_fault(t)
    if not reason and recipe.sheet.factual_gap and not any(c.name == "search" for c in t.tool_calls):
        reason = "a fact was never searched"
    reason = reason or prompt_fault(t.program)
    return ("program checks", reason) if reason else ("", "")
