"""`genevolve serve`, `genevolve stop` (`make serve`, `make stop`): Prefect's server, work pools, a worker, MLflow's pages.

What answers already is used and left alone; what is missing is started, and noted in .genevolve/serve.json. `stop` ends what
is noted there and nothing else, and removes the temporary files of all that. Each is waited for until it answers.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from flows.deploy import POOLS, make_pools
from flows.dvc import python_path
from flows.lost import end_lost_runs
from genevolve.errors import SettingsError
from genevolve.files import write_whole
from genevolve.operations import FOLDER
from genevolve.operations.addresses import (
    API,
    HOST,
    MLFLOW_PORT,
    PREFECT_PORT,
    call,
    mlflow_is_ours,
    mlflow_ui,
    mlflow_version,
    prefect_api,
    prefect_is_elsewhere,
    prefect_version,
    refuse_stranger,
)
from genevolve.operations.daemons import MLFLOW, SERVER, STATE, Daemon, ServeError, State, spawn, stop, wait_until
from genevolve.store import PREFECT_URI

TOML = Path("prefect.toml")
MARK = "# Written by `make serve`, removed by `make stop`: the server that `prefect` talks to in this folder.\n"
WORKER = "worker"
QUERY = "PREFECT_WORKER_QUERY_SECONDS"
"""How often a worker asks for runs: Prefect's own ten seconds are a wait at every run by hand."""
LEASES, ON_DISK = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
"""Where the server notes who holds a deployment's place. In its memory, as is its default, a killed server would forget the
holders but not that the places are taken: no run could ever begin again."""
TEMPORARY = FOLDER / "tmp"
"""Temporary files of all that is started here: Prefect's runner and worker, MLflow and torch's launcher leave theirs."""
LONGEST = 64
"""Bytes of its path. A Unix socket's has 107 at most, and vLLM, torch and multiprocessing put sockets of up to 40 below it."""
SECONDS = 600.0
"""Most that a start may take on a busy machine."""


def start(pool: str = POOLS[0], pages: bool = True) -> list[str]:
    """Start or find the server, the pools, a worker of `pool` and, with `pages`, MLflow's; return a line for each."""
    if pool not in POOLS:
        raise SettingsError(f"there is no work pool '{pool}'; there are {' and '.join(POOLS)}")
    with _alone():
        state, lines = State.read(), []
        api = prefect_api()
        state, how = _server(state, api)
        lines.append(f"Prefect    {api.removesuffix('/api')}   {how}")
        if not os.environ.get(API):
            _toml(api)
        ui = mlflow_ui()
        if pages:  # they start while Prefect is being waited for
            state, how = _pages(state, ui)
            lines.append(f"MLflow     {ui}   {how}")
        if (server := state.alive(SERVER)) is not None:
            wait_until(server, lambda: prefect_version(api) is not None, SECONDS)
        make_pools(api)
        lines.append(f"Pools      {', '.join(POOLS)}")
        lost = end_lost_runs(api)
        state, how = _worker(state, api, pool)
        lines.append(f"Worker     {pool}   {how}")
        lines += [f"Cut off    {name}: the next run goes on from there" for name in lost]
        if pages:
            if (daemon := state.alive(MLFLOW)) is not None:
                wait_until(daemon, lambda: mlflow_version(ui) is not None, SECONDS)
            lines.append(f"Nights     {ui}{nights_page()}")
        return [*lines, f"Logs       {FOLDER / 'logs'}", "Next       make deploy; genevolve status; make stop"]


def end() -> list[str]:
    """Stop what `start` started, workers and their runs first, so that the server still hears of it; return a line for each."""
    with _alone():
        state = State.read()
        order = sorted(state.daemons, key=lambda d: d.name == SERVER)
        stopped = stop([d for d in order if d.name != SERVER]) + stop([d for d in order if d.name == SERVER])
        STATE.unlink(missing_ok=True)
        _remove_temporary()
        if TOML.exists() and TOML.read_text(encoding="utf-8").startswith(MARK):
            TOML.unlink()
        return [f"stopped    {name}" for name in stopped] or ["nothing was running that `make serve` had started"]


@contextmanager
def _alone() -> Iterator[None]:
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "serve.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _server(state: State, api: str) -> tuple[State, str]:
    if (ours := state.alive(SERVER)) is not None:
        if ours.url != api:
            raise ServeError(f"our Prefect server runs at {ours.url}, not at {api}: `make stop` first")
        return state, "runs already"
    if (version := prefect_version(api)) is not None:
        return state, f"found, version {version}; it is not ours and `make stop` leaves it"
    if prefect_is_elsewhere():
        raise ServeError(f"no Prefect server answers at {api} ({API})")
    refuse_stranger(api, "a Prefect server", PREFECT_PORT)
    port = urlsplit(api).port or 80
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    started = f"started{' on the team database' * _has_database()}"
    return state.plus(_spawn(SERVER, command, api, {API: api, LEASES: ON_DISK})), started


def _pages(state: State, ui: str) -> tuple[State, str]:
    from genevolve.store import is_shared
    from genevolve.tracking import experiment, init_db

    if state.alive(MLFLOW) is not None:
        return state, "runs already"
    if (version := mlflow_version(ui)) is not None:
        if not mlflow_is_ours(ui, experiment()[1]):
            raise ServeError(f"{ui} shows another project's MLflow: set {MLFLOW_PORT} to another port")
        return state, f"found, version {version}; `make stop` leaves it"
    refuse_stranger(ui, "MLflow", MLFLOW_PORT)
    where = [
        f"--host={HOST}",
        f"--port={urlsplit(ui).port}",
        "--workers=1",
        f"--artifacts-destination={experiment()[1]}",
    ]
    command = [sys.executable, "-m", "mlflow", "ui", *where]
    # The address of a team's database may hold a password: it goes by the environment, which others cannot read.
    more = {"MLFLOW_BACKEND_STORE_URI": init_db(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return state.plus(_spawn(MLFLOW, command, ui, more)), f"started{' on the team database' * is_shared()}"


def nights_page() -> str:
    """Return where MLflow's pages compare the nights, below their address."""
    from genevolve.mlflow_view import page
    from genevolve.tracking import experiment

    return page(experiment()[0])


def _worker(state: State, api: str, pool: str) -> tuple[State, str]:
    kind = f"{WORKER} {pool}"
    if state.alive(kind) is not None:
        return state, "runs already"
    name = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name, "--type", "process"]
    more = {API: api, "GENEVOLVE_HOME": str(Path.cwd()), QUERY: os.environ.get(QUERY) or "2"}
    daemon = _spawn(kind, [*command, "--install-policy", "never"], api, more)
    state = state.plus(daemon)
    wait_until(daemon, lambda: _is_online(api, pool, name), SECONDS)
    return state, "started"


def _is_online(api: str, pool: str, name: str) -> bool:
    """Return whether the server hears from a worker."""
    online = call(f"{api}/work_pools/{pool}/workers/filter", {"workers": {"status": {"any_": ["ONLINE"]}}})
    return any(worker.get("name") == name for worker in online or [])


def _temporary() -> Path:
    """Return the folder for temporary files, made if need be; where its path is long, a link leads to the system's."""
    path = TEMPORARY.absolute()
    if len(os.fsencode(path)) > LONGEST and not path.exists():
        path.unlink(missing_ok=True)  # a link to what the system has cleared away
        path.symlink_to(tempfile.mkdtemp(prefix="genevolve-"))
    path.mkdir(exist_ok=True)
    return path.resolve()


def _remove_temporary() -> None:
    shutil.rmtree(TEMPORARY.resolve(), ignore_errors=True)
    if TEMPORARY.is_symlink():
        TEMPORARY.unlink()


def _spawn(name: str, command: list[str], url: str, more: dict[str, str]) -> Daemon:
    environment = {
        **os.environ,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": os.environ.get("PREFECT_HOME") or str(FOLDER.absolute() / "prefect"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "TMPDIR": str(_temporary()),
        "PYTHONPATH": python_path(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **more,
    }
    log = FOLDER.absolute() / "logs" / f"{name.replace(' ', '-')}.log"
    return spawn(name, command, token=uuid.uuid4().hex, log=log, environment=environment, url=url)


def _has_database() -> bool:
    return (os.environ.get(PREFECT_URI) or "").startswith("postgresql")


def _toml(api: str) -> None:
    """Tell `prefect` in this folder which server it talks to, unless the user has such a file."""
    if not TOML.exists() or TOML.read_text(encoding="utf-8").startswith(MARK):
        write_whole(TOML, f'{MARK}[api]\nurl = "{api}"\n')
