"""One evolution cycle: open -> build -> cold start -> bench -> evolve -> bench -> gate -> promote -> publish.

The rounds of a cycle (sample -> experience -> distil) run inside its `evolve` stage, because the policy stays in memory
between them; the three flows beside this one run a single round's parts by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import artifacts
from flows.alone import one_at_a_time
from flows.build_dataset import build_dataset
from flows.evaluate_policy import evaluate_policy
from flows.handover import run_stage_on_gpu
from flows.parameters import Overrides, Parent, Profile
from flows.plain import flow, task
from flows.stages import run_stage
from genevolve.errors import SettingsError
from genevolve.files import write_whole
from genevolve.ledger import Ledger
from genevolve.operations.addresses import mlflow_ui
from genevolve.profiles import load
from genevolve.settings import Settings
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
) -> dict[str, Any]:
    """Run a cycle end to end, or go on where it was, and return what reports/latest.json says.

    Args:
        profile: A profile of params.yaml; empty: $GENEVOLVE_PROFILE, then embedded.
        seed: The run's seed: training, sampling, the generator's guesses. Empty: the profile's.
        overrides: Single values in place of the profile's, each written section.key=value.
        parent: Empty evolves the profile's own cold start; "champion" or cNNN opens a further cycle from there.
        use_dvc: Let DVC decide what is up to date. Empty: for the profile embedded; others keep all under build/PROFILE.
        gpu: Run the evolve stage in the work pool for GPUs; needs DVC and, on two machines, a DVC remote.
        late_minutes: A scheduled run that begins more than so many minutes late is skipped. Empty: never.
    """
    settings = load(profile, seed=seed, overrides=overrides or ())
    use_dvc = settings.profile == "embedded" if use_dvc is None else use_dvc
    if use_dvc:
        refuse_unrecorded(overrides or ())
    workspace = Workspace.with_dvc() if use_dvc else Workspace.private(Path("build") / settings.profile)
    track = tracker()
    cycle = open_cycle(settings, workspace, parent, track)
    ledger = Ledger.read(workspace.ledger)
    start = ledger.entry(cycle).parent or cycle
    done: dict[str, dict[str, Any]] = {}
    with track.cycle(workspace.title(cycle), settings.model_dump(mode="json")):
        done["build"] = build_dataset(settings, workspace, use_dvc)
        root = ledger.root_of(cycle)
        done["cold_start"] = run_stage("cold_start", root, workspace=workspace, use_dvc=use_dvc)
        done["bench_before"] = evaluate_policy(start, workspace, use_dvc)
        evolve = run_stage_on_gpu if gpu else run_stage
        done["evolve"] = evolve("evolve", cycle, workspace=workspace, use_dvc=use_dvc)
        done["bench"] = evaluate_policy(cycle, workspace, use_dvc)
        promoted = gate(cycle, workspace, settings, done["bench"]["metrics"], track)
        return publish(cycle, workspace, settings, done, promoted, track)


def refuse_unrecorded(overrides: Sequence[str]) -> None:
    """Raise SettingsError for an override that DVC's build stage would not see: it reads params.yaml, as data.dvc does."""
    for override in overrides:
        if override.startswith(("dataset.", "seeds.data_seed")):
            raise SettingsError(
                f"--set {override}: the project's dataset is recorded by DVC; change params.yaml instead, or add --no-dvc."
            )


@task(name="open-cycle")
def open_cycle(settings: Settings, workspace: Workspace, parent: str | None, track: Tracker) -> str:
    """Find the cycle of these settings in the ledger, or append it; return its id."""
    ledger = Ledger.read(workspace.ledger)
    if parent == "champion":
        champion = track.champion(workspace.line)
        parent = champion.rpartition("/")[2] if champion else None
    longer, cycle = ledger.open_cycle(settings, parent)
    if longer != ledger or not workspace.ledger.exists():
        longer.write(workspace.ledger)
    return cycle


@task(name="gate")
def gate(cycle: str, workspace: Workspace, settings: Settings, metrics: Mapping[str, Any], track: Tracker) -> bool:
    """Register the policy; make it champion when the gate half's interval lies above the margin. Return whether it is.

    The comparison is with the champion's own bench scores; with the parent's where nobody is champion yet.
    """
    title = workspace.title(cycle)
    version = track.register_policy(workspace.policy(cycle), metrics.get("report", {}), title)
    champion = track.champion(workspace.line)
    if champion == title:
        return True
    paired: Mapping[str, Any] = metrics["gate"]
    rival = champion.rpartition("/")[2] if champion else None
    if rival is not None and rival != Ledger.read(workspace.ledger).entry(cycle).parent:
        paired = _against(workspace, rival, cycle, settings)
    if float(paired["low"]) <= settings.bench.gate_margin:
        return False
    track.promote(version, workspace.line)
    return True


def _against(workspace: Workspace, rival: str, cycle: str, settings: Settings) -> Mapping[str, Any]:
    from genevolve.bench.stats import paired_bootstrap

    before, after = (json.loads((workspace.bench(c) / "scores.json").read_text())["gate"] for c in (rival, cycle))
    return paired_bootstrap(before, after, settings.bench.resamples, settings.seeds.run_seed).to_dict()


@task(name="publish")
def publish(
    cycle: str,
    workspace: Workspace,
    settings: Settings,
    done: Mapping[str, Mapping[str, Any]],
    promoted: bool,
    track: Tracker,
) -> dict[str, Any]:
    """Write reports/latest.json and the cycle's own numbers to MLflow; return them."""
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
        "parent": Ledger.read(workspace.ledger).entry(cycle).parent,
        "profile": settings.profile,
        "promoted": promoted,
        "report": str(workspace.bench(cycle) / "report.html"),
        "numbers": str(workspace.latest),
    }
    write_whole(workspace.latest, json.dumps(numbers, indent=1) + "\n")
    track.log_metrics(numbers)
    track.log_files([p for p in (workspace.bench(cycle) / "report.html",) if p.exists()], "report")
    link = mlflow_ui() + track.page("report/report.html")
    artifacts.show(numbers, done["bench"]["metrics"]["gate"], settings.bench.gate_margin, workspace, link)
    return numbers


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
            f"  champion               {'this policy' if numbers['promoted'] else 'unchanged: no sure gain over it on the gate half'}",
            f"  cost                   {seconds / 60:.1f} min, {numbers['peak_memory_mb']:.0f} MB at most",
            "",
            f"Report    {numbers['report']}",
            f"Numbers   {numbers['numbers']}",
            "MLflow    make ui",
        ]
    )
