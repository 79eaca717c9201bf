"""The fault matrix of docs/operations.md: nights under Prefect's server and worker, with DVC, cut at each link in every stage, or
without the server's database."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from genevolve.operations.addresses import call, listens
from genevolve.operations.daemons import SERVER
from genevolve.tracking import SWITCH_VARIABLE
from tests.faults.bodies import ONCE, STAGES, wait_for
from tests.faults.chain import Project, dvc_of, gone, kill
from tests.faults.results import digests
from tests.flows.machine import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.faults]
NIGHTLY = "evolution-cycle/nightly"


class Served:
    """A served project whose nights meet the same fault in one stage after the other."""

    def __init__(self, folder: Path, project: Path, fault: str) -> None:
        (port,) = free_ports(1)
        self.api, self.fault = f"http://127.0.0.1:{port}/api", fault
        how = {"GENEVOLVE_PREFECT_PORT": str(port), "PREFECT_WORKER_QUERY_SECONDS": "1", SWITCH_VARIABLE: "off"}
        if fault.endswith(("_gone", "_long")):
            how["PREFECT_CLIENT_MAX_RETRIES"] = "2"  # for nothing, and the usual five take minutes
        self.project = Project(folder, project, **how)
        self.run = ""
        """the run at work"""

    def serve(self) -> str:
        return self.project.ok("genevolve", "serve", "--no-pages")

    def begin(self) -> None:
        """Start a night, as the schedule does."""
        nightly = call(f"{self.api}/deployments/name/{NIGHTLY}", seconds=60)
        begin = f"{self.api}/deployments/{nightly['id']}/create_flow_run"
        run = call(begin, {"parameters": {"parent": None}}, seconds=60)
        self.run = run["id"]

    def state(self) -> str:
        run: dict[str, Any] | None = call(f"{self.api}/flow_runs/{self.run}")
        return str(run["state"]["type"]) if run else "unknown"

    def at_work(self) -> bool:
        return self.state() in ("SCHEDULED", "PENDING", "RUNNING", "unknown")

    def disturb(self, stage: str) -> None:
        switches = self.project.switches
        switches.hold(stage)
        if not self.run:
            self.begin()
        work = psutil.Process(switches.met(stage, self.at_work))
        getattr(self, self.fault)(work, stage)

    def release(self, stage: str, *processes: psutil.Process) -> None:
        self.project.switches.release(stage)
        for process in processes:
            wait_for(lambda process=process: gone(process), f"{process} does not end")

    def run_process(self, work: psutil.Process, stage: str) -> None:
        """DVC and its stage live on; the worker tells the server; the next night goes on."""
        dvc = dvc_of(work.pid)
        process = dvc.parent()
        assert process is not None
        kill([process])
        self.release(stage, dvc, work)
        wait_for(lambda: self.state() == "CRASHED", f"the run is {self.state()}")
        self.run = ""

    def worker(self, work: psutil.Process, stage: str) -> None:
        """The night does not notice; `make serve` starts another worker."""
        (worker,) = [d for d in self.project.state().daemons if d.name.startswith("worker") and d.alive()]
        kill([psutil.Process(worker.pid)])
        said = self.serve()
        assert "Cut off" not in said
        self.release(stage, work)

    def server(self, work: psutil.Process, stage: str) -> None:
        """`make serve` starts another one, and the night goes on with it."""
        self.kill_server()
        assert "Cut off" not in self.serve()
        self.release(stage, work)

    def server_gone(self, work: psutil.Process, stage: str) -> None:
        """Nobody starts another one: the night ends, and the next `make serve`, or the worker before it, tells the new one."""
        process = dvc_of(work.pid).parent()
        assert process is not None
        self.kill_server()
        self.release(stage, work, process)
        said = self.serve()
        assert self.state() == "CRASHED"
        by_worker = (
            "infrastructure exited with non-zero status" in call(f"{self.api}/flow_runs/{self.run}")["state"]["message"]
        )
        assert said.count("Cut off ") == (0 if by_worker else 1)
        self.run = ""

    def books_locked(self, work: psutil.Process, stage: str) -> None:
        """Somebody else writes in Prefect's database while the stage ends: the server waits, and the night does not notice."""
        with closing(sqlite3.connect(self.books() / "prefect.db", timeout=60, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            self.release(stage, work)

    def books_gone(self, work: psutil.Process, stage: str) -> None:
        """The server and all that it knew are gone: the night ends; `make serve deploy` begins anew, and the next goes on."""
        process = dvc_of(work.pid).parent()
        assert process is not None
        self.kill_server()
        shutil.rmtree(self.books())
        self.release(stage, work, process)
        self.serve()
        self.project.ok("genevolve", "deploy")
        assert self.state() == "unknown"
        self.run = ""

    def books_removed(self, work: psutil.Process, stage: str) -> None:
        """The database's file is removed under a living server. Its open connections hold it, a new one finds it empty: the
        night ends, well or not; the next server knows nothing, and says what to do."""
        process = dvc_of(work.pid).parent()
        assert process is not None
        for file in self.books().glob("prefect.db*"):
            file.unlink()
        self.release(stage, work, process)
        self.project.ok("genevolve", "stop")
        self.serve()
        assert "needs you    `make deploy`" in self.project.ok("genevolve", "status")
        self.project.ok("genevolve", "deploy")
        self.run = ""

    def books_locked_long(self, work: psutil.Process, stage: str) -> None:
        """For longer than server and run wait: the run fails, as it hears once the server can write; the next one goes on."""
        with closing(sqlite3.connect(self.books() / "prefect.db", timeout=60, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            self.release(stage, work)
            wait_for(lambda: "503 Service Unavailable" in self.project.logs(), "the run goes on waiting")
        wait_for(lambda: not self.at_work(), "the run does not end")
        assert self.state() == "FAILED"
        self.run = ""

    def books(self) -> Path:
        return self.project.folder / ".genevolve" / "prefect"

    def all_at_once(self, work: psutil.Process, stage: str) -> None:
        """As when the machine is switched off: `make serve` tells the server what was cut off, and the next night goes on."""
        processes = self.project.left()
        assert len({p.pid for p in processes} & {work.pid, dvc_of(work.pid).pid}) == 2
        kill(processes)
        self.project.switches.release(stage)
        assert self.serve().count("Cut off ") == 1
        assert self.state() == "CRASHED"
        self.run = ""

    def kill_server(self) -> None:
        (server,) = [d for d in self.project.state().daemons if d.name == SERVER and d.alive()]
        kill([psutil.Process(server.pid)])

    def finish(self) -> None:
        if not self.run:
            self.begin()
        wait_for(lambda: not self.at_work(), "the night does not end")
        assert self.state() == "COMPLETED", (
            f"{call(f'{self.api}/flow_runs/{self.run}')['state']}\n{self.project.logs()}"
        )


CELLS = {
    "all_at_once": STAGES,
    "run_process": STAGES,
    "worker": STAGES,
    "server": STAGES,
    "server_gone": ("cold_start", "evolve"),
    "books_locked": ("cold_start", "evolve"),
    "books_gone": ("evolve",),
    "books_removed": ("evolve",),
    "books_locked_long": ("evolve",),
}
"""A night that loses its server, or whose server cannot write, is the same in every stage: one or two stand for all."""
MARKED = [pytest.param(f, marks=pytest.mark.xdist_group(f"served chain {i % 2}")) for i, f in enumerate(CELLS)]


@pytest.fixture(scope="module", params=MARKED)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served") / "project", project, request.param)
    try:
        served.serve()
        served.project.ok("genevolve", "deploy")
        yield served
    finally:
        served.project.ok("genevolve", "stop")
    assert served.project.left() == []
    assert not listens(served.api)


@pytest.mark.parametrize("stage", [*STAGES, "the end"])
def test_kill_9(served: Served, stage: str, undisturbed_dvc: dict[str, str]) -> None:
    if stage in CELLS[served.fault]:
        served.disturb(stage)
    elif stage != "the end":
        pytest.skip(f"{served.fault}: {' and '.join(CELLS[served.fault])} stand for all stages")
    else:
        served.finish()
        assert digests(served.project.folder) == undisturbed_dvc
    calls = served.project.switches.calls()
    assert set(calls.values()) == {1}, calls  # nothing was made, or paid for, twice
    assert set(calls) <= set(ONCE)
