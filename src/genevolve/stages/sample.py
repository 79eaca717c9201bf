"""A round's first third: the step's requests, K scored trajectories each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve.records import Request, Trajectory, write_jsonl
from genevolve.settings import Settings
from genevolve.stages.crew import Crew, training_sampling
from genevolve.stages.curriculum import walk


def step_seed(settings: Settings, step: int) -> int:
    """Return the seed of a step's rollouts: every step and every run draws its own numbers. Step 0 is validation."""
    return settings.seeds.run_seed * 100_003 + step


def training_seed(settings: Settings, step: int) -> int:
    """Return the seed of a step's training rollouts: those of a night differ from every other night's of its run.

    Validation and bench are drawn alike in all nights, so that their differences are paired.
    """
    return step_seed(settings, step) + (settings.cycle.night << 40)


def step_requests(pool: Sequence[Request], settings: Settings, step: int) -> list[Request]:
    """Return the requests of step 1, 2, ...: the pool in an order of the run's own, again and again without repeats."""
    per_step = settings.cycle.requests_per_step
    return _once(walk(pool, per_step, settings.seeds.run_seed, (step - 1) * per_step))


def of_step(chosen: Sequence[Request], settings: Settings, step: int) -> list[Request]:
    """Return the requests of step 1, 2, ... out of those chosen for the whole cycle, each once in a step."""
    per_step = settings.cycle.requests_per_step
    return _once(chosen[(step - 1) * per_step : step * per_step])


def _once(requests: Sequence[Request]) -> list[Request]:
    return list({r.id: r for r in requests}.values())


def sample(
    settings: Settings,
    crew: Crew,
    requests: Sequence[Request],
    policy: Path,
    step: int,
    images: Path | None = None,
    guides: Mapping[str, str] | None = None,
) -> list[Trajectory]:
    """Return the scored rollouts of a step's requests; their pictures are kept in `images`, if that is given.

    `guides` (request id -> text) are shown to the student: `sampling.guide_to_student` alone does that.
    """
    crew.check_training(policy)
    sampling, seed = training_sampling(settings), training_seed(settings, step)
    return crew.play(policy, requests, settings.sampling.k, sampling, seed, images=images, guides=guides)


def sampling_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return reward, validity and length over rollouts; a missing reward is counted, never averaged as 0."""
    totals = [t.reward.total for t in trajectories if t.reward is not None and t.reward.total is not None]
    images = [t.reward.image.overall for t in trajectories if t.reward is not None and t.reward.image is not None]
    n = max(1, len(trajectories))
    return {
        "reward": sum(totals) / max(1, len(totals)),
        "kscore": sum(images) / max(1, len(images)),
        "valid": sum(t.program is not None for t in trajectories) / n,
        "missing_rewards": float(len(trajectories) - len(totals)),
        "tool_calls": sum(len(t.tool_calls) for t in trajectories) / n,
        "completion_tokens": sum(len(t.completion_ids) for t in trajectories) / n,
    }


def run(settings: Settings, *, dataset: Path, policy: Path, out: Path, step: int = 1) -> dict[str, Any]:
    """Sample one step into out/trajectories.jsonl."""
    from genevolve.dataset.public import load_requests

    step = max(1, step)
    with Crew(settings, dataset) as crew:
        requests = step_requests(load_requests(dataset, "evolve"), settings, step)
        trajectories = sample(settings, crew, requests, policy, step)
    write_jsonl(out / "trajectories.jsonl", trajectories)
    return sampling_metrics(trajectories)
