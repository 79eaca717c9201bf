"""Puts a cycle's ledger, lock file and metrics on a branch, without touching the index, the working tree or HEAD."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genevolve.errors import StageError
from genevolve.workspace import Workspace


def check(branch: str) -> None:
    """Raise StageError where a commit on `branch` cannot be made or would change what somebody has checked out."""
    if subprocess.run(["git", "check-ref-format", "--branch", branch], capture_output=True).returncode:
        raise StageError(f"git_branch: '{branch}' is no name for a branch")
    if f"branch refs/heads/{branch}" in _git("worktree", "list", "--porcelain").splitlines():
        raise StageError(f"git_commit: the branch '{branch}' is checked out; name another one, or switch to another")
    _git("rev-parse", "--verify", "HEAD^{commit}")


def commit_cycle(workspace: Workspace, numbers: Mapping[str, Any], branch: str) -> str:
    """Commit what a cycle recorded, on top of HEAD's files, as the new tip of `branch`; return the commit's id.

    Its parents are the branch's tip and, where that does not hold it yet, HEAD: the commit has the code that was
    committed when the cycle ran.
    """
    check(branch)
    names = ["cycles.yaml", "dvc.lock", "data.dvc"] if workspace == Workspace.with_dvc() else [str(workspace.ledger)]
    files = [Path(name) for name in names]
    files += sorted(p for p in workspace.campaign("").glob("*") if p.suffix in (".dvc", ".yaml"))
    files += sorted(p for p in workspace.reports.rglob("*") if p.is_file() and p != workspace.latest)
    head = _git("rev-parse", "HEAD").strip()
    ref = f"refs/heads/{branch}"
    tip = _git("for-each-ref", "--format=%(objectname)", ref).strip()
    prefix = _git("rev-parse", "--show-prefix").strip()
    with tempfile.TemporaryDirectory() as folder:
        own = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git("read-tree", head, **own)
        for path in files:
            if path.is_file():
                blob = _git("hash-object", "-w", "--", str(path)).strip()
                _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{prefix}{path.as_posix()}", **own)
        tree = _git("write-tree", **own).strip()
    parents = [tip] if tip else [head]
    if tip and not _holds(tip, head):
        parents.append(head)
    if tip and len(parents) == 1 and _git("rev-parse", f"{tip}^{{tree}}").strip() == tree:
        return tip  # the same cycle again: nothing is new
    arguments = [word for parent in parents for word in ("-p", parent)]
    message = f"{workspace.title(str(numbers['cycle']))}: {numbers['gate']}"
    commit = _git("commit-tree", tree, *arguments, "-m", message, **_author()).strip()
    _git("update-ref", "-m", "genevolve", ref, commit, tip or "0" * 40)  # refused if somebody moved it meanwhile
    return commit


def _holds(tip: str, head: str) -> bool:
    return subprocess.run(["git", "merge-base", "--is-ancestor", head, tip], capture_output=True).returncode == 0


def _author() -> dict[str, str]:
    """Return a name for machines where git has none."""
    known = subprocess.run(["git", "var", "GIT_COMMITTER_IDENT"], capture_output=True).returncode == 0
    if known:
        return {}
    roles = ("AUTHOR", "COMMITTER")
    return {f"GIT_{r}_NAME": "genevolve" for r in roles} | {f"GIT_{r}_EMAIL": "genevolve@localhost" for r in roles}


def _git(*arguments: str, **environment: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, env=os.environ | environment)
    except FileNotFoundError as e:
        raise StageError("git_commit: git is not on the path") from e
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StageError(f"git {arguments[0]}: {said}")
    return done.stdout
