"""Runs whose process was killed, or lost its server: tell the server, or each holds its deployment's only place (ours).

A worker reports the end of what it started. Nobody does where it was killed, too, or where the server was not there to hear.
"""

from __future__ import annotations

from typing import Any

from flows.plain import RUN
from genevolve.operations import journal
from genevolve.operations.addresses import call

OPEN = ["PENDING", "RUNNING", "CANCELLING"]
CRASHED = {
    "type": "CRASHED",
    "name": "Crashed",
    "message": "Its process is gone: it was killed, or the server was down at its end. The next run goes on from there.",
}


def end_lost_runs(api: str) -> list[str]:
    """Crash what the server takes for running, the journal of this machine knows, and no process here runs; return the names.

    So, too, the runs inside them, but for one that another pool's worker took: that may be alive, on another machine
    (flows/handover.py looks after it).
    """
    found = _open_runs(api, {"id": {"any_": sorted(journal.runs())}})
    alive = _at_work() if found else set()
    lost = [run for run in found if run["id"] not in alive]
    inner = _open_runs(api, {"parent_flow_run_id": {"any_": [run["id"] for run in lost]}})
    here = {None, *(run["work_pool_name"] for run in lost)}
    for run in [*(run for run in inner if run["work_pool_name"] in here), *lost]:
        call(f"{api}/flow_runs/{run['id']}/set_state", {"state": CRASHED, "force": True})
    return [run["name"] for run in lost]


def _open_runs(api: str, which: dict[str, Any]) -> list[dict[str, Any]]:
    if not all(condition["any_"] for condition in which.values()):
        return []
    found: list[dict[str, Any]] = call(
        f"{api}/flow_runs/filter", {"flow_runs": {**which, "state": {"type": {"any_": OPEN}}}}
    )
    return found or []


def _at_work() -> set[str]:
    """Return the ids of the runs that processes of this machine belong to."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.environ().get(RUN, ""))
        except psutil.Error:  # ended meanwhile, or somebody else's
            continue
    return found
