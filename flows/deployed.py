"""The flows that `prefect.yaml` deploys beside the cycle: parameters that a person can type in, and the same code behind them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from flows.alone import line_of
from flows.build_dataset import build_dataset
from flows.evaluate_policy import evaluate_policy
from flows.parameters import Entry, Overrides, Profile
from flows.plain import flow
from genevolve.errors import SettingsError
from genevolve.profiles import BUDGET_VARIABLE, load
from genevolve.tracking import tracker
from genevolve.workspace import Workspace

Budget = Annotated[float, Field(ge=0)] | None


@flow(name="evaluate-policy")
def bench_only(
    cycle: Entry = "champion", profile: Profile = None, use_dvc: bool | None = None, budget: Budget = None
) -> dict[str, Any]:
    """Bring the bench of one policy up to date: scores by split, and the paired difference to its parent.

    Args:
        cycle: A ledger entry (cNNN, a cold start or a cycle), or the champion.
        profile: Whose line of cycles; empty: $GENEVOLVE_PROFILE, then embedded.
        use_dvc: Let DVC decide what is up to date. Empty: for the profile embedded.
        budget: Dollars that paid calls may come to, all processes together; empty: what the profile says.
    """
    if budget is not None:  # this process serves this one run
        os.environ[BUDGET_VARIABLE] = repr(budget)
    workspace = _workspace(profile, use_dvc)
    if cycle == "champion":
        champion = tracker().champion(workspace.line)
        if champion is None:
            raise SettingsError("nobody is champion yet: name a ledger entry, cNNN")
        cycle = champion.rpartition("/")[2]
    return evaluate_policy.function(cycle, workspace, not workspace.line)


@flow(name="build-dataset")
def dataset(
    profile: Profile = None, overrides: Overrides = None, use_dvc: bool | None = None, budget: Budget = None
) -> dict[str, Any]:
    """Build GenEvolve-Data unless it is up to date: recipes, teacher, audit, ground truth, filter, splits.

    Args:
        profile: A profile of params.yaml; empty: $GENEVOLVE_PROFILE, then embedded.
        overrides: Single values in place of the profile's, each written section.key=value. Without DVC only.
        use_dvc: Let DVC decide what is up to date. Empty: for the profile embedded.
        budget: Dollars that paid calls may come to, all processes together; empty: what the profile says.
    """
    workspace = _workspace(profile, use_dvc)
    if overrides and not workspace.line:
        raise SettingsError(
            "overrides: the project's dataset is recorded by DVC; change params.yaml, or switch use_dvc off"
        )
    within = [] if budget is None else [f"world.budget_usd={budget!r}"]
    settings = load(profile, overrides=[*(overrides or ()), *within])
    return build_dataset.function(settings, workspace, not workspace.line)


@flow(name="ablation")
def ablation(
    arms: Annotated[str, Field(examples=["core", "sft,full"])] = "core",
    seeds: Annotated[int, Field(ge=1, le=50)] | None = None,
    first_seed: Annotated[int, Field(ge=0)] = 1,
    profile: Profile = None,
    jobs: Annotated[int, Field(ge=1, le=64)] | None = None,
    size: Literal["whole", "quick"] = "whole",
    budget: Budget = None,
) -> str:
    """Measure what each part of the method adds; runs whose result is there are not done again.

    Args:
        arms: Names of ablation.yaml, comma-separated, or "core".
        seeds: How many seeds; empty: what each arm's entry says.
        first_seed: The first of them.
        profile: A profile of params.yaml; empty: $GENEVOLVE_PROFILE, then embedded.
        jobs: Runs side by side, a core each; empty: by the cores of the machine. Results do not depend on it.
        size: "quick" is two arms, one seed and a part of the bench: a look.
        budget: Dollars that paid calls may come to, all processes together; empty: what the profile says.
    """
    from genevolve.ablation.command import ablate

    quick = size == "quick"
    table = ablate(
        profile=profile,
        seeds=seeds,
        first_seed=first_seed,
        arms=None if quick else arms,
        quick=quick,
        jobs=jobs,
        budget=budget,
    )
    print(table)
    return table


def _workspace(profile: str | None, use_dvc: bool | None) -> Workspace:
    line = line_of(profile, use_dvc)
    return Workspace.private(Path("build") / line) if line else Workspace.with_dvc()
