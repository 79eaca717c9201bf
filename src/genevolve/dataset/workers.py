"""The processes that teach, render and judge while the dataset is built; results come back in order (ours)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from genevolve.agent.session import Tools
from genevolve.agent.system import load_system
from genevolve.dataset.audit import Audit, audit
from genevolve.dataset.errors import DatasetError
from genevolve.dataset.lessons import Lesson, give_lesson, program_fault, structural_fault
from genevolve.dataset.recipe_pool import Drawn, Recipe
from genevolve.dataset.truth import Truth, make_truth
from genevolve.judge.base import ImageJudge
from genevolve.processes import end_with_parent
from genevolve.records import Request, Trajectory
from genevolve.render.base import Renderer
from genevolve.tools.embedded import EmbeddedImageSearch, EmbeddedSearch, SkillTexts
from genevolve.tools.world import World

CHUNK = 16
"""Pieces of work handed over at a time; fixed, so that nothing depends on the number of processes."""


@dataclass(frozen=True)
class Work:
    """What every process needs; it travels by pickle."""

    world: Path
    data_seed: int
    top_k: int
    make_renderer: Callable[[], Renderer]
    make_judge: Callable[[], ImageJudge]


@dataclass(frozen=True)
class Taught:
    """What became of one recipe. `stage` names where it was left out; empty: it passed the audit."""

    recipe: Drawn
    trajectory: Trajectory
    habits: str
    stage: str = ""
    reason: str = ""
    audit: Audit | None = None


class Teaches(Protocol):
    """Whoever plays, checks and audits recipes, and draws and filters ground truths."""

    def teach(self, recipes: Sequence[Any]) -> list[Taught]:
        """Return what became of each recipe, in order."""
        ...

    def truth(self, requests: Sequence[Request]) -> list[Truth]:
        """Return each request's ground truth, in order."""
        ...


class Hand:
    """World, tools, generator and judge, loaded in one process when first needed."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.system = load_system()

    @cached_property
    def world(self) -> World:
        return World.open(self.work.world)

    @cached_property
    def tools(self) -> Tools:
        return Tools(EmbeddedSearch(self.world), EmbeddedImageSearch(self.world), SkillTexts(), self.work.top_k)

    @cached_property
    def entity_of(self) -> dict[str, str]:
        return {file: e.id for file, e in self.world.entity_of_file.items()}

    @cached_property
    def renderer(self) -> Renderer:
        return self.work.make_renderer()

    @cached_property
    def judge(self) -> ImageJudge:
        return self.work.make_judge()

    def teach(self, recipes: Sequence[Recipe]) -> list[Taught]:
        """Play, check and audit."""
        return [self._taught(give_lesson(r, self.tools, self.system)) for r in recipes]

    def _taught(self, lesson: Lesson) -> Taught:
        common = (lesson.recipe, lesson.trajectory, lesson.habits)
        if reason := structural_fault(lesson):
            return Taught(*common, "teacher", reason)
        if reason := program_fault(lesson):
            return Taught(*common, "program checks", reason)
        found = audit(lesson, self.entity_of)
        return Taught(*common, "audit" if found.reason else "", found.reason, found)

    def truth(self, requests: Sequence[Request]) -> list[Truth]:
        """Render and filter ground truths."""
        return make_truth(self.renderer, self.judge, self.world, requests, self.work.data_seed)


_hand: Hand | None = None
"""In a spawned process only."""


def _start(work: Work) -> None:
    global _hand
    end_with_parent()
    _hand = Hand(work)


def _teach(recipes: Sequence[Recipe]) -> list[Taught]:
    assert _hand is not None
    return _hand.teach(recipes)


def _truth(requests: Sequence[Request]) -> list[Truth]:
    assert _hand is not None
    return _hand.truth(requests)


A = TypeVar("A")
B = TypeVar("B")


class Workshop:
    """`workers` processes, or this one when it is 1; a context manager."""

    def __init__(self, work: Work, workers: int) -> None:
        self.work, self.workers = work, workers
        self._pool: ProcessPoolExecutor | None = None
        self._own = Hand(work)

    def __enter__(self) -> Workshop:
        if self.workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, context, _start, (self.work,))
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def teach(self, recipes: Sequence[Recipe]) -> list[Taught]:
        """Return what became of each recipe, in order."""
        return self._map(self._own.teach, _teach, recipes, "teacher", "trajectory")

    def truth(self, requests: Sequence[Request]) -> list[Truth]:
        """Return each request's ground truth, in order."""
        return self._map(self._own.truth, _truth, requests, "ground truth", "picture")

    def _map(
        self,
        here: Callable[[Sequence[A]], list[B]],
        there: Callable[[Sequence[A]], list[B]],
        items: Sequence[A],
        what: str,
        unit: str,
    ) -> list[B]:
        from tqdm import tqdm

        chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
        out: list[B] = []
        try:
            with tqdm(total=len(items), desc=what, unit=unit, delay=1) as bar:
                parts: Iterator[list[B]] = self._pool.map(there, chunks) if self._pool else map(here, chunks)
                for part in parts:
                    out += part
                    bar.update(len(part))
        except BrokenProcessPool as e:
            raise DatasetError(
                "A process of the dataset build died, most likely of too little memory; run it again."
            ) from e
        return out
