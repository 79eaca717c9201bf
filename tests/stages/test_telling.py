"""What a stage tells MLflow: by itself, or by whoever had it run; also after a kill, an error, or with locked books."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genevolve.errors import TryLaterError
from genevolve.files import write_whole
from genevolve.ledger import Ledger
from genevolve.profiles import load
from genevolve.records import Message, Trajectory
from genevolve.stages import runner
from genevolve.stages.runner import job, run_job
from genevolve.stages.telling import LATER_VARIABLE, alone, tell_all, tell_when_over
from genevolve.tracking import SWITCH_VARIABLE, MlflowTracker
from genevolve.workspace import Workspace
from tests.flows import toys

PLACE = Workspace.private("build/tiny")
OUT = PLACE.built
DONE = OUT.with_name(".dataset.done.json")


@pytest.fixture
def build(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return what runs the stage `build` with a body of the test's."""
    toys.lay_out(tmp_path, project)
    monkeypatch.chdir(tmp_path)
    Ledger().write(PLACE.ledger)

    def run(body: toys.Body) -> dict[str, Any]:
        for name, module in toys.modules(build=body).items():
            monkeypatch.setitem(sys.modules, name, module)
        return run_job(job("build", "", PLACE, load("tiny")))

    return run


def body(settings: Any, *, out: Path) -> dict[str, Any]:
    (out / "calls").open("a").write("x")
    (out / "page.html").write_text("page")
    said = (Message(role="assistant", content="<answer>...</answer>"),)
    seen = Trajectory(id="t", request_id="q1", rollout=0, question="Draw", messages=said, tool_calls=())
    curve = [{"step": 0, "loss": 2.0}, {"step": 3, "loss": 1.0}]
    return {"kept": 5, "curve": curve, "pages": [Path("page.html")], "traces": {"best": [seen]}}


def plain(settings: Any, *, out: Path) -> dict[str, Any]:
    return {"kept": 6}


def failing(settings: Any, *, out: Path) -> dict[str, Any]:
    raise ZeroDivisionError


def killed(settings: Any, *, out: Path) -> dict[str, Any]:
    time.sleep(0.3)
    (out / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def notes() -> list[Path]:
    return sorted(OUT.parent.glob(".dataset.unt*"))


def runs() -> list[Any]:
    return MlflowTracker()._runs("tags.stage = 'build'")


def lock() -> sqlite3.Connection:
    """Hold the books as another process does that never lets go."""
    other = sqlite3.connect("mlruns/mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other


def killed_in_a_process(build: Callable[..., Any], body: toys.Body) -> None:
    in_a_process(lambda: build(body))


def in_a_process(work: Callable[[], Any]) -> None:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def test_the_caller_tells_what_a_stage_left(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv(LATER_VARIABLE, "1")
    track = MlflowTracker()
    with track.cycle("c001", {}):
        parent = mlflow.active_run().info.run_id
        began = time.time()
        build(body)
        over = time.time()
    assert (runs(), len(notes())) == ([], 1)
    (OUT / "page.html").write_text("another run's")
    tell_when_over(OUT, track)
    (run,) = runs()
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent)
    assert began - 1 < run.info.start_time / 1000 <= run.info.end_time / 1000 < over + 1
    assert run.data.metrics == {"kept": 5.0, "loss": 1.0}
    assert run.data.params["seeds.data_seed"] == str(load("tiny").seeds.data_seed)
    assert (Path(run.info.artifact_uri) / "pages" / "page.html").read_text() == "page"
    assert run.inputs.dataset_inputs[0].dataset.name == "GenEvolve-Data"
    (trace,) = mlflow.search_traces(run_id=run.info.run_id, return_type="list")
    assert trace.data.spans[0].name == "best q1"
    tell_when_over(OUT, track)
    assert (len(runs()), notes()) == (1, [])


def test_a_stage_run_by_hand_tells_by_itself_once(build: Callable[..., dict[str, Any]]) -> None:
    assert [build(body)["skipped"] for _ in range(2)] == [False, True]
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert "mlflow.parentRunId" not in runs()[0].data.tags
    assert notes() == []


def test_a_stage_that_failed_or_was_killed_says_so(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError):
        build(failing)
    assert [run.info.status for run in runs()] == ["FAILED"]
    monkeypatch.setenv(LATER_VARIABLE, "1")
    for _ in range(2):  # also one that nobody had told when the next began
        killed_in_a_process(build, killed)
    monkeypatch.delenv(LATER_VARIABLE)
    with MlflowTracker().cycle("c001", {}):  # later, inside of a cycle's run, to which they do not belong
        build(body)
    found = runs()
    assert [run.info.status for run in found] == ["FINISHED", "KILLED", "KILLED", "FAILED"]
    assert ["mlflow.parentRunId" in run.data.tags for run in found] == [True, False, False, False]
    assert all(0.2 < (run.info.end_time - run.info.start_time) / 1000 < 60 for run in found[1:3])
    assert notes() == []


@pytest.mark.parametrize("window", ["_write", "_put_in_place", "_write_reports"])
def test_a_stage_killed_at_its_very_end_is_told_once_as_finished(
    window: str, build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_the_end(*arguments: Any, **named: Any) -> None:
        if window != "_write" or arguments[0].name == ".dataset.done.json":
            os.kill(os.getpid(), signal.SIGKILL)
        whole(*arguments, **named)

    whole = getattr(runner, window)
    with monkeypatch.context() as patch:
        patch.setattr(runner, window, at_the_end)
        killed_in_a_process(build, body)
    build(body)
    found = [(run.info.status, run.data.metrics.get("kept")) for run in runs()]
    assert found == [("FINISHED", 5.0), ("KILLED", None)][: 2 if window == "_write" else 1]
    assert all((Path(run.info.artifact_uri) / "pages/page.html").is_file() for run in runs()[:1])


@pytest.mark.parametrize("where", ["_log_params", "log_curve", "log_traces"])
def test_telling_that_is_cut_off_goes_on_in_the_same_run(
    where: str, build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LATER_VARIABLE, "1")
    build(body)

    def cut_off(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowTracker, where, cut_off)
        in_a_process(lambda: tell_when_over(OUT, MlflowTracker()))
    assert [run.info.status for run in runs()] == ["RUNNING"]
    tell_all(OUT.parent, MlflowTracker())
    (run,) = runs()
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"kept": 5.0, "loss": 1.0})
    assert notes() == []


def test_what_fails_at_the_end_of_telling_writes_no_trace_twice_and_a_run_deleted_meanwhile_is_made_anew(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv(LATER_VARIABLE, "1")
    build(body)
    track = MlflowTracker()

    def locked(*_: Any) -> None:
        raise RuntimeError("database is locked")

    def tell_in_vain() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(track._client, "set_terminated", locked)
            with pytest.raises(RuntimeError, match="locked"):
                tell_when_over(OUT, track)

    tell_in_vain()
    tell_when_over(OUT, track)
    (run,) = runs()
    assert (run.info.status, len(mlflow.search_traces(run_id=run.info.run_id, return_type="list"))) == ("FINISHED", 1)
    DONE.unlink()  # it shall run again
    build(plain)
    tell_in_vain()
    track._client.delete_run(runs()[0].info.run_id)
    tell_when_over(OUT, track)
    assert ([run.info.status for run in runs()], notes()) == (["FINISHED", "FINISHED"], [])


def test_what_is_to_be_told_waits_while_mlflow_is_switched_off(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LATER_VARIABLE, "1")
    build(body)
    monkeypatch.delenv(LATER_VARIABLE)
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH_VARIABLE, "off")
        assert build(body)["skipped"]
        assert len(notes()) == 1
    build(body)
    assert ([run.info.status for run in runs()], notes()) == (["FINISHED"], [])
    DONE.unlink()
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH_VARIABLE, "off")
        build(plain)
    assert (len(runs()), notes()) == (1, [])


@pytest.mark.parametrize(
    "text", ["no JSON", "{}", '{"title": "build", "params": {}, "parent": null, "traces": {"a": [3]}}']
)
def test_a_note_that_cannot_be_read_is_put_aside(
    text: str, build: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    note = OUT.with_name(".dataset.untold-1.000")
    write_whole(note / "note.json", text)
    assert build(body)["skipped"] is False
    assert [path.name for path in notes()] == [".dataset.untellable-1.000"]
    assert (
        "MLflow is not told of build/tiny/dataset: build/tiny/.dataset.untellable-1.000 cannot be"
        in capsys.readouterr().err
    )
    assert [run.info.status for run in runs()] == ["FINISHED"]


def test_nothing_is_told_of_a_stage_at_work(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LATER_VARIABLE, "1")
    build(body)
    with alone(OUT):
        tell_when_over(OUT, MlflowTracker())
    assert (runs(), len(notes())) == ([], 1)


def test_books_that_are_locked_when_a_stage_ends_cost_no_work(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = []

    def locking(settings: Any, *, out: Path) -> dict[str, Any]:
        locks.append(lock())
        return body(settings, out=out)

    with pytest.raises(Exception, match="database is locked"):
        build(locking)
    assert (OUT / "calls").read_text() == "x"
    locks[0].close()
    assert build(locking)["skipped"] is True
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert notes() == []


def test_a_flow_tells_of_the_stage_that_dvc_ran_for_it_and_books_locked_then_are_tried_again(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC's part is played by a call; tests/flows/test_team.py and tests/faults/test_dvc_chain.py have the real one."""
    from flows import dvc, stages

    locks: list[sqlite3.Connection] = []

    def stage_of_dvc(name: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(LATER_VARIABLE, "1")
            build(body)
        if not locks:
            locks.append(lock())

    monkeypatch.setattr(dvc, "repro", stage_of_dvc)
    with pytest.raises(TryLaterError, match=r"MLflow has not been told of build yet: .*database is locked"):
        stages.repro("build", "", PLACE)
    locks[0].close()
    stages.repro("build", "", PLACE)
    assert (OUT / "calls").read_text() == "x"
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert notes() == []
