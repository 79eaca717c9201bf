"""The processes that play requests: sample, draw, judge. One crew serves a whole stage, so tools and judges load once."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.errors import StageError
from genevolve.files import write_whole
from genevolve.records import Request, Reward, Score, Trajectory
from genevolve.stages.backends import check, check_dataset

if TYPE_CHECKING:
    from genevolve.policy.base import Sampling
    from genevolve.settings import Settings
    from genevolve.stages.served import Group, Served

CHUNK = 24
"""Trajectories a process plays at a time. Fixed, so that the result does not depend on the number of processes."""


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


class Crew:
    """`settings.sampling.workers` processes with one torch thread each; with one worker, this process itself."""

    def __init__(self, settings: Settings, dataset: Path) -> None:
        check(settings)
        check_dataset(settings, dataset)
        self.settings, self.dataset = settings, dataset
        self._pool: ProcessPoolExecutor | None = None
        self._player: Player | None = None
        self._served: Served | None = None
        self._scorer: Executor | None = None
        self.served = settings.policy.backend == "openai"
        """The policy is a server's: it is sampled in this process, all requests at a time."""

    def __enter__(self) -> Crew:
        workers = self.settings.sampling.workers
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, _start, (self.settings, self.dataset))
        else:
            import torch

            torch.set_num_threads(1)  # as in a spawned process: the last bits of a log-prob depend on it
            self._player = Player(self.settings, self.dataset)
        if self.served:
            from genevolve.stages.served import Served

            self._served = Served(self.settings, self.dataset)
            self._scorer = self._pool or ThreadPoolExecutor(1, "score")
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._scorer is not None:
            self._scorer.shutdown(wait=False, cancel_futures=True)

    def check_training(self, policy: Path) -> None:
        """Raise PolicyError, one sentence, where training could not use what this policy's server samples."""
        if self._served is not None and (reason := self._served.policy(policy).unfit(training_sampling(self.settings))):
            from genevolve.policy.base import PolicyError

            raise PolicyError(reason)

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
        try:
            if self._served is not None:
                where: dict[str, Any] = {
                    "images": images,
                    "guides": guides or {},
                    "on_done": on_done,
                    "journal": journal,
                }
                score: dict[str, Any] = {"submit": self._submit, "at_once": self.settings.sampling.workers}
                return self._served.play(policy, requests, k, sampling, seed, **score, **where)
            return self._play(policy, requests, k, sampling, seed, images, guides or {}, on_done)
        except BrokenProcessPool as e:
            raise StageError("A process that plays requests died, most likely of too little memory; run again.") from e

    def _play(
        self,
        policy: Path,
        requests: Sequence[Request],
        k: int,
        sampling: Sampling,
        seed: int,
        images: Path | None,
        guides: Mapping[str, str],
        on_done: Callable[[int], None] | None,
    ) -> list[Trajectory]:
        size = max(1, CHUNK // k)
        plays = [
            Play(policy, tuple(requests[i : i + size]), k, sampling, seed, images, dict(guides))
            for i in range(0, len(requests), size)
        ]
        out: list[Trajectory] = []
        for part in self._pool.map(_play, plays) if self._pool else map(self._own, plays):
            out += part
            if on_done is not None:
                on_done(len(part))
        return out

    def _submit(self, groups: list[Group], images: Path | None) -> Future[list[Trajectory]]:
        """Draw and judge groups beside the sampling."""
        assert self._scorer is not None
        requests, played = [r for r, _ in groups], [t for _, group in groups for t in group]
        if self._player is not None:
            return self._scorer.submit(self._player.score, played, requests, images)
        return self._scorer.submit(_score, played, requests, images)

    def _own(self, play: Play) -> list[Trajectory]:
        assert self._player is not None
        return self._player.play(play)


class Player:
    """Tools, generator and judges of a profile, loaded once in a process."""

    def __init__(self, settings: Settings, dataset: Path) -> None:
        from genevolve.stages.backends import make_judges, make_renderer, make_tools, system_text

        self.settings, self.dataset = settings, dataset
        self.tools = make_tools(settings, dataset)
        self.renderer = make_renderer(settings)
        self.image_judge, self.program_judge = make_judges(settings, dataset)
        self.system = system_text(settings)
        self._policy: tuple[Path, Any] | None = None
        self._seen: dict[str, tuple[bytes, Score | None, str]] = {}

    def play(self, play: Play) -> list[Trajectory]:
        """Sample, draw and judge."""
        from genevolve.agent.rollout import rollouts
        from genevolve.agent.session import Limits
        from genevolve.policy.local import LocalPolicy

        if self._policy is None or self._policy[0] != play.policy:
            self._policy = (play.policy, LocalPolicy.load(play.policy))
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

    def score(self, played: Sequence[Trajectory], requests: Sequence[Request], images: Path | None) -> list[Trajectory]:
        """Draw and judge trajectories; equal programs of one request are drawn and judged once."""
        by_id = {r.id: r for r in requests}
        self._draw([(by_id[t.request_id], t) for t in played if t.program is not None])
        return [self._scored(by_id[t.request_id], t, images) for t in played]

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
        scores = iter(zip(self.image_judge.score(judged), self.image_judge.reasons, strict=True))
        for key, _, png in drawn:
            self._seen[key] = (b"", None, "the generator drew nothing") if png is None else (png, *next(scores))

    def _references(self, trajectory: Trajectory) -> tuple[bytes, ...]:
        from genevolve.stages.backends import reference_bytes

        assert trajectory.program is not None
        return tuple(reference_bytes(self.dataset, f) for f in trajectory.program.files)

    def _truth(self, request: Request) -> bytes:
        if request.gt_image is None:
            raise StageError(f"Request {request.id} has no ground-truth picture, so it cannot be judged.")
        return (self.dataset / request.gt_image).read_bytes()

    def _scored(self, request: Request, t: Trajectory, images: Path | None) -> Trajectory:
        skills = [c.arguments["skill_name"] for c in t.tool_calls if c.name == "query_knowledge" and c.ok]
        if t.termination == "error":  # not the policy's doing: missing, never 0
            return t.model_copy(update={"reward": Reward(diagnostics={"missing": t.failure})})
        sufficiency = self.program_judge.score(request, t.program, skills)
        if t.program is None:
            return t.model_copy(update={"reward": Reward(sufficiency=sufficiency, total=0.0)})
        png, score, reason = self._seen[_key(request, t)]
        alpha = self.settings.judge.alpha
        missing = score is None or sufficiency is None
        total = None if score is None or sufficiency is None else (1 - alpha) * score.overall + alpha * sufficiency
        reward = Reward(
            image=score,
            sufficiency=sufficiency,
            total=None if total is None else round(total, 6),
            diagnostics={"missing": reason or "the program judge gave no score"} if missing else {},
        )
        name = None
        if images is not None and png:
            name = f"images/{hashlib.sha256(png).hexdigest()[:20]}.png"
            path = images / name
            if not path.exists():
                write_whole(path, png)
        return t.model_copy(update={"reward": reward, "image": name})


def _key(request: Request, t: Trajectory) -> str:
    assert t.program is not None
    text = "\0".join((request.id, t.program.gen_prompt, *t.program.files))
    return hashlib.sha256(text.encode()).hexdigest()


_one: Player | None = None
"""In a spawned process only."""


def _start(settings: Settings, dataset: Path) -> None:
    import torch

    global _one
    torch.set_num_threads(1)
    _one = Player(settings, dataset)


def _play(play: Play) -> list[Trajectory]:
    assert _one is not None
    return _one.play(play)


def _score(played: list[Trajectory], requests: list[Request], images: Path | None) -> list[Trajectory]:
    assert _one is not None
    return _one.score(played, requests, images)
