"""The fault matrix of docs/operations.md: what a kill of DVC may tear, torn; and what a restarted machine takes for a lock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from flows import dvc
from genevolve.errors import StageError, TryLaterError

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def folder(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one stage that leaves a line in `log` for every run, its output kept by DVC, the lock file committed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(project / ".dvc" / "config", tmp_path / ".dvc" / "config")
    stage = {
        "cmd": "echo run >> log && mkdir -p build/dataset && cp in build/dataset/f",
        "deps": ["in"],
        "outs": [{"build/dataset": {"persist": True}}],
    }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"build": stage}}))
    Path("in").write_text("1")
    dvc.repro("build")
    return tmp_path


def commit() -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)


@pytest.mark.parametrize("left", ["", '{"write": {"/a', "[]"])
def test_dvcs_torn_list_of_who_works_where_is_made_anew(left: str, folder: Path) -> None:
    dvc.WORKERS.write_text(left)
    Path("in").write_text("2")
    dvc.repro("build")
    assert Path("build/dataset/f").read_text() == "2"


def taken_by(pid: int) -> None:
    entry = {"pid": pid, "cmd": "dvc repro -s build"}
    dvc.WORKERS.write_text(json.dumps({"write": {str(Path("build/dataset").absolute()): entry}, "read": {}}))
    Path("in").write_text("2")


def test_a_number_that_is_no_longer_dvcs_holds_nobody_up(folder: Path) -> None:
    taken_by(os.getpid())  # as after a restart of the machine
    dvc.repro("build")
    assert Path("build/dataset/f").read_text() == "2"


def test_a_dvc_that_is_at_work_is_waited_for_and_then_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(dvc, "TRIES", 2)
    with subprocess.Popen(["bash", "-c", "exec -a dvc sleep 300"]) as other:
        taken_by(other.pid)
        with pytest.raises(TryLaterError, match="is busy, it is being blocked by"):
            dvc.repro("build")
        other.kill()
    dvc.repro("build")
    assert Path("build/dataset/f").read_text() == "2"


@pytest.mark.parametrize("left", ["", "schema: '2.0'\nstages:\n  build:\n    cmd: 'echo", "[1"])
@pytest.mark.parametrize("committed", [True, False])
def test_a_torn_lock_file_is_put_aside_and_made_anew(left: str, committed: bool, folder: Path) -> None:
    before = dvc.LOCK.read_text()
    if committed:
        commit()
    dvc.LOCK.write_text(left)
    dvc.repro("build")
    assert dvc.LOCK.read_text() == before
    assert Path("dvc.lock.damaged").read_text() == left
    assert Path("log").read_text().count("run") == (
        1 if committed else 2
    )  # with the real stages: kept by its fingerprint


def test_an_import_that_was_cut_anywhere_goes_on(folder: Path) -> None:
    dvc.repro(dvc.IMPORT)
    whole = Path(dvc.IMPORT).read_text()
    assert not yaml.safe_load(whole).get("frozen")

    def again() -> None:
        dvc.repro(dvc.IMPORT)
        assert (Path("data/f").read_text(), Path(dvc.IMPORT).read_text()) == ("1", whole)

    Path(dvc.IMPORT).write_text(whole[:20])  # while data.dvc was being written
    again()
    Path(dvc.IMPORT).unlink()
    shutil.rmtree("data")
    subprocess.run(["dvc", "import-url", "-q", "--no-download", "build/dataset", "data"], check=True)  # no further
    assert yaml.safe_load(Path(dvc.IMPORT).read_text())["frozen"]
    again()
    Path("data/f").unlink()  # in the middle of the copying
    again()
    Path("in").write_text("2")  # and a later dataset is not overlooked
    dvc.repro("build")
    dvc.repro(dvc.IMPORT)
    assert Path("data/f").read_text() == "2"


def test_data_without_its_record_is_one_sentence_and_is_left_alone(folder: Path) -> None:
    Path("data").mkdir()
    Path("data/mine").write_text("mine")
    with pytest.raises(StageError, match=r"data/ is here without data\.dvc: bring data\.dvc back"):
        dvc.repro(dvc.IMPORT)
    assert Path("data/mine").read_text() == "mine"
