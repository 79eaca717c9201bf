"""DVC by its command line: dvc.yaml is sound and unrolls the ledger; a stage runs, rests, fails in a sentence, waits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import dvc
from flows.stages import dvc_name
from genevolve.errors import MAY_PASS, StageError, TryLaterError
from genevolve.ledger import Ledger
from genevolve.profiles import load
from genevolve.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(project / ".dvc" / "config", tmp_path / ".dvc" / "config")
    return tmp_path


def test_the_pipeline_unrolls_the_ledger(folder: Path, project: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(project / name, folder / name)
    ledger, first = Ledger().open_cycle(load())
    ledger, second = ledger.open_cycle(load(), parent=first)
    ledger.write(Path("cycles.yaml"))
    done = subprocess.run([sys.executable, "-m", "dvc", "stage", "list", "--name-only"], capture_output=True, text=True)
    names = set(done.stdout.split())
    assert names == {
        "build",
        "cold_start@c000",
        "bench_cold@c000",
        *(f"{stage}@{cycle}" for stage in ("evolve", "bench") for cycle in (first, second)),
    }, done.stderr
    place = Workspace.with_dvc()
    asked = [("build", ""), ("cold_start", "c000"), ("bench", "c000"), ("evolve", "c001"), ("bench", "c002")]
    assert {dvc_name(stage, cycle, place) for stage, cycle in asked} <= names
    dag = subprocess.run([sys.executable, "-m", "dvc", "dag", "--dot"], capture_output=True, text=True).stdout
    for edge in (
        '"bench@c001" -> "bench@c002"',
        '"evolve@c001" -> "evolve@c002"',
        '"cold_start@c000" -> "evolve@c001"',
    ):
        assert edge in dag


def test_a_stage_runs_once_rests_and_fails_in_a_sentence(
    folder: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project / "flows")  # as Prefect does in a run of a deployment: our dvc.py is not DVC

    def pipeline(command: str) -> None:
        stage = {"cmd": command, "deps": ["in"], "outs": ["out"]}
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"copy": stage}}))

    Path("in").write_text("1")
    pipeline("echo run >> log && cp in out")
    dvc.repro("copy")
    dvc.repro("copy")
    assert (Path("log").read_text(), Path("out").read_text()) == ("run\n", "1")
    Path("in").write_text("2")
    pipeline("echo 'genevolve: the disk is full' >&2 && exit 3")
    with pytest.raises(StageError, match=r"copy: the disk is full$"):
        dvc.repro("copy")
    assert dvc.made_by(Path("out")) == "copy"
    with pytest.raises(StageError, match="DVC has no record of what made in: run the stage before it"):
        dvc.made_by(Path("in"))
    pipeline(f"echo 'genevolve: no service answers{MAY_PASS}' >&2 && exit 75")
    with pytest.raises(TryLaterError, match=r"copy: no service answers \(this may pass"):
        dvc.repro("copy")
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    with pytest.raises(StageError, match=r"push copy: .*no remote specified"):
        dvc.push("copy")


@pytest.mark.faults
def test_a_busy_lock_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"cmd": "sleep 4 && echo 1 > slow", "outs": ["slow"]}
    other = {"cmd": "echo 2 > quick", "outs": ["quick"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"slow": stage, "quick": other}}))
    monkeypatch.setattr(dvc, "WAIT_SECONDS", 0.5)
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q", "-s", "slow"]) as first:
        while not any(Path(".dvc/tmp").glob("*lock*")):
            assert first.poll() is None
        dvc.repro("quick")
        first.wait()
    assert (first.returncode, Path("slow").read_text(), Path("quick").read_text()) == (0, "1\n", "2\n")
