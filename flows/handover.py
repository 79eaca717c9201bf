"""A stage on another machine: its inputs go through the DVC remote, and so does its result.

The small machine sends the stage's inputs to the remote and starts the deployment `gpu-stage/gpu-stage`. The worker of the
GPU work pool takes over the ledger and DVC's notes (texts, as parameters of the run), fetches the inputs, runs the stage,
sends its outputs to the remote, and leaves what dvc.lock and the reports say about them (texts again) as an artifact of the
run. The small machine puts these into place, fetches the outputs, and asks DVC whether the stage is up to date now. Both
checkouts must hold the same code. A worker that works in the same folder needs nothing of that and runs the stage in place.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from pydantic import BaseModel, ConfigDict

import genevolve
from flows import dvc
from flows.deploy import POOLS
from flows.plain import flow, task
from flows.stages import RETRIES, dvc_name, recorded, repro
from genevolve.errors import SettingsError, StageError, TryLaterError
from genevolve.files import write_whole
from genevolve.ledger import Ledger
from genevolve.profiles import BUDGET_VARIABLE
from genevolve.registry import PARENT_VARIABLE
from genevolve.stages.runner import ABOVE
from genevolve.store import is_shared
from genevolve.workspace import Workspace, folder_digest

DEPLOYMENT = "gpu-stage/gpu-stage"
POOL = POOLS[1]
START = f"`make serve POOL={POOL}` on the GPU machine starts one"
PATIENCE, LOOK_EVERY = 600.0, 5.0
"""Seconds. So long may a run wait for its beginning, and its worker be away: Prefect itself takes a minute and a half to notice."""
WORKER = "prefect.worker.name"
"""The label by which a run tells which worker took it."""
FILES = ("cycles.yaml", "params.yaml", "dvc.lock", "data.dvc")
"""What DVC knows of the past; small, and not in its remote."""


class Handover(BaseModel):
    """What one machine tells the other, as a run's parameter."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    home: str
    """machine and folder it comes from"""
    code: str
    """digest of src/genevolve"""
    files: dict[str, str]
    mlflow_run: str = ""
    """the cycle's run, which a worker in the same folder, or with the same team database, logs into"""
    budget: str = ""
    """dollars that the cycle's command may spend; on a machine of its own, so much again"""


class Result(BaseModel):
    """What the other machine tells back, besides the outputs in the remote."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    lock: dict[str, Any]
    """the stage's entry in dvc.lock"""
    reports: dict[str, str]


@task(
    name="stage-on-gpu",
    task_run_name="{name}@{cycle} on the GPU pool",
    **RETRIES,
)
def run_stage_on_gpu(name: str, cycle: str, *, workspace: Workspace, use_dvc: bool) -> dict[str, Any]:
    """Bring one stage up to date by a worker of the GPU pool; return what `run_stage` returns.

    Raises TryLaterError where no worker is there to take it, or the one that took it is gone (`run_on_pool`).
    """
    if FlowRunContext.get() is None:
        raise SettingsError(
            "gpu: a stage is handed to another machine only by a run under Prefect: `make serve`, `make deploy`"
        )
    if not use_dvc:
        raise SettingsError("gpu: a stage is handed over through DVC; run the cycle with use_dvc")
    stage = dvc_name(name, cycle, workspace)
    refuse_without_worker()  # before gigabytes are sent
    dvc.push(*inputs_of(cycle, workspace))
    run = run_on_pool({"name": name, "cycle": cycle, "handover": outgoing().model_dump()})
    if run.state is None or not run.state.is_completed():
        why = run.state.message if run.state else "it has no state"
        raise StageError(f"{stage} on the GPU pool did not come to its end (run '{run.name}'): {why}")
    if (result := _result_of(run.id)) is not None:
        for path, text in result.reports.items():
            if path not in _reports(name, cycle, workspace):
                raise StageError(f"the GPU machine sent a file that is no report of {stage}: {path}")
            write_whole(Path(path), text)
        dvc.adopt(stage, result.lock)
    dvc.confirm(stage)
    return {"seconds": round(run.total_run_time.total_seconds(), 1), **recorded(name, cycle, workspace)}


def refuse_without_worker() -> None:
    """Raise TryLaterError unless a worker of the GPU pool is online."""
    with get_client(sync_client=True) as client:
        if not _online(client):
            raise TryLaterError(f"no worker of the pool {POOL} is online: {START}")


def run_on_pool(parameters: dict[str, Any]) -> FlowRun:
    """Have a worker of the GPU pool run the deployment; return the run, which has ended.

    It may wait for as long as another stage is at work there. Raises TryLaterError when it has not begun PATIENCE seconds
    after its turn came, or when its worker has been away for as long. A run that is given up is ended on the server: it
    would hold the deployment's only place, ours or a dead machine's.
    """
    run: FlowRun = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0)
    well: dict[UUID, float] = {}
    with get_client(sync_client=True) as client:
        while True:
            run = client.read_flow_run(run.id)
            if run.state is not None and run.state.is_final():
                return run
            online, others, now = _online(client), _others_at_work(client, run), time.monotonic()
            for each in (*others, run):
                has_worker = each.labels.get(WORKER) in (None, *online)
                begun = each.state is not None and each.state.is_running()
                if has_worker and (begun or each is not run or bool(others)):
                    well[each.id] = now
                if now - well.setdefault(each.id, now) > PATIENCE:
                    _give_up(client, each, mine=each is run, begun=begun)
            time.sleep(LOOK_EVERY)


def _online(client: SyncPrefectClient) -> set[str]:
    """Return the names of the GPU pool's workers that the server hears from."""
    from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
    from prefect.client.schemas.objects import WorkerStatus

    wanted = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
    return {worker.name for worker in client.read_workers_for_work_pool(POOL, worker_filter=wanted)}


def _others_at_work(client: SyncPrefectClient, run: FlowRun) -> Iterable[FlowRun]:
    """Return the other runs of a run's deployment that the server takes for running."""
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    at_work = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=at_work))),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id])),
    )
    return [other for other in found if other.id != run.id]


def _give_up(client: SyncPrefectClient, run: FlowRun, *, mine: bool, begun: bool) -> None:
    """End a run on the server; raise TryLaterError where it is ours."""
    from prefect.states import Cancelled, Crashed

    if begun or not mine:
        why = f"the worker of the pool {POOL} that ran '{run.name}' is gone since {PATIENCE / 60:.0f} minutes"
        client.set_flow_run_state(run.id, Crashed(message=why), force=True)
    else:
        why = f"no worker of the pool {POOL} has begun '{run.name}' within {PATIENCE / 60:.0f} minutes"
        client.set_flow_run_state(run.id, Cancelled(message=why), force=True)
    if mine:
        raise TryLaterError(f"{why}: {START}")


@flow(name="gpu-stage")
def gpu_stage(name: str, cycle: str, handover: dict[str, Any]) -> dict[str, Any]:
    """Run one stage here for the machine that holds the cycle, and hand its result back through the DVC remote.

    Args:
        name: The stage: evolve, with all its rollouts and judging.
        cycle: The ledger's entry, cNNN.
        handover: What the other machine knows; filled in by the cycle's own run.
    """
    return _gpu_stage(name, cycle, Handover.model_validate(handover))


@task(
    name="stage",
    task_run_name="{name}@{cycle}",
    **RETRIES,
)
def _gpu_stage(name: str, cycle: str, handover: Handover) -> dict[str, Any]:
    workspace = Workspace.with_dvc()
    here = outgoing()
    if handover.budget:  # this process serves this one run
        os.environ[BUDGET_VARIABLE] = handover.budget
    if handover.home == here.home:
        if handover.mlflow_run:  # this process serves this one run
            os.environ[PARENT_VARIABLE] = handover.mlflow_run
        repro(name, cycle, workspace)
        return recorded(name, cycle, workspace)
    if handover.code != here.code:
        raise SettingsError(
            f"the code in {Path.cwd()} is not that of {handover.home}: check out the same commit in both"
        )
    if handover.mlflow_run and is_shared():  # a team's books: the stage belongs to the cycle there, too
        os.environ[PARENT_VARIABLE] = handover.mlflow_run
    for file in FILES:
        if file in handover.files:
            write_whole(Path(file), handover.files[file])
    dvc.pull(*inputs_of(cycle, workspace))
    stage = dvc_name(name, cycle, workspace)
    repro(name, cycle, workspace)
    dvc.push(stage)
    reports = {path: Path(path).read_text(encoding="utf-8") for path in _reports(name, cycle, workspace)}
    # No key: it is for the other machine, not for Prefect's page of artifacts.
    create_markdown_artifact(Result(lock=dvc.lock_entry(stage), reports=reports).model_dump_json())
    return recorded(name, cycle, workspace)


def _reports(name: str, cycle: str, workspace: Workspace) -> list[str]:
    """Return the paths of a stage's reports: outputs that git keeps and DVC's remote does not."""
    report = workspace.report(cycle, name)
    return [path.as_posix() for path in (report, report.with_suffix(".csv"))]


def _result_of(run: UUID) -> Result | None:
    """Return what the GPU machine left for us; None where it worked in this very folder."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        found = client.read_artifacts(artifact_filter=wanted)
    return Result.model_validate_json(str(found[-1].data)) if found else None


def outgoing() -> Handover:
    """Return what this machine tells the other."""
    return Handover(
        home=f"{socket.gethostname()}:{Path.cwd()}",
        code=folder_digest(Path(genevolve.__file__).parent, without=ABOVE),
        files={f: Path(f).read_text(encoding="utf-8") for f in FILES if Path(f).exists()},
        mlflow_run=os.environ.get(PARENT_VARIABLE, ""),
        budget=os.environ.get(BUDGET_VARIABLE, ""),
    )


def inputs_of(cycle: str, workspace: Workspace) -> list[str]:
    """Return, in DVC's names, what a cycle's training reads: the dataset, its parent's policy, the night's it goes on from."""
    ledger = Ledger.read(workspace.ledger)
    entry = ledger.entry(cycle)
    names = []
    for earlier in dict.fromkeys(name for name in (entry.parent, entry.after) if name):
        stage = "root" if earlier in ledger.roots else "cold_start" if earlier in ledger.cold_starts else "evolve"
        names.append(dvc_name(stage, earlier, workspace))
    return [dvc.IMPORT, *names]
