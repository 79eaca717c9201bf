"""Requests -> K scored trajectories each, by one policy: a round's first third."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.plain import flow, task
from genevolve.settings import Settings


@flow(name="sample-trajectories")
def sample_trajectories(settings: Settings, dataset: Path, policy: Path, out: Path, step: int = 1) -> dict[str, Any]:
    """Sample the step's requests with a policy into `out`/trajectories.jsonl; return the sampling metrics."""
    return _sample(settings, dataset, policy, out, step)


@task(name="sample")
def _sample(settings: Settings, dataset: Path, policy: Path, out: Path, step: int) -> dict[str, Any]:
    from genevolve.stages import sample

    return sample.run(settings, dataset=dataset, policy=policy, out=out, step=step)
