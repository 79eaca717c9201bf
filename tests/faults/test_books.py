"""The fault matrix of docs/operations.md: gate and publish cut in every window, and MLflow's database locked, torn or gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from flows import artifacts
from flows import evolution_cycle as cycles
from flows import gate as gates
from flows.evolution_cycle import evolution_cycle
from flows.gate import decided, published
from genevolve.cli import sentence
from genevolve.errors import SettingsError, may_pass
from genevolve.ledger import Ledger
from genevolve.operations import journal
from genevolve.tracking import MlflowTracker
from genevolve.workspace import Workspace
from tests.faults import bodies
from tests.faults.bodies import ONCE, Switches
from tests.faults.results import digests
from tests.flows import toys

pytestmark = [pytest.mark.slow, pytest.mark.faults]
PLACE = Workspace.private("build/tiny")
DATABASE = Path("mlruns/mlflow.db")


@pytest.fixture
def switches(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Switches:
    toys.lay_out(tmp_path, project)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(bodies.FOLDER, str(tmp_path / "faults"))
    for name, module in bodies.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return Switches(tmp_path / "faults")


def in_a_process(work: Callable[..., Any], *arguments: Any) -> int:
    """Run it in a child, so that this process has never opened the database; return its exit code."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def night() -> dict[str, Any]:
    return evolution_cycle("tiny", parent="champion")


WINDOWS: dict[str, tuple[Any, str, int]] = {
    "before the policy is registered": (MlflowTracker, "register_policy", 1),
    "before the decision is noted": (gates, "_write", 1),
    "before the champion moves": (MlflowTracker, "promote", 1),
    "between the alias and the log of its move": (MlflowClient, "set_registered_model_tag", 1),
    "before the move is noted as done": (gates, "_write", 2),
    "before it is published": (cycles, "publish", 1),
    "in the middle of publishing": (artifacts, "show", 1),
    "before it is noted as published": (cycles, "note_published", 1),
}


def killed_in(window: str, work: Callable[[], Any]) -> None:
    """Run the cycle, and kill this process in the window."""
    owner, name, number = WINDOWS[window]
    whole, calls = getattr(owner, name), [0]

    def killed(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **named)

    setattr(owner, name, killed)
    work()


def first_cycle() -> dict[str, Any]:
    return evolution_cycle("tiny")


@pytest.mark.parametrize("work", [first_cycle, night])
@pytest.mark.parametrize("window", WINDOWS)
def test_kill_9_at_the_gate_and_behind_it(window: str, work: Callable[[], Any], switches: Switches) -> None:
    assert in_a_process(killed_in, window, work) == -signal.SIGKILL
    assert switches.calls() == ONCE
    assert in_a_process(work) == 0
    assert switches.calls() == ONCE
    track = MlflowTracker()
    assert (track.champion("tiny"), track.previous("tiny"), decided(PLACE, "c001")) == ("tiny/c001", None, True)
    assert [(m["from"], m["to"]) for m in track.moves("tiny")] == [("", "tiny/c001")]
    assert [title for _, title, _ in track.policies()] == ["tiny/c001"]
    assert json.loads(PLACE.latest.read_text())["promoted"] is True


@pytest.mark.parametrize("window", WINDOWS)
def test_the_night_after_such_a_kill_goes_on_and_publishes(window: str, switches: Switches) -> None:
    assert in_a_process(night) == 0
    assert in_a_process(killed_in, window, night) == -signal.SIGKILL
    assert not published(PLACE, "c002")
    assert in_a_process(night) == 0
    assert switches.calls() == ONCE + Counter(
        k for k in ONCE if k.startswith(("evolve ", "bench "))
    )  # two nights, no more
    assert (list(Ledger.read(PLACE.ledger).cycles), published(PLACE, "c002")) == (["c001", "c002"], True)
    track = MlflowTracker()
    assert (track.champion("tiny"), track.previous("tiny")) == ("tiny/c002", "tiny/c001")
    assert [(m["from"], m["to"]) for m in track.moves("tiny")] == [("", "tiny/c001"), ("tiny/c001", "tiny/c002")]
    (run,) = track._runs("tags.cycle = 'tiny/c002' and tags.kind = 'cycle'")
    assert (run.data.tags["outcome"], run.data.metrics["kscore/report"]) == ("promoted", pytest.approx(0.7))
    assert [n.cycle for n in journal.last_nights("tiny", 9)] == ["c002", "c001"]
    assert json.loads(PLACE.latest.read_text())["cycle"] == "c002"


@contextmanager
def locked() -> Iterator[None]:
    """Hold the database as another process does that never lets go."""
    other = sqlite3.connect(DATABASE, isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        other.close()


def test_a_locked_database_at_the_start_of_a_night_is_no_empty_registry(switches: Switches) -> None:
    assert in_a_process(night) == 0
    ledger = PLACE.ledger.read_bytes()
    with locked(), pytest.raises(Exception, match="database is locked") as error:
        night()
    assert may_pass(error.value)
    assert len(sentence(error.value).splitlines()) == 1
    assert PLACE.ledger.read_bytes() == ledger  # no night was opened from nowhere
    done = night()
    assert (done["cycle"], done["parent"]) == ("c002", "c001")


@pytest.mark.parametrize("where", ["register_policy", "promote", "moves"])
def test_a_locked_database_at_the_gate_moves_nothing_twice(
    where: str, switches: Switches, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(MlflowTracker, where)
    with monkeypatch.context() as patch:

        def meets_a_lock(*arguments: Any, **named: Any) -> Any:
            with locked():
                return whole(*arguments, **named)

        patch.setattr(MlflowTracker, where, meets_a_lock)
        with pytest.raises(Exception, match="database is locked") as error:
            evolution_cycle("tiny")
    assert may_pass(error.value)
    assert not decided(PLACE, "c001")
    done = evolution_cycle("tiny")
    assert (done["cycle"], done["promoted"]) == ("c001", True)
    track = MlflowTracker()
    assert len(track.moves("tiny")) == len(track.policies()) == 1
    assert switches.calls() == ONCE


def test_a_database_that_is_gone_costs_no_champion(switches: Switches, tmp_path: Path) -> None:
    assert in_a_process(night) == 0
    before = digests(Path())
    toys.empty_database(tmp_path / "mlruns")  # as `make setup` does where there is none
    with pytest.raises(SettingsError, match=r"names no champion, though the gate made c001 one: .*--parent c001"):
        night()
    assert digests(Path()) == before
    done = evolution_cycle("tiny", parent="c001")
    assert (done["cycle"], done["parent"], done["promoted"]) == ("c002", "c001", True)
    assert MlflowTracker().champion("tiny") == "tiny/c002"
    assert list(Ledger.read(PLACE.ledger).cycles) == ["c001", "c002"]


def test_the_first_night_in_a_fresh_clone_is_the_cycle_whose_notes_came_with_git(
    switches: Switches, tmp_path: Path
) -> None:
    assert in_a_process(night) == 0
    toys.empty_database(tmp_path / "mlruns")
    for folder in ("dataset", "c000", "c001"):  # git has none of it; it has the ledger and the reports
        shutil.rmtree(PLACE.root / folder)
    assert in_a_process(killed_in, "before the policy is registered", night) == -signal.SIGKILL
    done = night()
    assert (done["cycle"], done["parent"], done["promoted"]) == ("c001", "c000", True)
    assert MlflowTracker().champion("tiny") == "tiny/c001"
    assert switches.calls() == ONCE + ONCE
    assert night()["parent"] == "c001"


def test_a_database_that_vanishes_in_mid_night_costs_no_work(
    switches: Switches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_a_process(night) == 0
    evolve, kept = sys.modules["genevolve.stages.evolve"], DATABASE.read_bytes()
    whole = evolve.run

    def vanishing(settings: Any, **inputs: Any) -> Any:
        DATABASE.unlink()
        return whole(settings, **inputs)

    def cut_off() -> None:
        try:
            night()
        except Exception as e:
            (tmp_path / "said").write_text(sentence(e))
            raise

    with monkeypatch.context() as patch:
        patch.setattr(evolve, "run", vanishing)
        assert in_a_process(cut_off) == 1
    assert re.fullmatch(
        r"MLflow's database says: attempt to write a readonly database: its file was removed .*bring it back.*",
        (tmp_path / "said").read_text(),
    )
    assert switches.calls() - ONCE == Counter(k for k in ONCE if k.startswith("evolve "))
    DATABASE.write_bytes(kept)
    assert in_a_process(night) == 0
    assert switches.calls() - ONCE == Counter(k for k in ONCE if k.startswith(("evolve ", "bench ")))
    runs = MlflowTracker()._runs("tags.stage = 'evolve@c002'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert published(PLACE, "c002")


def test_a_damaged_database_is_one_sentence_and_nothing_is_lost(switches: Switches) -> None:
    assert in_a_process(night) == 0
    before, kept = digests(Path()), DATABASE.read_bytes()
    DATABASE.write_bytes(b"no database" * 1000)
    with pytest.raises(Exception, match="file is not a database") as error:
        night()
    assert len(sentence(error.value).splitlines()) == 1
    assert digests(Path()) == before
    DATABASE.write_bytes(kept)
    assert night()["cycle"] == "c002"
