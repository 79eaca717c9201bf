"""A policy on the bench: scores by split, and the paired difference to its parent where it has one."""

from __future__ import annotations

from typing import Any

from flows.plain import flow
from flows.stages import run_stage
from genevolve.workspace import Workspace


@flow(name="evaluate-policy")
def evaluate_policy(cycle: str, workspace: Workspace | None = None, use_dvc: bool = True) -> dict[str, Any]:
    """Bench the policy of a ledger entry (a cold start or a cycle); return its metrics."""
    return run_stage("bench", cycle, workspace=workspace or Workspace.with_dvc(), use_dvc=use_dvc)
