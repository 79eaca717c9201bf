"""One served machine for all tests that need one; they are of one xdist group, so that one process has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from genevolve.operations.addresses import listens
from tests.flows.machine import Machine, free_ports


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[Machine]:
    prefect, mlflow = free_ports(2)
    ports = {"GENEVOLVE_PREFECT_PORT": str(prefect), "GENEVOLVE_MLFLOW_PORT": str(mlflow)}
    temporary = tmp_path_factory.mktemp("temporary")
    machine = Machine(tmp_path_factory.mktemp("machine") / "toy", project, **ports, TMPDIR=str(temporary))
    try:
        machine.ok("genevolve", "serve")
        yield machine
    finally:
        stopped = machine.ok("genevolve", "stop")
    assert len(stopped.splitlines()) == 3, stopped
    assert machine.left() == []
    assert not (machine.folder / "prefect.toml").exists()
    assert not (machine.folder / ".genevolve" / "tmp").exists()
    assert [path.name for path in temporary.iterdir()] == []  # neither of the runs, nor of worker, server and pages
    assert not any(listens(f"http://127.0.0.1:{port}") for port in (prefect, mlflow))
    assert machine.ok("genevolve", "stop").startswith("nothing was running")


@pytest.fixture(scope="session")
def deployed(machine: Machine) -> Machine:
    said = machine.ok("genevolve", "deploy")
    names = (
        "evolution-cycle/nightly",
        "evaluate-policy/bench-only",
        "build-dataset/build-dataset",
        "ablation/ablation",
    )
    for name in (*names, "gpu-stage/gpu-stage"):
        assert name in said
    assert "0 2 * * * UTC" in said
    return machine
