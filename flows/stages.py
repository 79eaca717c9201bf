"""A stage as a Prefect task: through DVC where it decides what is up to date, else in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from flows import dvc
from flows.plain import task
from genevolve.errors import StageError, TryLaterError, may_pass
from genevolve.settings import Settings
from genevolve.stages.runner import Job, job, run_job
from genevolve.stages.telling import tell_when_over, told
from genevolve.tracking import Tracker, tracker
from genevolve.workspace import Workspace

_DVC_NAMES = {"build": "build", "data": dvc.IMPORT}
RETRY_AFTER = (60, 600, 3600)
"""Seconds. A stage goes on where it was, so a retry costs little; a service that is down for an hour is waited for."""


def can_help(task: Any, run: Any, state: Any) -> bool:
    """Tell Prefect whether to try a failed stage again: a held lock or a service may come back, a wrong setting stays wrong."""
    return isinstance(state.data, BaseException) and may_pass(state.data)


RETRIES: dict[str, Any] = {
    "retries": len(RETRY_AFTER),
    "retry_delay_seconds": list(RETRY_AFTER),
    "retry_condition_fn": can_help,
}
"""Options of a task that goes on where it was."""


@task(
    name="stage",
    task_run_name="{name}@{cycle}",
    **RETRIES,
)
def run_stage(
    name: str, cycle: str = "", *, workspace: Workspace, settings: Settings | None = None, use_dvc: bool = False
) -> dict[str, Any]:
    """Bring one stage up to date; return {metrics, seconds, peak_memory_mb} of the run that made its folder."""
    if not use_dvc:
        return run_job(job(name, cycle, workspace, settings))
    repro(name, cycle, workspace)
    return recorded(name, cycle, workspace)


@task(name="up-to-date", task_run_name="what {cycle} begins with")
def up_to_date(stages: Mapping[str, tuple[str, str]], cycle: str, workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Return what `run_stage` returns of each of {key: (name, its cycle)}; nothing, unless DVC finds all of them unchanged.

    A night has most of its stages behind it before it begins; asked one by one, DVC would take a second for each.
    """
    if not all(job(name, of, workspace).out.is_dir() for name, of in stages.values()):
        return {}
    names = [dvc_name(name, of, workspace) for name, of in stages.values()]
    if "build" in names:
        names.append(dvc.IMPORT)
    return {k: recorded(*stage, workspace) for k, stage in stages.items()} if dvc.unchanged(names) else {}


def repro(name: str, cycle: str, workspace: Workspace) -> None:
    """Bring one stage up to date by DVC, and tell MLflow what it did, what it left when it was killed earlier included.

    Raises TryLaterError where MLflow's books are locked when it is done: it stays done, and is told by the next try.
    """
    if name == "data":
        dvc.repro(dvc_name(name, cycle, workspace))
        return
    track = tracker()  # books that cannot be opened end this before hours of work, not after
    with told(partial(_tell, job(name, cycle, workspace), track)):
        dvc.repro(dvc_name(name, cycle, workspace))


def _tell(job: Job, track: Tracker) -> None:
    try:
        tell_when_over(job.out, track)
    except Exception as e:
        if may_pass(e):
            why = str(e).splitlines()[0]
            raise TryLaterError(f"MLflow has not been told of {job.title} yet: {why}") from e
        raise


def dvc_name(name: str, cycle: str, workspace: Workspace) -> str:
    """Return what dvc.yaml calls a stage: the bench of a cold start or a root has nothing to be compared with."""
    if name in _DVC_NAMES:
        return _DVC_NAMES[name]
    from genevolve.ledger import Ledger

    ledger = Ledger.read(workspace.ledger)
    if name == "bench" and cycle in ledger.cold_starts:
        name = "bench_cold"
    elif name == "bench" and cycle in ledger.roots:
        name = "bench_root"
    return f"{name}@{cycle}"


def recorded(name: str, cycle: str, workspace: Workspace) -> dict[str, Any]:
    """Return the metrics, time and memory noted when a stage last ran here; from its report alone where DVC's cache had it."""
    if name == "data":
        return {}
    place = job(name, cycle, workspace)
    note = place.beside(".done.json")
    try:
        done = json.loads(note.read_text()) if note.exists() else {}
        return {**done, "metrics": json.loads(place.report.read_text())}
    except (OSError, ValueError) as e:
        raise StageError(f"{place.report} cannot be read: {e}") from e
