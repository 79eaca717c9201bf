"""The gate of a cycle: register its policy, compare it with the current champion, move the alias or say why not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.evaluate_policy import evaluate_policy
from flows.plain import task
from flows.stages import RETRIES, can_help
from genevolve.errors import TryLaterError
from genevolve.files import write_whole
from genevolve.ledger import Ledger
from genevolve.registry import CHAMPION
from genevolve.settings import Settings
from genevolve.stages.runner import Job, run_job
from genevolve.tracking import Tracker
from genevolve.workspace import Workspace, folder_digest

BY = "gate"
"""Who moves the champion here, in the registry's log."""


def books_may_come_back(task: Any, run: Any, state: Any) -> bool:
    """Tell Prefect whether to try the gate again: for MLflow's database, and not for a stage in it, which has been tried."""
    return can_help(task, run, state) and not isinstance(state.data, TryLaterError)


@task(name="gate", **RETRIES | {"retry_condition_fn": books_may_come_back})
def gate(
    cycle: str, workspace: Workspace, settings: Settings, metrics: Mapping[str, Any], track: Tracker, use_dvc: bool
) -> dict[str, Any]:
    """Register the policy and decide, once, whether it takes the champion's place; return and write reports/cNNN/gate.json.

    The rival is the current champion, whoever the parent was; the parent where nobody is champion. What was decided for
    these weights stays decided: a cycle that is looked at again promotes nothing over a rollback made meanwhile. A note that
    came with git, of a policy that this registry does not know, decides nothing here.
    """
    title, path = workspace.title(cycle), workspace.report(cycle, "gate")
    digest = folder_digest(workspace.policy(cycle))
    known = any(registered == title for _, registered, _ in track.policies())
    noted = _read(path)
    if noted.get("policy") != digest or not known:
        noted = _decide(cycle, workspace, settings, track, use_dvc)
        noted |= {"policy": digest, "done": False, "published": False}
        _write(path, noted)
    version = track.register_policy(workspace.policy(cycle), metrics.get("report", {}), title)
    if not noted["done"]:  # or a run was killed between note and move
        if noted["promoted"] and not any(move["version"] == version for move in track.moves(workspace.line)):
            track.promote(version, workspace.line, noted["words"], BY)
        noted = noted | {"done": True}
        _write(path, noted)
    return noted


def decided(workspace: Workspace, cycle: str) -> bool:
    """Say whether a cycle went through its gate, or came back from it."""
    return bool(_read(workspace.report(cycle, "gate")).get("done"))


def published(workspace: Workspace, cycle: str) -> bool:
    """Say whether a cycle came to its end: decided, and its numbers and outcome told. An older note says only the former."""
    noted = _read(workspace.report(cycle, "gate"))
    return bool(noted.get("done") and noted.get("published", True))


def note_published(workspace: Workspace, cycle: str) -> None:
    """Note that a decided cycle's numbers and outcome have been told, so that the next night is a new one."""
    path = workspace.report(cycle, "gate")
    _write(path, _read(path) | {"published": True})


def _write(path: Path, note: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(note, indent=1, sort_keys=True) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _decide(cycle: str, workspace: Workspace, settings: Settings, track: Tracker, use_dvc: bool) -> dict[str, Any]:
    from genevolve.bench.gate import decide
    from genevolve.dataset.public import load_requests

    champion = track.champion(workspace.line)
    if champion == workspace.title(cycle):  # promoted before there was a gate.json, or by hand
        return {"promoted": True, "rival": cycle, "words": f"{cycle} is champion already."}
    rival = champion.rpartition("/")[2] if champion else str(Ledger.read(workspace.ledger).entry(cycle).parent)
    before = _rival_scores(rival, cycle, workspace, track, use_dvc)
    after = json.loads((workspace.bench(cycle) / "scores.json").read_text())["gate"]
    b = settings.bench
    decision = decide(
        before,
        after,
        load_requests(workspace.dataset, "bench"),
        margin=b.gate_margin,
        split_margin=b.split_margin,
        split_rows=b.split_rows,
        resamples=b.resamples,
        seed=settings.seeds.run_seed,
    )
    return {**decision.to_dict(), "rival": rival, "words": decision.words(cycle, rival)}


def _rival_scores(
    rival: str, cycle: str, workspace: Workspace, track: Tracker, use_dvc: bool
) -> dict[str, float | None]:
    """Return the rival's scores on the gate half of the same bench, played in the same way.

    Its own bench, brought up to date, where its recipe plays as this cycle's does; else it plays again, beside the cycle.
    """
    ledger = Ledger.read(workspace.ledger)
    mine, here = ledger.settings(cycle), ledger.here(rival)
    if here is not None and _plays(ledger.settings(here)) == _plays(mine):
        if here != ledger.entry(cycle).parent:  # the cycle itself began with its parent's bench
            evaluate_policy(here, workspace, use_dvc)
        folder = workspace.bench(here)
    else:
        alias = f"{CHAMPION}-{workspace.line}" if workspace.line else CHAMPION
        policy = workspace.policy(here) if here is not None else track.policy_folder(alias)
        folder = workspace.root / cycle / "rival"
        inputs = {"dataset": workspace.dataset, "policy": policy, "baseline": None}
        play_beside(
            Job("bench", f"{rival}-beside-{cycle}", mine, inputs, folder, workspace.report(cycle, "rival")), track
        )
    scores: dict[str, float | None] = json.loads((folder / "scores.json").read_text())["gate"]
    return scores


@task(name="stage", task_run_name="{job.name}", **RETRIES)
def play_beside(job: Job, track: Tracker) -> None:
    """Bench the rival beside the cycle."""
    run_job(job, track)


def _plays(settings: Settings) -> tuple[Any, ...]:
    """Return the settings that make a policy's bench what it is; a recipe without `bench.draws` played once."""
    values = settings.section_values("world", "sampling", "render", "judge")
    return values, settings.bench.requests, settings.bench.draws, settings.seeds.run_seed
