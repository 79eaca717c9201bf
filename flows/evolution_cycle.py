"""One evolution cycle: open -> build -> cold start -> bench -> evolve -> bench -> gate -> promote -> publish.

The rounds of a cycle (sample -> experience -> distil) run inside its `evolve` stage, because the policy stays in memory
between them; the three flows beside this one run a single round's parts by hand.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import artifacts, git
from flows.alone import one_at_a_time
from flows.build_dataset import build_dataset
from flows.evaluate_policy import evaluate_policy
from flows.gate import gate, note_published
from flows.handover import run_stage_on_gpu
from flows.housekeeping import tidy
from flows.night import open_cycle
from flows.parameters import Overrides, Parent, Profile
from flows.plain import flow, task
from flows.stages import RETRIES, run_stage, up_to_date
from genevolve.bench.score import kscores
from genevolve.errors import SettingsError
from genevolve.files import write_whole
from genevolve.ledger import Ledger
from genevolve.operations.addresses import mlflow_ui
from genevolve.profiles import load
from genevolve.settings import Settings
from genevolve.stages.backends import check, check_models, pay_from
from genevolve.stages.telling import tell_all
from genevolve.tracking import Tracker, tracker
from genevolve.workspace import Workspace


@flow(name="evolution-cycle")
@one_at_a_time
def evolution_cycle(
    profile: Profile = None,
    seed: int | None = None,
    overrides: Overrides = None,
    parent: Parent = None,
    use_dvc: bool | None = None,
    gpu: bool = False,
    late_minutes: int | None = None,
    git_commit: bool = False,
    git_branch: str = "nights",
    collect: bool = False,
) -> dict[str, Any]:
    """Run a cycle end to end, or go on where it was, and return what reports/latest.json says.

    Args:
        profile: A profile of params.yaml; empty: $GENEVOLVE_PROFILE, then embedded.
        seed: The run's seed: training, sampling, the generator's guesses. Empty: the profile's.
        overrides: Single values in place of the profile's, each written section.key=value.
        parent: Empty evolves the profile's own cold start; "champion" or cNNN opens a night from there (flows/night.py).
        use_dvc: Let DVC decide what is up to date. Empty: for the profile embedded; others keep all under build/PROFILE.
        gpu: Run the evolve stage in the work pool for GPUs; needs DVC and, on two machines, a DVC remote.
        late_minutes: A scheduled run that begins more than so many minutes late is skipped. Empty: never.
        git_commit: Put ledger, lock file and metrics on `git_branch` at the end.
        git_branch: The branch for that; it must not be checked out.
        collect: Remove at the end what retention does not keep of older cycles, as `genevolve gc --yes` does.
    """
    settings = load(profile, seed=seed, overrides=overrides or ())
    use_dvc, workspace = Workspace.of(settings.profile, use_dvc)
    if use_dvc:
        refuse_unrecorded(overrides or ())
    if git_commit:
        git.check(git_branch)
    pay_from(settings)
    track = tracker()
    cycle = open_cycle(settings, workspace, parent, track, use_dvc)
    tell_left(workspace, track)
    if not workspace.bench(cycle).is_dir():  # a missing key or model is told before hours of training, not after
        check(settings)
        if not gpu:
            check_models(settings)
    ledger = Ledger.read(workspace.ledger)
    start = ledger.entry(cycle).parent or cycle
    root = ledger.root_of(cycle)
    first = "root" if root in ledger.roots else "cold_start"
    before = {"build": ("build", ""), first: (first, root), "bench_before": ("bench", start)}
    with track.cycle(workspace.title(cycle), settings.model_dump(mode="json"), ledger.digest(cycle)):
        done = up_to_date(before, cycle, workspace) if use_dvc else {}
        if not done:
            done["build"] = build_dataset(settings, workspace, use_dvc)
            done[first] = run_stage(first, root, workspace=workspace, use_dvc=use_dvc)
            done["bench_before"] = evaluate_policy(start, workspace, use_dvc)
        evolve = run_stage_on_gpu if gpu else run_stage
        done["evolve"] = evolve("evolve", cycle, workspace=workspace, use_dvc=use_dvc)
        done["bench"] = evaluate_policy(cycle, workspace, use_dvc)
        decision = gate(cycle, workspace, settings, done["bench"]["metrics"], track, use_dvc)
        numbers = publish(cycle, workspace, settings, done, decision, track)
    if git_commit:
        git.commit_cycle(workspace, numbers, git_branch)
    if collect:
        tidy(workspace, settings, track, use_dvc)
    return numbers


@task(name="tell-mlflow", **RETRIES)
def tell_left(workspace: Workspace, track: Tracker) -> None:
    """Tell MLflow what stages of earlier runs, killed ones, left to be told."""
    tell_all(workspace.root, track)


def refuse_unrecorded(overrides: Sequence[str]) -> None:
    """Raise SettingsError for an override that DVC's build stage would not see: it reads params.yaml, as data.dvc does."""
    for override in overrides:
        if override.startswith(("dataset.", "seeds.data_seed")):
            raise SettingsError(
                f"--set {override}: the project's dataset is recorded by DVC; change params.yaml instead, or add --no-dvc."
            )


@task(name="publish", **RETRIES)
def publish(
    cycle: str,
    workspace: Workspace,
    settings: Settings,
    done: Mapping[str, Mapping[str, Any]],
    decision: Mapping[str, Any],
    track: Tracker,
) -> dict[str, Any]:
    """Write reports/latest.json and the cycle's own numbers to MLflow, and note that it is done; return the numbers."""
    ledger = Ledger.read(workspace.ledger)
    parent, root = ledger.entry(cycle).parent, ledger.root_of(cycle)
    report = done["bench"]["metrics"]["report"]
    numbers = {
        "before": report["before"],
        "after": report["after"],
        "diff": report["diff"],
        "ci": [report["low"], report["high"]],
        "n": report["n"],
        "seconds": {stage: result.get("seconds") for stage, result in done.items()},
        "peak_memory_mb": max(result.get("peak_memory_mb") or 0 for result in done.values()),
        "seed": settings.seeds.run_seed,
        "cycle": cycle,
        "parent": parent,
        "profile": settings.profile,
        "promoted": decision["promoted"],
        "gate": decision["words"],
        "report": str(workspace.bench(cycle) / "report.html"),
        "numbers": str(workspace.latest),
    }
    write_whole(workspace.latest, json.dumps(numbers, indent=1) + "\n")
    track.log_metrics({**numbers, **by_split(done["bench"]["metrics"])})
    track.log_outcome("promoted" if decision["promoted"] else "not promoted", decision["words"])
    track.log_files([p for p in (workspace.bench(cycle) / "report.html",) if p.exists()], "report")
    drawn = artifacts.draw(numbers, workspace)
    with tempfile.TemporaryDirectory() as folder:
        track.log_files(artifacts.files(decision, workspace, Path(folder), drawn), "night")
    link = mlflow_ui() + track.page("report/report.html")
    artifacts.show(numbers, decision, workspace, link, drawn)
    if parent == root:
        track.log_start(workspace.title(root), by_split(done["bench_before"]["metrics"]), ledger.digest(root))
    note_published(workspace, cycle)
    return numbers


def by_split(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return a bench's KScores by half, track, difficulty and category, under the names that MLflow's pages show."""
    return kscores(metrics["summary"]) if "summary" in metrics else {}


def table(numbers: Mapping[str, Any]) -> str:
    """Return the small table that `make evolve` ends with."""
    low, high = numbers["ci"]
    seconds = sum(s or 0 for s in numbers["seconds"].values())
    return "\n".join(
        [
            "",
            f"KScore on {numbers['n']} bench requests about entities neither policy was trained on (seed {numbers['seed']})",
            f"  before ({numbers['parent']})          {numbers['before']:.4f}",
            f"  after  ({numbers['cycle']})          {numbers['after']:.4f}",
            f"  difference            {numbers['diff']:+.4f}   95% interval [{low:+.4f}, {high:+.4f}]",
            f"  champion               {'this policy' if numbers['promoted'] else 'unchanged'}: {numbers['gate']}",
            f"  cost                   {seconds / 60:.1f} min, {numbers['peak_memory_mb']:.0f} MB at most",
            "",
            f"Report    {numbers['report']}",
            f"Numbers   {numbers['numbers']}",
            "MLflow    make ui",
        ]
    )
