"""Trajectories and bundles -> one optimiser step of GRPO + SDL: a round's last third."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.plain import flow, task
from genevolve.settings import Settings


@flow(name="distill-policy")
def distill_policy(
    settings: Settings,
    policy: Path,
    reference: Path,
    trajectories: Path,
    experience: Path,
    out: Path,
    step: int = 1,
    dataset: Path | None = None,
) -> dict[str, Any]:
    """Train `policy` on stored trajectories, against `reference`, into `out`; return the step's training metrics.

    With `distill.processes` above 1, by `accelerate launch`. `dataset`: where the pictures are that the policy was shown.
    """
    return _distill(settings, policy, reference, trajectories, experience, out, step, dataset)


@task(name="distill")
def _distill(
    settings: Settings,
    policy: Path,
    reference: Path,
    trajectories: Path,
    experience: Path,
    out: Path,
    step: int,
    dataset: Path | None,
) -> dict[str, Any]:
    from genevolve.stages import distill

    return distill.run(
        settings,
        policy=policy,
        reference=reference,
        trajectories=trajectories,
        experience=experience,
        out=out,
        step=step,
        dataset=dataset,
    )
