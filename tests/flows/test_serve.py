"""Serve, deploy, run a night, look, stop: real Prefect server, worker and MLflow on free ports, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from genevolve.errors import SettingsError, TryLaterError
from genevolve.operations import journal
from genevolve.operations.addresses import call
from genevolve.tracking import SWITCH_VARIABLE
from tests.flows import toys
from tests.flows.machine import Machine

pytestmark = pytest.mark.xdist_group("served")  # one machine for all of them


def test_a_second_serve_finds_everything(machine: Machine) -> None:
    before = machine.state()
    said = machine.ok("genevolve", "serve").splitlines()
    assert [line.endswith("runs already") for line in said[:4]] == [True, True, False, True], said
    assert machine.state() == before
    assert {d.name for d in before.daemons} == {"prefect server", "mlflow ui", "worker default-process-pool"}


def test_a_pool_that_is_gone_is_made_on_our_server_and_no_other(machine: Machine) -> None:
    pool = f"{api(machine)}/work_pools/gpu-process-pool"
    assert call(pool)["type"] == "process"
    urlopen(Request(pool, method="DELETE")).close()
    assert call(pool) is None
    (machine.folder / "prefect.toml").unlink()  # as before the first start
    done = machine.run("genevolve", "serve", "--no-pages")
    assert (done.returncode, done.stderr) == (0, "")
    assert call(pool)["type"] == "process"
    assert (machine.folder / "prefect.toml").exists()


def test_a_server_that_is_not_ours_is_used_and_left_alone(machine: Machine, tmp_path: Path, project: Path) -> None:
    other = Machine(tmp_path / "other", project, GENEVOLVE_PREFECT_PORT=machine.environment["GENEVOLVE_PREFECT_PORT"])
    try:
        said = other.ok("genevolve", "serve", "--no-pages")
        assert "found, version 3." in said
        assert [d.name for d in other.state().daemons] == ["worker default-process-pool"]
    finally:
        assert other.ok("genevolve", "stop") == "stopped    worker default-process-pool\n"
    assert other.left() == []
    assert call(f"{api(machine)}/health") is True


def test_a_port_that_something_else_holds_is_one_sentence(tmp_path: Path, project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        other = Machine(tmp_path / "other", project, GENEVOLVE_PREFECT_PORT=str(port))
        done = other.run("genevolve", "serve")
    said = f"genevolve: port {port} is taken by something that is not a Prefect server; free it, or set "
    assert (done.returncode, done.stderr) == (1, f"{said}GENEVOLVE_PREFECT_PORT to another\n")
    assert other.left() == []


def test_a_night_by_hand(deployed: Machine) -> None:
    done = run_night(deployed)
    assert done.returncode == 0, done.stdout + done.stderr + deployed.logs()
    numbers = json.loads((deployed.folder / "build/tiny/reports/latest.json").read_text())
    assert (numbers["cycle"], numbers["promoted"]) == ("c001", True)
    (run,) = call(
        f"{api(deployed)}/flow_runs/filter",
        {
            "flows": {"name": {"any_": ["evolution-cycle"]}},
            "limit": 1,
            "sort": "END_TIME_DESC",
            "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        },
    )
    made = call(f"{api(deployed)}/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    kinds = {artifact["key"]: artifact["type"] for artifact in made}
    assert kinds["gate"] == "markdown"  # the toys leave no pictures, yields and curves of validation
    assert kinds["learning-curve"] == "image"
    (link,) = [a["data"] for a in made if a["key"] == "report"]
    assert "/#/experiments/" in link
    status = deployed.ok("genevolve", "status", "--profile", "tiny")
    assert len(status.splitlines()) <= 10
    assert "champion     tiny/c001, KScore 0.6" in status
    assert "c001 promoted" in status
    assert "(evolution-cycle/nightly)" in status
    assert status.endswith("needs you    nothing\n"), status


def api(machine: Machine) -> str:
    return f"http://127.0.0.1:{machine.environment['GENEVOLVE_PREFECT_PORT']}/api"


def run_night(machine: Machine) -> subprocess.CompletedProcess[str]:
    return machine.run("prefect", "deployment", "run", "evolution-cycle/nightly", "-p", "profile=tiny", "--watch")


def test_a_night_beside_a_running_one_is_skipped_and_says_so(deployed: Machine) -> None:
    with journal.night("tiny", deployed.folder / ".genevolve"):
        done = run_night(deployed)
    assert done.returncode != 0
    wanted = {"flow_runs": {"state": {"name": {"any_": ["Skipped"]}}}}
    (run,) = call(f"{api(deployed)}/flow_runs/filter", wanted)
    assert f"(process {os.getpid()}, since" in run["state"]["message"]
    assert [n.outcome for n in journal.last_nights("tiny", 9, deployed.folder / ".genevolve")].count("skipped") == 1


def test_a_wrong_parameter_makes_no_run(deployed: Machine) -> None:
    done = deployed.run("prefect", "deployment", "run", "evolution-cycle/nightly", "-p", "profile=nope")
    assert done.returncode != 0
    assert "'nope' is not one of ['embedded', 'tiny', 'paper'" in " ".join((done.stdout + done.stderr).split())


def test_the_same_flow_runs_under_prefect(
    machine: Machine, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called in this process, with its subflows, and not by a deployment."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.evolution_cycle import evolution_cycle

    toys.lay_out(tmp_path, project)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SWITCH_VARIABLE, "off")
    for name, module in toys.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    before = {r["id"] for r in call(f"{api(machine)}/flow_runs/filter", {})}
    with temporary_settings({PREFECT_API_URL: api(machine)}):
        done = evolution_cycle.prefect("tiny")
    assert done["diff"] == pytest.approx(0.1)
    flows = {f["id"]: f["name"] for f in call(f"{api(machine)}/flows/filter", {})}
    runs = [
        r for r in call(f"{api(machine)}/flow_runs/filter", {}) if r["id"] not in before and not r["auto_scheduled"]
    ]
    assert sorted((flows[r["flow_id"]], r["state"]["type"]) for r in runs) == [
        ("build-dataset", "COMPLETED"),
        ("evaluate-policy", "COMPLETED"),
        ("evaluate-policy", "COMPLETED"),
        ("evolution-cycle", "COMPLETED"),
    ]


def test_a_retry_happens_where_it_can_help_and_only_there(machine: Machine) -> None:
    import prefect
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.stages import can_help

    calls: list[str] = []

    @prefect.task(retries=2, retry_delay_seconds=0, retry_condition_fn=can_help)
    def work(error: Exception) -> str:
        calls.append(str(error))
        if len(calls) == 2 and isinstance(error, TryLaterError):
            return "done"
        raise error

    @prefect.flow
    def night(error: Exception) -> str:
        return work(error)

    with temporary_settings({PREFECT_API_URL: api(machine)}):
        assert night(TryLaterError("busy")) == "done"
        assert calls == ["busy", "busy"]
        calls.clear()
        with pytest.raises(SettingsError):
            night(SettingsError("wrong"))
        assert calls == ["wrong"]


@pytest.mark.faults
def test_a_killed_worker_is_replaced(machine: Machine) -> None:
    """Last: it changes the machine."""
    (worker,) = [d for d in machine.state().daemons if d.name.startswith("worker")]
    os.kill(worker.pid, signal.SIGKILL)
    said = machine.ok("genevolve", "serve").splitlines()
    assert said[3].endswith("started"), said
    assert not worker.alive()
    assert [line.endswith("runs already") for line in said[:2]] == [True, True]
