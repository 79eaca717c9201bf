"""Retention: what a champion's lineage needs is never listed; DVC's copies go only where nothing kept names them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.housekeeping import old_logs, tidy
from genevolve.errors import StageError
from genevolve.housekeeping import dropped_objects, everything, kept, plan, remove, room, size_mb
from genevolve.ledger import Ledger
from genevolve.operations import journal
from genevolve.profiles import load
from genevolve.settings import Retention
from genevolve.tracking import NullTracker
from genevolve.workspace import Workspace

LAST_TWO = Retention(cycles=2)


class Registry(NullTracker):
    """Who is champion, said by the test."""

    def __init__(self, champion: str | None, previous: str | None = None, policies: list[tuple[str, str, Path]] = []):  # noqa: B006
        self._titles, self._policies = (champion, previous), policies

    def champion(self, line: str = "") -> str | None:
        return self._titles[0]

    def previous(self, line: str = "") -> str | None:
        return self._titles[1]

    def policies(self) -> list[tuple[str, str, Path]]:
        return self._policies


@pytest.fixture
def place(tmp_path: Path, in_project: Path) -> Workspace:
    """Ten nights: c003 and c005 were promoted, each the parent of those that followed."""
    place = Workspace.private(tmp_path / "tiny")
    ledger, parent = Ledger().open_cycle(load("tiny"))
    last = parent
    for _ in range(9):
        ledger, night = ledger.open_night(load("tiny"), parent, last)
        last = night
        parent = night if night in ("c003", "c005") else parent
    ledger.write(place.ledger)
    for name in ledger.names():
        (place.trained(name) / "policy").mkdir(parents=True)
        (place.policy(name) / "w").write_bytes(b"0" * 2**20)
        place.bench(name).mkdir()
    return place


def test_lineages_and_the_last_cycles_stay(place: Workspace) -> None:
    stay = kept(place, Registry("tiny/c005", "tiny/c003"), LAST_TWO)
    assert stay == {"c000", "c001", "c003", "c005", "c008", "c009", "c010"}  # c008: what c009 went on from
    gone = plan(place, Registry("tiny/c005", "tiny/c003"), LAST_TWO)
    assert [g.path.name for g in gone] == ["c002", "c004", "c006", "c007"]
    assert sum(g.mb for g in gone) == pytest.approx(4)
    assert remove(gone) == pytest.approx(4)
    assert plan(place, Registry("tiny/c005", "tiny/c003"), LAST_TWO) == []
    assert {p.name for p in place.root.iterdir() if p.is_dir()} == stay


@pytest.mark.parametrize("champion", [f"tiny/c{i:03d}" for i in range(1, 11)])
def test_no_champions_lineage_is_ever_listed(place: Workspace, champion: str) -> None:
    ledger = Ledger.read(place.ledger)
    gone = {g.path.name for g in plan(place, Registry(champion, "tiny/c002"), LAST_TWO)}
    assert not gone & set(ledger.lineage(champion.rpartition("/")[2]))
    assert "c002" not in gone


def test_after_a_rollback_to_an_old_champion_its_line_stays(place: Workspace) -> None:
    gone = {g.path.name for g in plan(place, Registry("tiny/c002", "tiny/c005"), LAST_TWO)}
    assert gone == {"c004", "c006", "c007"}


def test_where_nobody_knows_the_champion_nothing_goes(place: Workspace) -> None:
    note = place.report("c003", "gate")
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"promoted": True}))
    with pytest.raises(StageError, match="names no champion"):
        plan(place, NullTracker(), LAST_TWO)


def test_registered_copies_of_what_goes_go_too(place: Workspace, tmp_path: Path) -> None:
    policies = []
    for version, title in enumerate(("tiny/c004", "tiny/c005", "c004", "other/c004"), 1):
        folder = tmp_path / "registry" / str(version)
        folder.mkdir(parents=True)
        policies.append((str(version), title, folder))
    gone = plan(place, Registry("tiny/c005", None, policies), LAST_TWO)
    assert [g.path for g in gone if g.path.parent.name == "registry"] == [policies[0][2]]  # other lines have others


def test_a_campaigns_root_stands_for_its_champion_and_the_archive_may_go(place: Workspace) -> None:
    newer, root = Ledger.read(place.ledger).new_campaign("c005")
    place.campaign("").mkdir()
    shutil.copy(place.ledger, place.campaign(f"until-{root}.yaml"))
    newer, night = newer.open_night(load("tiny"), root, root)
    newer.write(place.ledger)
    assert set(everything(place)) >= {"c001", root, night}
    stay = kept(place, Registry("tiny/c005"), LAST_TWO)
    assert stay == {root, night, "c010", "c009", "c005", "c003", "c001", "c000"}
    assert kept(place, Registry(f"tiny/{night}"), Retention(cycles=2)) >= {root, night}


def test_logs_of_runs_before_the_last_nights_of_every_line_go(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for hour, (name, line) in enumerate(
        {"by-hand": None, "n1": "", "n2": "", "t1": "tiny", "n3": "", "bench": None, "n4": ""}.items()
    ):
        if line is not None:
            with journal.night(line, tmp_path, run=name):
                pass
        (logs / f"run-{name}.log").write_text("said")
        os.utime(logs / f"run-{name}.log", (hour * 3600, hour * 3600))
    (logs / "worker.log").write_text("older than all")
    assert [gone.path.name for gone in old_logs(2, tmp_path)] == ["run-by-hand.log", "run-n1.log", "run-n2.log"]
    assert [gone.path.name for gone in old_logs(3, tmp_path)] == ["run-by-hand.log", "run-n1.log"]
    remove(old_logs(2, tmp_path))
    assert len(list(logs.iterdir())) == 5
    assert old_logs(2, tmp_path) == []


def test_a_night_that_went_well_stays_so_where_nothing_can_be_removed(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    place.report("c003", "gate").parent.mkdir(parents=True, exist_ok=True)
    place.report("c003", "gate").write_text('{"promoted": true}')
    tidy(place, load("tiny"), Registry(None), use_dvc=False)
    assert "housekeeping: the registry names no champion" in capsys.readouterr().err
    assert all(place.policy(name).is_dir() for name in Ledger.read(place.ledger).names())


def test_room_is_the_largest_of_the_last_nights(place: Workspace) -> None:
    room(place, Retention(free_gb=0), copies=2)
    with pytest.raises(StageError, match=r"a night needs 500000\.0 GB of disk \(0\.0 for itself"):
        room(place, Retention(free_gb=500_000), copies=2)
    with pytest.raises(StageError, match=r"a night needs \d+\.\d GB"):
        room(place, Retention(free_gb=0), copies=10**9)


def test_a_budget_is_kept_though_the_disk_has_room(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mlruns").mkdir()
    Path("mlruns/mlflow.db").write_bytes(b"0" * 2**20)
    held = (size_mb(place.root) + 1) / 1024
    largest = max(size_mb(p) for p in place.root.glob("c*")) / 1024
    assert largest > 0
    room(place, Retention(free_gb=0, budget_gb=held + 1.01 * largest), copies=1)
    with pytest.raises(StageError, match=r"of retention\.budget_gb are used: `genevolve gc`"):
        room(place, Retention(free_gb=0, budget_gb=held + 0.99 * largest), copies=1)


def test_dvcs_copies_of_what_goes_go_and_the_rest_can_be_checked_out(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def dvc(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True)

    subprocess.run(["git", "init", "-q"], check=True)
    Path(".dvc").mkdir()
    shutil.copy(project / ".dvc" / "config", ".dvc/config")
    command = "mkdir -p build/${item} && echo ${item} > build/${item}/own && echo same > build/${item}/shared"
    each = {"foreach": ["c001", "c002", "c003"], "do": {"cmd": command, "outs": ["build/${item}"]}}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"evolve": each}}))
    Path("kept").mkdir()
    Path("kept/own").write_text("c002\n")  # a .dvc file keeps the very bytes of a cycle that goes
    dvc("repro", "-q")
    dvc("add", "-q", "kept")
    cache = Path(".dvc/cache")
    everything_ = dropped_objects(Path("dvc.lock"), cache, ["c001", "c002", "c003"], [])
    gone = dropped_objects(Path("dvc.lock"), cache, ["c001", "c002"], [Path("kept.dvc")])
    assert len(everything_) == 7  # three lists, three own files, one that all share
    titles = sorted(g.why for g in gone)
    assert titles == ["DVC's copy, evolve@c001", "DVC's copy, evolve@c001", "DVC's copy, evolve@c002"]
    remove(gone)
    shutil.rmtree("build")
    shutil.rmtree("kept")
    dvc("checkout", "-q", "evolve@c003", "kept.dvc")
    assert (Path("build/c003/own").read_text(), Path("build/c003/shared").read_text()) == ("c003\n", "same\n")
    assert Path("kept/own").read_text() == "c002\n"
