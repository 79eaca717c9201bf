"""How a stage runs: whole or not at all, found again after a crash, rerun when and only when something it reads changed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from genevolve.errors import StageError
from genevolve.ledger import Ledger
from genevolve.profiles import load
from genevolve.stages.runner import job, run_job
from genevolve.tracking import NullTracker
from genevolve.workspace import Workspace, folder_digest
from tests.flows import toys


@pytest.fixture
def workspace(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    toys.lay_out(tmp_path, project)
    monkeypatch.chdir(tmp_path)
    use(monkeypatch)
    place = Workspace.private("build/tiny")
    Ledger().open_cycle(load("tiny"))[0].write(place.ledger)
    return place


def use(monkeypatch: pytest.MonkeyPatch, **bodies: toys.Body) -> None:
    for name, module in toys.modules(**bodies).items():
        monkeypatch.setitem(sys.modules, name, module)


def run(stage: str, cycle: str, place: Workspace, **overrides: Any) -> dict[str, Any]:
    settings = load("tiny", **overrides) if stage == "build" else None
    return run_job(job(stage, cycle, place, settings), NullTracker())


def run_all(place: Workspace) -> list[bool]:
    steps = [("build", ""), ("cold_start", "c000"), ("bench", "c000"), ("evolve", "c001"), ("bench", "c001")]
    return [run(stage, cycle, place)["skipped"] for stage, cycle in steps]


def test_a_cycle_runs_once_and_then_only_what_changed(workspace: Workspace) -> None:
    assert run_all(workspace) == [False] * 5
    assert run_all(workspace) == [True] * 5
    (Path("assets/base-policy") / "w").write_text("another")  # the cold start reads the base, the rest its result
    assert run_all(workspace) == [True, False, True, True, True]
    (Path("assets/base-policy")).rename("assets/other")
    (Path("assets/base-policy")).mkdir()
    assert run("build", "", workspace, overrides=["seeds.data_seed=2"])["skipped"] is False
    assert run("bench", "c000", workspace)["skipped"] is False  # the dataset's bytes changed


def test_metrics_and_curves_are_reported(workspace: Workspace) -> None:
    run_all(workspace)
    assert json.loads(workspace.report("c000", "cold_start").read_text()) == {"valid": 0.9}
    assert (workspace.reports / "c000" / "cold_start.csv").read_text().splitlines()[:2] == ["step,loss", "0.0,1.0"]
    assert json.loads(workspace.report("c001", "bench").read_text())["report"]["diff"] == pytest.approx(0.1)


def test_a_skipped_stage_reports_the_same_bytes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def cold_start(settings: Any, *, dataset: Path, base: Path, out: Path) -> dict[str, Any]:
        return {"curve": [{"step": 0, "loss": 1.0, "a": 2.0}, {"step": 1, "loss": 0.5, "late": 3.0}]}

    use(monkeypatch, cold_start=cold_start)
    run("build", "", workspace)
    page = workspace.reports / "c000" / "cold_start.csv"
    texts = []
    for skipped in (False, True):
        assert run("cold_start", "c000", workspace)["skipped"] is skipped
        texts.append(page.read_text())
        page.unlink()
    assert texts[0] == texts[1]
    assert texts[0].splitlines()[0] == "step,a,late,loss"


def test_a_missing_input_is_one_sentence(workspace: Workspace) -> None:
    with pytest.raises(StageError, match=r"cold_start@c000 needs dataset at build/tiny/dataset, which is missing"):
        run("cold_start", "c000", workspace)


def test_a_stage_that_fails_leaves_the_last_result_alone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run("build", "", workspace)
    before = folder_digest(workspace.built)

    def full_disk(settings: Any, *, out: Path) -> dict[str, Any]:
        (out / "half").write_text("half")
        raise OSError(28, "No space left on device", str(out / "half"))

    use(monkeypatch, build=full_disk)
    with pytest.raises(OSError, match="No space left"):
        run("build", "", workspace, overrides=["seeds.data_seed=2"])
    assert folder_digest(workspace.built) == before


def slow_evolve(settings: Any, *, dataset: Path, parent: Path, out: Path) -> dict[str, Any]:
    """Write a record every few hundredths of a second, and go on from those that are there."""
    done = len(list(out.glob("record*")))
    for i in range(done, 20):
        (out / f"record{i:02d}").write_text(str(i))
        (out.parent / "log").open("a").write(f"{i}\n")
        time.sleep(0.03)
    (out / "policy").mkdir()
    (out / "policy" / "w").write_text("evolved")
    return {"records": 20}


@pytest.mark.faults
def test_kill_9_in_the_middle_goes_on_and_ends_with_the_same_bytes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, evolve=slow_evolve)
    run("build", "", workspace)
    run("cold_start", "c000", workspace)
    undisturbed = run("evolve", "c001", workspace)
    digest = folder_digest(workspace.trained("c001"))
    log = workspace.root / "c001" / "log"
    for trace in (log, workspace.trained("c001").with_name(".trained.done.json")):
        trace.unlink()

    child = multiprocessing.get_context("fork").Process(target=run, args=("evolve", "c001", workspace))
    child.start()
    deadline = time.monotonic() + 30
    while not (log.exists() and len(log.read_text().splitlines()) >= 5):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    again = run("evolve", "c001", workspace)

    assert again["metrics"] == undisturbed["metrics"]
    assert folder_digest(workspace.trained("c001")) == digest
    written = [int(line) for line in log.read_text().splitlines()]
    assert sorted(set(written)) == list(range(20))
    assert len(written) <= 21  # at most the record in hand was written twice: nothing was done over


def test_what_a_killed_run_of_another_recipe_left_is_not_used(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(settings: Any, *, out: Path) -> dict[str, Any]:
        (out / "stale").write_text("of data seed 1")
        raise KeyboardInterrupt

    use(monkeypatch, build=killed)
    with pytest.raises(KeyboardInterrupt):
        run("build", "", workspace)
    use(monkeypatch)
    run("build", "", workspace, overrides=["seeds.data_seed=2"])
    assert [p.name for p in workspace.built.iterdir()] == ["requests.jsonl"]
