"""Recipes -> requests -> teacher -> audit -> GT render -> filter -> splits: GenEvolve-Data, as the stage `build`."""

from __future__ import annotations

from typing import Any

from flows.plain import flow
from flows.stages import run_stage
from genevolve.profiles import load
from genevolve.settings import Settings
from genevolve.workspace import Workspace


@flow(name="build-dataset")
def build_dataset(
    settings: Settings | None = None, workspace: Workspace | None = None, use_dvc: bool = True
) -> dict[str, Any]:
    """Build the dataset of a profile (DVC: the embedded one, and its recorded copy data/); return its metrics."""
    workspace = workspace or Workspace.with_dvc()
    done = run_stage("build", workspace=workspace, settings=settings or load(), use_dvc=use_dvc)
    if use_dvc:
        run_stage("data", workspace=workspace, use_dvc=True)
    return done
