"""A round's first third: the step's requests, K scored trajectories each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from genevolve.records import Request, Trajectory, write_jsonl
from genevolve.settings import Settings
from genevolve.stages.crew import Crew, training_sampling


def step_seed(settings: Settings, step: int) -> int:
    """Return the seed of a step's rollouts: every step and every run draws its own numbers."""
    return settings.seeds.run_seed * 100_003 + step


def step_requests(pool: Sequence[Request], settings: Settings, step: int) -> list[Request]:
    """Return the requests of step 1, 2, ...: the pool in an order of the run's own, again and again without repeats."""
    n, per_step = len(pool), settings.cycle.requests_per_step
    picked = []
    for position in range((step - 1) * per_step, step * per_step):
        order = list(range(n))
        Random(f"{settings.seeds.run_seed}/{position // n}").shuffle(order)
        picked.append(pool[order[position % n]])
    return list({r.id: r for r in picked}.values())


def sample(
    settings: Settings,
    crew: Crew,
    pool: Sequence[Request],
    policy: Path,
    step: int,
    images: Path | None = None,
    guides: Mapping[str, str] | None = None,
) -> list[Trajectory]:
    """Return the scored rollouts of a step; their pictures are kept in `images`, if that is given.

    `guides` (request id -> text) are shown to the student: `sampling.guide_to_student` alone does that.
    """
    requests = step_requests(pool, settings, step)
    crew.check_training(policy)
    sampling, seed = training_sampling(settings), step_seed(settings, step)
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

    with Crew(settings, dataset) as crew:
        trajectories = sample(settings, crew, load_requests(dataset, "evolve"), policy, max(1, step))
    write_jsonl(out / "trajectories.jsonl", trajectories)
    return sampling_metrics(trajectories)
