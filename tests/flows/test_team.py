"""A team: PostgreSQL behind Prefect and MLflow, one DVC remote, two machines at once. A real database, toys as stages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genevolve import store
from genevolve.errors import SettingsError
from genevolve.operations.journal import last_nights
from genevolve.tracking import MlflowTracker
from tests.flows.machine import Machine, free_ports, with_dvc
from tests.flows.postgres import PASSWORD, Cluster

GPU_NIGHT = (
    "prefect",
    "deployment",
    "run",
    "evolution-cycle/nightly",
    "-p",
    "parent=null",
    "-p",
    "gpu=true",
    "--watch",
)
Team = tuple[Machine, Machine, Cluster]


@pytest.fixture
def team(tmp_path: Path, project: Path) -> Iterator[Team]:
    """The machine that holds the project's ledger and serves, and another, with a worker for GPUs; no books yet."""
    prefect, mlflow = free_ports(2)
    with Cluster("mlflow", "prefect") as cluster:
        shared = {
            "MLFLOW_TRACKING_URI": cluster.uri("mlflow"),
            "PREFECT_API_DATABASE_CONNECTION_URL": cluster.uri("prefect", "postgresql+asyncpg"),
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(tmp_path / "shared"),
        }
        ports = {"GENEVOLVE_PREFECT_PORT": str(prefect), "GENEVOLVE_MLFLOW_PORT": str(mlflow)}
        one = Machine(tmp_path / "one", project, **shared, **ports)
        two = Machine(tmp_path / "two", project, **shared, PREFECT_API_URL=f"http://127.0.0.1:{prefect}/api")
        for machine in (one, two):
            with_dvc(machine, project, tmp_path / "remote")
            shutil.rmtree(machine.folder / "mlruns")
        try:
            yield one, two, cluster
        finally:
            two.ok("genevolve", "stop")
            one.ok("genevolve", "stop")
        assert one.left() + two.left() == []


@pytest.mark.slow
def test_two_machines_at_once(team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, cluster = team
    touches = [begin(machine, "genevolve.tracking") for machine in team[:2]]  # both at once, in an empty database
    assert [p.wait(300) for p in touches] == [0, 0], [p.stderr.read() for p in touches if p.stderr]
    said = one.ok("genevolve", "serve")
    assert said.count("started on the team database") == 2
    one.ok("genevolve", "deploy")
    two.ok("genevolve", "serve", "--pool", "gpu-process-pool", "--no-pages")

    night = begin(one, *GPU_NIGHT)
    own = begin(two, "genevolve", "evolve", "--profile", "tiny", "--parent", "champion")
    texts = [process.communicate(timeout=900) for process in (night, own)]
    assert (night.returncode, own.returncode) == (0, 0), f"{texts}\n{one.logs()}\n{two.logs()}"

    promoted = [last_nights(line, 1, m.folder / ".genevolve")[0].outcome for m, line in ((one, ""), (two, "tiny"))]
    assert promoted == ["promoted", "promoted"]
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        monkeypatch.setenv(name, one.environment[name])
    track = MlflowTracker(tmp_path / "none")
    assert (track.champion(), track.champion("tiny")) == ("c001", "tiny/c001")
    assert track.policy_folder().is_relative_to(tmp_path / "shared" / "genevolve")
    assert (track.policy_folder() / "w").read_bytes() == (two.folder / "build/c001/trained/policy/w").read_bytes()
    assert all("champion     c001, KScore" in machine.ok("genevolve", "status") for machine in (one, two))
    (cycle,) = track._runs("tags.cycle = 'c001' and tags.kind = 'cycle'")
    within = f"tags.mlflow.parentRunId = '{cycle.info.run_id}'"
    (evolve,) = track._runs(f"tags.stage = 'evolve@c001' and {within}")
    assert evolve.data.tags["machine"].endswith(":" + str(two.folder))  # and it was handed over through the remote
    assert store.count(one.environment["PREFECT_API_DATABASE_CONNECTION_URL"], "artifact")

    another_ledger(two, track)
    doctor = one.run("genevolve", "doctor").stdout
    assert "ok       mlflow database  postgresql://genevolve:***@127.0.0.1" in doctor
    assert "ok       prefect database postgresql+asyncpg://genevolve:***@127.0.0.1" in doctor
    found = [p for m in (one, two) for p in m.folder.rglob("*.db") if p.name in ("mlflow.db", "prefect.db")]
    assert found == []
    words = [" ".join(process.cmdline()) for process in one.left()]
    assert any("mlflow" in line for line in words)
    cluster.stop()
    away(one)
    written = "".join(p.read_text(errors="replace") for m in (one, two) for p in m.folder.glob(".genevolve/**/*.*"))
    assert PASSWORD[:6] not in written + doctor + str(texts) + str(words)


def another_ledger(two: Machine, track: MlflowTracker) -> None:
    """A second ledger's c001 does not get into the first one's run, or before its gate; it has an experiment of its own."""
    shutil.rmtree(two.folder / "build" / "tiny")
    other = ("genevolve", "evolve", "--profile", "tiny", "--seed", "9")
    done = two.run(*other)
    assert done.returncode == 1
    assert "tiny/c001 in the experiment 'genevolve' is a cycle of another ledger, begun on " in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    two.environment["MLFLOW_EXPERIMENT_NAME"] = "anna"
    two.ok(*other)
    assert "champion     tiny/c001" in two.ok("genevolve", "status", "--profile", "tiny")
    assert [cycle for _, cycle, _ in track.policies()].count("tiny/c001") == 1
    del two.environment["MLFLOW_EXPERIMENT_NAME"]


def away(one: Machine) -> None:
    """Without the database everything is one sentence, and soon."""
    began = time.monotonic()
    assert "champion     unknown: postgresql://genevolve:***@127.0.0.1" in one.ok("genevolve", "status")
    done = one.run("genevolve", "evolve", "--profile", "tiny")
    assert done.returncode == 75
    assert done.stderr.startswith("genevolve: the database postgresql://genevolve:***@127.0.0.1")
    assert done.stderr.count("\n") == 1
    assert "MISSING  mlflow database" in one.run("genevolve", "doctor").stdout
    assert time.monotonic() - began < 120


def test_addresses_of_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store.URI, "sqlite:///mlruns/mlflow.db")  # what `make` sets
    assert (store.is_shared(), store.experiment(), store.model()) == (False, "genevolve", "genevolve-policy")
    assert store.uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv(store.EXPERIMENT_NAME, "anna")
    assert store.experiment() == "genevolve"  # the project's own books have one
    monkeypatch.setenv(store.URI, "postgresql://me:hush@host/books?sslmode=require")
    assert (store.is_shared(), store.experiment(), store.model()) == (True, "anna", "anna-policy")
    assert store.name(tmp_path) == "postgresql://me:***@host/books"
    monkeypatch.setenv(store.ARTIFACTS, "/mnt/team")
    assert store.artifacts(tmp_path) == Path("/mnt/team/anna")
    monkeypatch.setenv(store.URI, "http://me:hush@host:5000")
    with pytest.raises(SettingsError, match=r"is http://me:\*\*\*@host:5000: it takes postgresql://"):
        store.is_shared()


def begin(machine: Machine, *command: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", *command], cwd=machine.folder, env=machine.environment, **pipes)
