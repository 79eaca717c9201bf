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

from genevolve.ledger import Ledger
from genevolve.profiles import load
from genevolve.records import Message, Trajectory
from genevolve.stages.runner import job, run_job
from genevolve.stages.telling import LATER_VARIABLE, alone, tell_when_over
from genevolve.tracking import MlflowTracker
from genevolve.workspace import Workspace
from tests.flows import toys

OUT = Path("build/tiny/dataset")
NOTE = Path("build/tiny/.dataset.untold.json")


@pytest.fixture
def build(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return what runs the stage `build` with a body of the test's."""
    toys.lay_out(tmp_path, project)
    monkeypatch.chdir(tmp_path)
    place = Workspace.private("build/tiny")
    Ledger().write(place.ledger)

    def run(body: toys.Body) -> dict[str, Any]:
        for name, module in toys.modules(build=body).items():
            monkeypatch.setitem(sys.modules, name, module)
        return run_job(job("build", "", place, load("tiny")))

    return run


def body(settings: Any, *, out: Path) -> dict[str, Any]:
    (out / "calls").open("a").write("x")
    (out / "page.html").write_text("page")
    said = (Message(role="assistant", content="<answer>...</answer>"),)
    seen = Trajectory(id="t", request_id="q1", rollout=0, question="Draw", messages=said, tool_calls=())
    curve = [{"step": 0, "loss": 2.0}, {"step": 3, "loss": 1.0}]
    return {"kept": 5, "curve": curve, "pages": [Path("page.html")], "traces": {"best": [seen]}}


def failing(settings: Any, *, out: Path) -> dict[str, Any]:
    raise ZeroDivisionError


def killed(settings: Any, *, out: Path) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def runs() -> list[Any]:
    return MlflowTracker()._runs("tags.stage = 'build'")


def killed_in_a_process(build: Callable[..., Any]) -> None:
    child = multiprocessing.get_context("fork").Process(target=build, args=(killed,))
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
    assert (runs(), NOTE.exists()) == ([], True)
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
    assert (len(runs()), NOTE.exists()) == (1, False)


def test_a_stage_run_by_hand_tells_by_itself_once(build: Callable[..., dict[str, Any]]) -> None:
    assert [build(body)["skipped"] for _ in range(2)] == [False, True]
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert not NOTE.exists()


def test_a_stage_that_failed_or_was_killed_says_so(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError):
        build(failing)
    assert [run.info.status for run in runs()] == ["FAILED"]
    monkeypatch.setenv(LATER_VARIABLE, "1")
    killed_in_a_process(build)
    tell_when_over(OUT)
    assert [run.info.status for run in runs()] == ["KILLED", "FAILED"]
    killed_in_a_process(build)
    monkeypatch.delenv(LATER_VARIABLE)
    build(body)
    assert [run.info.status for run in runs()] == ["FINISHED", "KILLED", "KILLED", "FAILED"]


def test_nothing_is_told_of_a_stage_at_work(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LATER_VARIABLE, "1")
    build(body)
    with alone(OUT):
        tell_when_over(OUT)
        assert NOTE.exists()
    assert runs() == []


def test_books_that_are_locked_when_a_stage_ends_cost_no_work(
    build: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = []

    def locking(settings: Any, *, out: Path) -> dict[str, Any]:
        locks.append(sqlite3.connect("mlruns/mlflow.db", isolation_level=None))
        locks[-1].execute("BEGIN EXCLUSIVE")
        return body(settings, out=out)

    with pytest.raises(Exception, match="database is locked"):
        build(locking)
    assert (OUT / "calls").read_text() == "x"
    locks[0].close()
    assert build(locking)["skipped"] is True
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert not NOTE.exists()
