"""Commits of a cycle: on a branch of their own, with the index, the working tree and HEAD as they were."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from flows import git
from genevolve.errors import StageError
from genevolve.workspace import Workspace

PLACE = Workspace.with_dvc()
NUMBERS = {"cycle": "c002", "gate": "c002 takes the place of c001: +0.0500."}


def run(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with something committed, something staged, something changed and something new."""
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    run("init", "-q", "-b", "main")
    Path("code.py").write_text("1\n")
    Path("cycles.yaml").write_text("cycles: {}\n")
    run("add", ".")
    run("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    Path("code.py").write_text("staged\n")
    run("add", "code.py")
    Path("code.py").write_text("changed\n")
    Path("note.txt").write_text("mine")
    Path("cycles.yaml").write_text("cycles: {c002: {}}\n")
    Path("dvc.lock").write_text("schema: '2.0'\n")
    (PLACE.reports / "c002").mkdir(parents=True)
    PLACE.report("c002", "gate").write_text("{}")
    PLACE.latest.write_text("{}")
    return tmp_path


def state() -> tuple[Any, ...]:
    files = {p.name: p.read_text() for p in Path().glob("*.*") if p.is_file()}
    return (
        run("status", "--porcelain"),
        run("diff", "--cached"),
        run("symbolic-ref", "HEAD"),
        run("rev-parse", "main"),
        files,
    )


def test_a_cycle_is_committed_and_nothing_else_is_touched(folder: Path) -> None:
    before = state()
    commit = git.commit_cycle(PLACE, NUMBERS, "nights")
    assert state() == before
    assert run("rev-parse", "nights", "nights^") == f"{commit}\n{run('rev-parse', 'main')}"
    assert run("ls-tree", "-r", "--name-only", "nights").split() == [
        "code.py",
        "cycles.yaml",
        "dvc.lock",
        "reports/c002/gate.json",
    ]
    assert run("show", "nights:cycles.yaml") == "cycles: {c002: {}}"
    assert run("show", "nights:code.py") == "1"  # as committed, not as it lies here
    assert run("log", "-1", "--format=%s", "nights") == "c002: c002 takes the place of c001: +0.0500."
    assert git.commit_cycle(PLACE, NUMBERS, "nights") == commit  # nothing is new


def test_the_branch_goes_on_and_takes_in_what_was_committed_meanwhile(folder: Path) -> None:
    first = git.commit_cycle(PLACE, NUMBERS, "nights")
    PLACE.report("c002", "bench").write_text("{}")
    second = git.commit_cycle(PLACE, NUMBERS, "nights")
    assert run("rev-parse", f"{second}^@") == first
    run("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "code")
    third = git.commit_cycle(PLACE, NUMBERS, "nights")
    assert run("rev-parse", f"{third}^@").split() == [second, run("rev-parse", "main")]
    assert run("show", "nights:code.py") == "staged"


def test_what_cannot_be_is_one_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="the branch 'main' is checked out"):
        git.check("main")
    with pytest.raises(StageError, match="no name for a branch"):
        git.check("a..b")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(empty)
    with pytest.raises(StageError, match="not a git repository"):
        git.check("nights")
