"""The fault matrix of docs/operations.md, the quick cells: a plain cycle in one process, every stage by every fault."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.evolution_cycle import evolution_cycle
from genevolve.operations import journal
from genevolve.stages import runner
from genevolve.tracking import SWITCH_VARIABLE
from genevolve.workspace import Workspace
from tests.faults import bodies
from tests.faults.bodies import ONCE, RECORDS, STAGES, Switches
from tests.faults.results import digests
from tests.flows import toys

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("plain faults")]
PLACE = Workspace.private("build/tiny")
OUT = {
    "build": PLACE.built,
    "cold_start": PLACE.trained("c000"),
    "bench_cold": PLACE.bench("c000"),
    "evolve": PLACE.trained("c001"),
    "bench": PLACE.bench("c001"),
}


def lay_out(folder: Path, project: Path, patch: pytest.MonkeyPatch) -> Switches:
    toys.lay_out_without_mlflow(folder, project)
    patch.chdir(folder)
    patch.setenv(SWITCH_VARIABLE, "off")
    patch.setenv(bodies.FOLDER, str(folder / "faults"))
    for name, module in bodies.modules().items():
        patch.setitem(sys.modules, name, module)
    return Switches(folder / "faults")


@pytest.fixture
def switches(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Switches:
    return lay_out(tmp_path, project, monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, project: Path) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        switches = lay_out(tmp_path_factory.mktemp("undisturbed"), project, patch)
        evolution_cycle("tiny")
        assert switches.calls() == ONCE
        return digests(Path())


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    return child


def kill(child: Any) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.join()


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_in_a_stage(stage: str, switches: Switches, undisturbed: dict[str, str]) -> None:
    switches.hold(stage)
    child = in_a_process(evolution_cycle, "tiny")
    assert switches.met(stage, child.is_alive) == child.pid
    kill(child)
    assert not OUT[stage].exists()  # what is half-written lies elsewhere
    assert journal.holder("tiny") is not None  # `genevolve status` says that it was cut off
    switches.release(stage)
    evolution_cycle("tiny")
    assert switches.calls() == ONCE
    assert digests(Path()) == undisturbed


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_in_a_stage(stage: str, switches: Switches, undisturbed: dict[str, str]) -> None:
    switches.fill(stage)
    with pytest.raises(OSError, match="No space left"):
        evolution_cycle("tiny")
    assert not OUT[stage].exists()
    (failed,) = journal.last_nights("tiny", 9)
    assert failed.outcome == "failed"
    switches.fill(stage, False)
    evolution_cycle("tiny")
    assert switches.calls() == ONCE
    assert digests(Path()) == undisturbed


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_start_in_a_stage(stage: str, switches: Switches, undisturbed: dict[str, str]) -> None:
    switches.hold(stage)
    child = in_a_process(evolution_cycle, "tiny")
    switches.met(stage, child.is_alive)
    with pytest.raises(journal.BusyError, match=f"is running here already .process {child.pid}, since"):
        evolution_cycle("tiny")
    switches.release(stage)
    child.join()
    assert child.exitcode == 0
    assert switches.calls() == ONCE
    assert digests(Path()) == undisturbed


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_folder_that_lacks_a_file_is_no_result(
    stage: str, switches: Switches, undisturbed: dict[str, str]
) -> None:
    """As a kill in the middle of its removal leaves it; the stage alone is run again."""
    evolution_cycle("tiny")
    (OUT[stage] / "records" / "0").unlink()
    evolution_cycle("tiny")
    assert switches.calls() - ONCE == Counter({f"{stage} {i}": 1 for i in range(RECORDS)})
    assert digests(Path()) == undisturbed


WINDOWS = {
    "before the note": (runner, "_write"),
    "before the rename": (runner, "_put_in_place"),
    "before the report": (runner, "_write_reports"),
    "after the old folder is gone": (Path, "replace"),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_kill_9_between_a_stages_end_and_its_place(
    window: str, switches: Switches, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is done, the folder not yet where it belongs: nothing is made again."""
    owner, name = WINDOWS[window]
    whole = getattr(owner, name)

    def killed(*arguments: Any) -> Any:
        folders = [str(getattr(a, "out", a)) for a in arguments]
        if any(f.endswith(("c001/trained", "c001/.trained.done.json", "c001/.trained.partial")) for f in folders):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        child = in_a_process(evolution_cycle, "tiny")
        child.join()
    assert child.exitcode == -signal.SIGKILL
    assert switches.calls() == Counter({k: n for k, n in ONCE.items() if not k.startswith("bench ")})
    evolution_cycle("tiny")
    assert switches.calls() == ONCE
    assert digests(Path()) == undisturbed


def test_a_note_that_cannot_be_read_is_no_note(switches: Switches, undisturbed: dict[str, str]) -> None:
    evolution_cycle("tiny")
    (PLACE.root / "c001" / ".trained.done.json").write_text('{"fingerprint": 1')
    evolution_cycle("tiny")
    assert switches.calls() - ONCE == Counter({f"evolve {i}": 1 for i in range(RECORDS)})
    assert digests(Path()) == undisturbed
    assert json.loads((PLACE.root / "c001" / ".trained.done.json").read_text())["digest"]
