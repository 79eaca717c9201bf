"""A training stage on another machine: two checkouts, one Prefect server, one DVC remote, a worker for GPUs in the second."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Running

from flows import dvc, handover
from flows.lost import end_lost_runs
from genevolve.errors import SettingsError, TryLaterError
from genevolve.ledger import Ledger
from genevolve.operations import journal
from genevolve.operations.addresses import call
from genevolve.profiles import load
from genevolve.tracking import SWITCH_VARIABLE
from genevolve.workspace import Workspace
from tests.flows.machine import Machine, free_ports, with_dvc


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


@pytest.mark.slow
def test_a_night_has_its_evolve_stage_run_by_the_worker_of_the_gpu_machine(two: tuple[Machine, Machine]) -> None:
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


@pytest.fixture
def checkouts(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two checkouts with one DVC remote, the working directory in the first, where a cold start is done."""
    remote = tmp_path / "remote"
    small, gpu = (with_dvc(Machine(tmp_path / name, project), project, remote).folder for name in ("small", "gpu"))
    monkeypatch.syspath_prepend(project / "tests" / "flows" / "toy_site")  # of the processes that DVC starts
    monkeypatch.setenv(SWITCH_VARIABLE, "off")
    monkeypatch.chdir(small)
    Ledger().open_cycle(load())[0].write(Workspace.with_dvc().ledger)
    for stage in ("build", dvc.IMPORT, "cold_start@c000"):
        dvc.repro(stage)
    return small, gpu


def test_a_stage_is_handed_over_and_its_result_comes_back(
    checkouts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends of it in this process, without the server and the worker that lead from one to the other."""
    small, gpu = checkouts
    left: list[str] = []

    def run_on_pool(parameters: dict[str, Any]) -> Any:
        with monkeypatch.context() as there:
            there.chdir(gpu)
            there.setattr(handover, "create_markdown_artifact", left.append)
            handover.gpu_stage.function(**json.loads(json.dumps(parameters)))
        done = SimpleNamespace(is_completed=lambda: True)
        return SimpleNamespace(id=uuid4(), name="toy", state=done, total_run_time=timedelta(seconds=2))

    monkeypatch.setattr(handover, "refuse_without_worker", lambda: None)
    monkeypatch.setattr(handover, "run_on_pool", run_on_pool)
    monkeypatch.setattr(handover, "FlowRunContext", SimpleNamespace(get=lambda: "a run"))
    monkeypatch.setattr(handover, "_result_of", lambda _: handover.Result.model_validate_json(left[-1]))

    def hand() -> dict[str, Any]:
        return handover.run_stage_on_gpu("evolve", "c001", workspace=Workspace.with_dvc(), use_dvc=True)

    done = hand()
    assert done["seconds"] == 2
    assert done["metrics"]["steps"] > 0
    weights = [folder / "build/c001/trained/policy/w" for folder in (small, gpu)]
    assert weights[0].read_bytes() == weights[1].read_bytes() == b"base-policy 1 evolved"
    note = gpu / "build/c001/.trained.done.json"
    trained = note.stat().st_mtime_ns
    assert not (small / "build/c001/.trained.done.json").exists()  # it was not trained here

    # The small machine was stopped before it took the result: the next start gets it, and nothing is trained again.
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    del lock["stages"]["evolve@c001"]
    Path("dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    shutil.rmtree("build/c001/trained")
    assert hand() == done
    assert weights[0].read_bytes() == b"base-policy 1 evolved"
    assert note.stat().st_mtime_ns == trained


@pytest.mark.xdist_group("served")
def test_a_stage_that_no_worker_takes_and_one_whose_worker_dies_end_in_a_sentence(
    deployed: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers are this test's own words to the real server: none takes anything."""
    api = f"http://127.0.0.1:{deployed.environment['GENEVOLVE_PREFECT_PORT']}/api"
    monkeypatch.setattr(handover, "PATIENCE", 1.0)
    monkeypatch.setattr(handover, "LOOK_EVERY", 0.1)
    nap = time.sleep
    steps: list[Callable[[str], object]] = []

    def sleep(seconds: float) -> None:  # between two looks: what happens meanwhile
        nap(seconds)
        if steps:
            steps.pop(0)(runs()[0]["id"])

    def runs() -> list[dict[str, Any]]:
        wanted = {"deployments": {"name": {"any_": ["gpu-stage"]}}, "sort": "EXPECTED_START_TIME_DESC"}
        return call(f"{api}/flow_runs/filter", wanted, seconds=60)

    def begin(run: str, name: str = "w1") -> None:
        client.update_flow_run_labels(UUID(run), {handover.WORKER: name})
        client.set_flow_run_state(run, Running(), force=True)

    def die(_: str) -> None:
        client.request("DELETE", "/work_pools/{p}/workers/{w}", path_params={"p": handover.POOL, "w": "w1"})

    def hand_over() -> None:
        handover.run_on_pool({"name": "evolve", "cycle": "c001", "handover": {}})

    monkeypatch.setattr(handover, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        with pytest.raises(
            TryLaterError, match="no worker of the pool gpu-process-pool is online: `make serve POOL=gpu"
        ):
            handover.refuse_without_worker()
        client.send_worker_heartbeat(handover.POOL, "w1")
        handover.refuse_without_worker()

        with pytest.raises(TryLaterError, match=r"has begun '.+' within 0 minutes: `make serve POOL=gpu-process-pool`"):
            hand_over()
        assert runs()[0]["state"]["type"] == "CANCELLED"  # a worker that comes later does not take it

        # A dead machine's run holds the deployment's only place: ours waits behind it, and then for its own worker.
        left_over = runs()[0]["id"]
        begin(left_over, "w0")
        steps.extend([begin, die])
        with pytest.raises(TryLaterError, match=r"that ran '.+' is gone since 0 minutes"):
            hand_over()
        assert [run["state"]["type"] for run in runs()[:2]] == ["CRASHED", "CRASHED"]


@pytest.mark.xdist_group("served")
def test_a_lost_night_leaves_the_stage_on_the_gpu_machine_alone(
    deployed: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = f"http://127.0.0.1:{deployed.environment['GENEVOLVE_PREFECT_PORT']}/api"

    def ask(url: str, said: dict[str, Any] | None = None) -> Any:
        return call(url, said, seconds=60)  # the machine may be busy

    running, given = {"state": {"type": "RUNNING"}}, {"name": "evolve", "cycle": "c001", "handover": {}}
    gpu = ask(f"{api}/deployments/name/{handover.DEPLOYMENT}")
    night = ask(f"{api}/flow_runs/", {"flow_id": gpu["flow_id"], **running})["id"]
    inner = []
    for number, there in enumerate((True, False)):
        step = {"flow_run_id": night, "task_key": "step", "dynamic_key": str(number)}
        parent = {"parent_task_run_id": ask(f"{api}/task_runs/", step)["id"]}
        where = f"deployments/{gpu['id']}/create_flow_run" if there else "flow_runs/"
        what = {"parameters": given} if there else {"flow_id": gpu["flow_id"]}
        inner.append(ask(f"{api}/{where}", {**what, **parent})["id"])
        ask(f"{api}/flow_runs/{inner[-1]}/set_state", {**running, "force": True})
    monkeypatch.setattr(journal, "runs", lambda: {night})
    assert len(end_lost_runs(api)) == 1
    states = [ask(f"{api}/flow_runs/{run}")["state"]["type"] for run in (night, *inner)]
    assert states == ["CRASHED", "RUNNING", "CRASHED"]
    ask(f"{api}/flow_runs/{inner[0]}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


def test_what_a_nights_training_reads(tmp_path: Path) -> None:
    place = Workspace.private(tmp_path)
    ledger, first = Ledger().open_cycle(load())
    ledger, second = ledger.open_night(load(), "c000", first)  # the first was not promoted
    ledger.write(place.ledger)
    assert handover.inputs_of(first, place) == ["data.dvc", "cold_start@c000"]
    assert handover.inputs_of(second, place) == ["data.dvc", "cold_start@c000", "evolve@c001"]
    ledger, root = ledger.new_campaign(second)
    ledger, third = ledger.open_night(load(), root, root)
    ledger.write(place.ledger)
    assert handover.inputs_of(third, place) == ["data.dvc", "root@c003"]


def hand_over(**changes: Any) -> dict[str, Any]:
    return handover.outgoing().model_copy(update=changes).model_dump()


def test_other_code_on_the_gpu_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cycles.yaml").write_text("cold_starts: {}\n")
    with pytest.raises(SettingsError, match="is not that of small:/there: check out the same commit in both"):
        handover.gpu_stage.function("evolve", "c001", hand_over(home="small:/there", code="0" * 64))


def test_without_prefect_or_dvc_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="only by a run under Prefect"):
        handover.run_stage_on_gpu("evolve", "c001", workspace=Workspace.with_dvc(), use_dvc=True)
