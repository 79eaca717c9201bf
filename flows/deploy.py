"""`genevolve deploy` (`make deploy`): register what prefect.yaml says on the server that answers, without questions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from flows.dvc import python_path
from genevolve.errors import StageError
from genevolve.operations.addresses import API, call, prefect_api, prefect_version
from genevolve.operations.daemons import ServeError
from genevolve.profiles import read_yaml

POOLS = ("default-process-pool", "gpu-process-pool")


def make_pools(api: str) -> list[str]:
    """Create the work pools that are not there yet; return their names."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.settings import temporary_settings
    from prefect.workers.process import ProcessWorker

    created = []
    # Not by the environment: Prefect, which read it when it was imported, would start a temporary server.
    with temporary_settings({"api.url": api}), get_client(sync_client=True) as client:
        for name in POOLS:
            if call(f"{api}/work_pools/{name}") is not None:
                continue
            template = ProcessWorker.get_default_base_job_template()
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
            except ObjectAlreadyExists:
                continue
            created.append(name)
    return created


def deploy(file: Path = Path("prefect.yaml")) -> list[str]:
    """Register all deployments of a file; return a line for each. Raises ServeError without a server, StageError otherwise."""
    api = prefect_api()
    if prefect_version(api) is None:
        raise ServeError(f"no Prefect server answers at {api}: `make serve` starts one")
    entries = read_yaml(file).get("deployments") or []
    make_pools(api)
    # The flows are imported to read their parameters; nothing of them runs. prefect asks nothing when it has no terminal.
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, API: api, "PYTHONPATH": python_path(), "NO_COLOR": "1"},
    )
    lines = []
    for entry in entries:
        full = _registered(api, str(entry["name"]))
        if done.returncode or not full:
            said = " ".join((done.stderr or done.stdout).split())[-600:]
            raise StageError(f"prefect deploy did not register '{entry['name']}': {said}")
        when = ", ".join(f"{s.get('cron')} {s.get('timezone', 'UTC')}" for s in entry.get("schedules") or [])
        lines.append(f"{full:<32} {entry['work_pool']['name']:<22} {when or 'by hand'}")
    return [*lines, "Run one now: prefect deployment run evolution-cycle/nightly --watch"]


def _registered(api: str, name: str) -> str:
    found = call(f"{api}/deployments/filter", {"deployments": {"name": {"any_": [name]}}, "limit": 1}) or []
    flow = call(f"{api}/flows/{found[0]['flow_id']}") if found else None
    return f"{flow['name']}/{name}" if flow else ""
