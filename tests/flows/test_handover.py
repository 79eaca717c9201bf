"""A training stage on another machine: two checkouts, one Prefect server, one DVC remote, a worker for GPUs in the second."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from genevolve.errors import SettingsError
from genevolve.operations.addresses import call
from genevolve.workspace import Workspace
from tests.flows.machine import Machine, free_ports

pytestmark = pytest.mark.xdist_group("served")


def with_dvc(machine: Machine, project: Path, remote: Path) -> Machine:
    """Make the folder a DVC project of the real pipeline, without the dependencies on our sources."""
    pipeline = yaml.safe_load((project / "dvc.yaml").read_text())
    for stage in pipeline["stages"].values():
        body = stage.get("do", stage)
        body["deps"] = [d for d in body["deps"] if not d.startswith("src/")] or ["params.yaml"]
    (machine.folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    subprocess.run(["git", "init", "-q"], cwd=machine.folder, check=True)
    (machine.folder / ".dvc").mkdir()
    config = f"[core]\n    analytics = false\n    remote = shared\n['remote \"shared\"']\n    url = {remote}\n"
    (machine.folder / ".dvc" / "config").write_text(config)
    return machine


@pytest.fixture
def two(tmp_path: Path, project: Path) -> Iterator[tuple[Machine, Machine]]:
    (port,) = free_ports(1)
    off = {"GENEVOLVE_TRACKING": "off"}
    small = with_dvc(
        Machine(tmp_path / "small", project, GENEVOLVE_PREFECT_PORT=str(port), **off), project, tmp_path / "remote"
    )
    api = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    gpu = with_dvc(Machine(tmp_path / "gpu", project, **off, **api), project, tmp_path / "remote")
    try:
        small.ok("genevolve", "serve", "--no-pages")
        small.ok("genevolve", "deploy")
        gpu.ok("genevolve", "serve", "--pool", "gpu-process-pool", "--no-pages")
        yield small, gpu
    finally:
        gpu.ok("genevolve", "stop")
        small.ok("genevolve", "stop")
    assert small.left() + gpu.left() == []


def test_the_evolve_stage_runs_on_the_gpu_machine_and_its_result_comes_back(two: tuple[Machine, Machine]) -> None:
    small, gpu = two
    night = (
        "prefect",
        "deployment",
        "run",
        "evolution-cycle/nightly",
        "-p",
        "gpu=true",
        "-p",
        "parent=null",
        "--watch",
    )
    done = small.run(*night)
    assert done.returncode == 0, done.stdout + done.stderr + small.logs() + gpu.logs()
    numbers = json.loads((small.folder / "reports/latest.json").read_text())
    assert (numbers["cycle"], numbers["diff"]) == ("c001", pytest.approx(0.1))
    weights = [m.folder / "build/c001/trained/policy/w" for m in two]
    assert weights[0].read_bytes() == weights[1].read_bytes() == b"base-policy 1 evolved"
    assert not (small.folder / "build/c001/.trained.done.json").exists()  # it was not trained here
    assert (gpu.folder / "build/c001/.trained.done.json").exists()
    assert not (gpu.folder / "build/c001/bench").exists()  # the bench was not run there
    assert json.loads((small.folder / "reports/c001/evolve.json").read_text())["steps"] > 0
    runs = call(f"{gpu.environment['PREFECT_API_URL']}/flow_runs/filter", {"flows": {"name": {"any_": ["gpu-stage"]}}})
    assert [(r["state"]["type"], r["work_pool_name"]) for r in runs] == [("COMPLETED", "gpu-process-pool")]

    # The small machine was stopped before it took the result: the next start gets it, and nothing is trained again.
    trained = (gpu.folder / "build/c001/.trained.done.json").stat().st_mtime_ns
    lock = yaml.safe_load((small.folder / "dvc.lock").read_text())
    del lock["stages"]["evolve@c001"]
    (small.folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    shutil.rmtree(small.folder / "build/c001/trained")
    done = small.run(*night)
    assert done.returncode == 0, done.stdout + done.stderr + small.logs() + gpu.logs()
    assert weights[0].read_bytes() == b"base-policy 1 evolved"
    assert (gpu.folder / "build/c001/.trained.done.json").stat().st_mtime_ns == trained


def test_what_a_nights_training_reads(tmp_path: Path) -> None:
    from flows.handover import inputs_of
    from genevolve.ledger import Ledger
    from genevolve.profiles import load

    place = Workspace.private(tmp_path)
    ledger, first = Ledger().open_cycle(load())
    ledger, second = ledger.open_night(load(), "c000", first)  # the first was not promoted
    ledger.write(place.ledger)
    assert inputs_of(first, place) == ["data.dvc", "cold_start@c000"]
    assert inputs_of(second, place) == ["data.dvc", "cold_start@c000", "evolve@c001"]
    ledger, root = ledger.new_campaign(second)
    ledger, third = ledger.open_night(load(), root, root)
    ledger.write(place.ledger)
    assert inputs_of(third, place) == ["data.dvc", "root@c003"]


def hand_over(**changes: Any) -> dict[str, Any]:
    from flows.handover import outgoing

    return outgoing().model_copy(update=changes).model_dump()


def test_other_code_on_the_gpu_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.handover import gpu_stage

    monkeypatch.chdir(tmp_path)
    (tmp_path / "cycles.yaml").write_text("cold_starts: {}\n")
    with pytest.raises(SettingsError, match="is not that of small:/there: check out the same commit in both"):
        gpu_stage.function("evolve", "c001", hand_over(home="small:/there", code="0" * 64))


def test_without_prefect_or_dvc_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.handover import run_stage_on_gpu

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="only by a run under Prefect"):
        run_stage_on_gpu("evolve", "c001", workspace=Workspace.with_dvc(), use_dvc=True)
