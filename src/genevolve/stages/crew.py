"""The processes that play requests: sample, draw, judge. One crew serves a whole stage, so tools and judges load once."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.errors import StageError
from genevolve.files import write_whole
from genevolve.judge.base import ProgramJob
from genevolve.processes import end_with_parent
from genevolve.records import Request, Reward, Score, Trajectory
from genevolve.stages.backends import check, check_dataset, embedded_engine, world

if TYPE_CHECKING:
    from genevolve.agent.session import Tools
    from genevolve.judge.base import ImageJudge, ProgramJudge
    from genevolve.policy.base import Sampling
    from genevolve.settings import Settings
    from genevolve.stages.served import Group, Served

CHUNK = 24
"""Trajectories a process plays at a time with our own engine. Fixed, so that the result does not depend on the number of
processes. Other policies take `sampling.batch` at a time: their results depend on their company by rounding anyway."""


@dataclass(frozen=True)
class Play:
    """One piece of work: which policy plays which requests, and how."""

    policy: Path
    requests: tuple[Request, ...]
    k: int
    sampling: Sampling
    seed: int
    images: Path | None = None
    """where pictures are kept; None: they are judged and forgotten"""
    guides: Mapping[str, str] = field(default_factory=dict)


def training_sampling(settings: Settings) -> Sampling:
    """Return how rollouts of training are drawn."""
    return _sampling(settings, settings.sampling.temperature, settings.sampling.top_p)


def bench_sampling(settings: Settings) -> Sampling:
    """Return how rollouts of the bench and of validation are drawn."""
    return _sampling(settings, settings.sampling.bench_temperature, settings.sampling.bench_top_p)


def _sampling(settings: Settings, temperature: float, top_p: float) -> Sampling:
    from genevolve.policy.base import Sampling

    s = settings.sampling
    return Sampling(temperature, top_p, s.max_turn_tokens, s.max_context, s.batch)


@dataclass(frozen=True)
class Places:
    """Where a policy is played: the device of each process, and the torch threads of one. One place: this process."""

    devices: tuple[str, ...]
    threads: int = 1


def places(settings: Settings, policy: Path) -> Places:
    """Return the places of a policy. With our own engine on the CPU `sampling.workers` processes of one thread; with another
    model on the CPU this process alone, with so many threads, for each process would hold the weights; on GPUs a process
    for each, at most `sampling.workers`, and for a single or a named one this process. A server's policy is played by its
    server: `sampling.workers` processes draw and judge."""
    workers, device = settings.sampling.workers, settings.policy.device
    if settings.policy.backend == "openai":
        return Places(("cpu",) * workers)
    if device == "cpu":
        ours = embedded_engine(settings, policy)
        return Places(("cpu",) * workers) if ours else Places(("cpu",), workers)
    import torch

    if device != "cuda" or torch.cuda.device_count() < 2 or workers < 2:
        return Places((device,))
    return Places(tuple(f"cuda:{i}" for i in range(min(workers, torch.cuda.device_count()))))


class Crew:
    """The processes that play a stage's requests; they start with the first policy, whose kind decides where (`places`)."""

    def __init__(self, settings: Settings, dataset: Path) -> None:
        check(settings)
        check_dataset(settings, dataset)
        self.settings, self.dataset = settings, dataset
        self._places: Places | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._player: Player | None = None
        self._scorer: ThreadPoolExecutor | None = None
        self._served: Served | None = None
        if settings.policy.backend == "openai":
            from genevolve.stages.served import Served

            self._served = Served(settings, dataset)

    @property
    def served(self) -> bool:
        """Whether the policy is a server's: it is sampled in this process, all requests at a time."""
        return self._served is not None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._scorer is not None:
            self._scorer.shutdown(wait=False, cancel_futures=True)

    def _open(self, policy: Path) -> Places:
        """Start the processes for this policy, unless they run: those of another kind of policy are ended first."""
        wanted = places(self.settings, policy)
        if wanted == self._places and (self._pool or self._player):
            return wanted
        if self._pool is not None:
            self._pool.shutdown()
        self._places, self._pool, self._player = wanted, None, None
        if len(wanted.devices) > 1:
            context = multiprocessing.get_context("spawn")
            turn = context.Value("i", 0)
            given = (self.settings, self.dataset, wanted, turn)
            self._pool = ProcessPoolExecutor(len(wanted.devices), context, _start, given)
        else:
            import torch

            # our engine's one, as in a spawned process: the last bits of a log-prob depend on it
            torch.set_num_threads(wanted.threads)
            self._player = Player(self.settings, self.dataset, wanted.devices[0])
        return wanted

    def check_training(self, policy: Path) -> None:
        """Raise PolicyError, one sentence, where training could not use what this policy's server samples."""
        if self._served is not None and (reason := self._served.policy(policy).unfit(training_sampling(self.settings))):
            from genevolve.policy.base import PolicyError

            raise PolicyError(reason)

    def release(self) -> None:
        """Give the memory of GPUs back, for the training that follows; the next `play` loads its policy anew. On the CPU
        this does nothing."""
        if self._player is not None:
            self._player.rest()
        if self._places is None or self._places.devices[0] == "cpu":
            return
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if self._player is not None:
            self._player.release()

    def play(
        self,
        policy: Path,
        requests: Sequence[Request],
        k: int,
        sampling: Sampling,
        seed: int,
        *,
        images: Path | None = None,
        guides: Mapping[str, str] | None = None,
        on_done: Callable[[int], None] | None = None,
        journal: Path | None = None,
    ) -> list[Trajectory]:
        """Return k scored trajectories per request, grouped by request in the given order; `on_done` counts them.

        A server's policy leaves each record in `journal` (default: with the pictures) as it comes, and goes on behind them.
        """
        check_dataset(self.settings, self.dataset, requests)
        where = self._open(policy)
        try:
            if self._served is not None:
                score: dict[str, Any] = {"submit": self._submit, "at_once": len(where.devices)}
                score |= {"images": images, "guides": guides or {}, "on_done": on_done, "journal": journal}
                return self._served.play(policy, requests, k, sampling, seed, **score)
            chunk = CHUNK
            if where.devices[0] != "cpu" or not embedded_engine(self.settings, policy):
                share = -(-len(requests) * k // len(where.devices))  # every GPU has something to do
                chunk = min(self.settings.sampling.batch, share)
            size = max(1, chunk // k)
            plays = [
                Play(policy, tuple(requests[i : i + size]), k, sampling, seed, images, dict(guides or {}))
                for i in range(0, len(requests), size)
            ]
            out: list[Trajectory] = []
            for part in self._pool.map(_play, plays) if self._pool else map(self._own, plays):
                out += part
                if on_done is not None:
                    on_done(len(part))
            return out
        except BrokenProcessPool as e:
            raise StageError("A process that plays requests died, most likely of too little memory; run again.") from e

    def _submit(self, groups: list[Group], images: Path | None) -> Future[list[Trajectory]]:
        """Draw and judge groups beside the sampling: in the processes, or in a thread of this one."""
        requests, played = [r for r, _ in groups], [t for _, group in groups for t in group]
        if self._pool is not None:
            return self._pool.submit(_score, played, requests, images)
        assert self._player is not None
        if self._scorer is None:
            self._scorer = ThreadPoolExecutor(1, "score")
        return self._scorer.submit(self._player.score, played, requests, images)

    def _own(self, play: Play) -> list[Trajectory]:
        assert self._player is not None
        return self._player.play(play)


class Player:
    """Tools, generator and judges of a profile, loaded once in a process."""

    def __init__(
        self,
        settings: Settings,
        dataset: Path,
        device: str = "cpu",
        judges: tuple[ImageJudge, ProgramJudge] | None = None,
    ) -> None:
        """`judges` take the place of the profile's."""
        from genevolve.stages.backends import make_judges, make_renderer

        self.settings, self.dataset, self.device = settings, dataset, device
        self.renderer = make_renderer(settings)
        self.image_judge, self.program_judge = judges or make_judges(settings, dataset)
        self._policy: tuple[Path, Any] | None = None
        self._seen: dict[str, _Drawn] = {}
        self._truths: dict[str, bytes] = {}

    @cached_property
    def tools(self) -> Tools:
        from genevolve.stages.backends import make_tools

        return make_tools(self.settings, self.dataset)

    @cached_property
    def system(self) -> str:
        from genevolve.stages.backends import system_text

        return system_text(self.settings)

    def play(self, play: Play) -> list[Trajectory]:
        """Sample, draw and judge."""
        from genevolve.agent.rollout import rollouts
        from genevolve.agent.session import Limits
        from genevolve.stages.backends import make_policy

        if self._policy is None or self._policy[0] != play.policy:
            self.release()  # two sets of weights would not fit
            self._policy = (play.policy, make_policy(self.settings, play.policy, self.dataset, self.device))
        s = self.settings.sampling
        played = rollouts(
            self._policy[1],
            play.requests,
            play.k,
            self.tools,
            play.sampling,
            play.seed,
            system=self.system,
            guides=play.guides,
            limits=Limits(s.tool_calls, s.rounds),
        )
        return self.score(played, play.requests, play.images)

    def rest(self) -> None:
        """Have a generator that draws in this process leave its GPU."""
        from genevolve.render.diffusers import Diffusers

        if isinstance(self.renderer, Diffusers):
            self.renderer.rest()

    def release(self) -> None:
        """Let go of the policy, and of a GPU's memory."""
        self._policy = None
        if self.device != "cpu":
            from genevolve.policy.huggingface import free

            free()

    def score(self, played: Sequence[Trajectory], requests: Sequence[Request], images: Path | None) -> list[Trajectory]:
        """Draw and judge trajectories; equal programs of one request are drawn and judged once."""
        by_id = {r.id: r for r in requests}
        programs = [ProgramJob(by_id[t.request_id], t.program, _skills(t)) for t in played]
        with ThreadPoolExecutor(1) as beside:  # a served judge reads the programs while the generator draws them
            read = beside.submit(self.program_judge.score, programs)
            self._draw([(by_id[t.request_id], t) for t in played if t.program is not None])
            sufficiencies = read.result()
        told = zip(sufficiencies, self.program_judge.reasons, self.program_judge.notes, strict=True)
        return [self._scored(by_id[t.request_id], t, _Read(*row), images) for t, row in zip(played, told, strict=True)]

    def _draw(self, pairs: Sequence[tuple[Request, Trajectory]]) -> None:
        from genevolve.judge.base import JudgeJob
        from genevolve.render.base import RenderJob

        new = {k: (r, t) for r, t in pairs if (k := _key(r, t)) not in self._seen}
        if not new:
            return
        jobs = [
            RenderJob(r.id, t.program.gen_prompt, self._references(t), self.settings.seeds.run_seed)
            for r, t in new.values()
            if t.program is not None
        ]
        pictures = self.renderer.render(jobs)
        drawn = [(k, r, png) for (k, (r, _)), png in zip(new.items(), pictures, strict=True)]
        judged = [JudgeJob(r, png, self._truth(r)) for _, r, png in drawn if png is not None]
        judge = self.image_judge
        scores = iter(zip(judge.score(judged), judge.reasons, judge.notes, strict=True))
        for key, _, png in drawn:
            nothing = _Drawn(b"", None, "the generator drew nothing", {})
            self._seen[key] = nothing if png is None else _Drawn(png, *next(scores))

    def _references(self, trajectory: Trajectory) -> tuple[bytes, ...]:
        from genevolve.stages.backends import reference_bytes

        assert trajectory.program is not None
        return tuple(reference_bytes(self.dataset, f) for f in trajectory.program.files)

    def _truth(self, request: Request) -> bytes:
        if request.gt_image is not None:
            return (self.dataset / request.gt_image).read_bytes()
        if request.id not in self._truths:  # a fresh request: its ground truth is drawn, and kept nowhere
            self._truths[request.id] = self._drawn_truth(request)
        return self._truths[request.id]

    def _drawn_truth(self, request: Request) -> bytes:
        from genevolve.dataset.truth import render_truth

        seed = self.settings.seeds.run_seed
        gold = request.gold_program
        drawn = render_truth(self.renderer, world(self.dataset), [request], seed)[0] if gold is not None else None
        if drawn is None:
            raise StageError(f"Request {request.id} has no ground-truth picture, so it cannot be judged.")
        return drawn

    def _scored(self, request: Request, t: Trajectory, read: _Read, images: Path | None) -> Trajectory:
        if t.termination == "error":  # not the policy's doing: missing, never 0
            return t.model_copy(update={"reward": Reward(diagnostics={"missing": t.failure})})
        if t.program is None:
            return t.model_copy(update={"reward": Reward(sufficiency=read.score, total=0.0)})
        drawn = self._seen[_key(request, t)]
        alpha, score, sufficiency = self.settings.judge.alpha, drawn.score, read.score
        total = None if score is None or sufficiency is None else (1 - alpha) * score.overall + alpha * sufficiency
        diagnostics: dict[str, Any] = {} if total is not None else {"missing": drawn.reason or read.reason}
        diagnostics |= {name: note for name, note in (("image", drawn.note), ("program", read.note)) if note}
        reward = Reward(
            image=score,
            sufficiency=sufficiency,
            total=None if total is None else round(total, 6),
            diagnostics=diagnostics,
        )
        name = None
        if images is not None and drawn.png:
            name = f"images/{hashlib.sha256(drawn.png).hexdigest()[:20]}.png"
            path = images / name
            if not path.exists():
                write_whole(path, drawn.png)
        return t.model_copy(update={"reward": reward, "image": name})


@dataclass(frozen=True)
class _Drawn:
    """A program's picture and what the image judge made of it."""

    png: bytes
    score: Score | None
    reason: str
    note: dict[str, Any]


@dataclass(frozen=True)
class _Read:
    """What the program judge made of a program."""

    score: float | None
    reason: str
    note: dict[str, Any]


def _skills(t: Trajectory) -> tuple[str, ...]:
    return tuple(c.arguments["skill_name"] for c in t.tool_calls if c.name == "query_knowledge" and c.ok)


def _key(request: Request, t: Trajectory) -> str:
    assert t.program is not None
    text = "\0".join((request.id, t.program.gen_prompt, *t.program.files))
    return hashlib.sha256(text.encode()).hexdigest()


_one: Player | None = None
"""In a spawned process only."""


def _start(settings: Settings, dataset: Path, where: Places, turn: Any) -> None:
    import torch

    global _one
    end_with_parent()
    torch.set_num_threads(where.threads)
    with turn.get_lock():
        mine = where.devices[turn.value % len(where.devices)]
        turn.value += 1
    _one = Player(settings, dataset, mine)


def _play(play: Play) -> list[Trajectory]:
    assert _one is not None
    return _one.play(play)


def _score(played: list[Trajectory], requests: list[Request], images: Path | None) -> list[Trajectory]:
    assert _one is not None
    return _one.score(played, requests, images)
