"""`dvc repro -s STAGE`, one stage at a time: DVC decides whether it has to run. The command line is called, never imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from genevolve.errors import MAY_PASS, StageError, TryLaterError
from genevolve.files import write_whole
from genevolve.profiles import read_yaml

IMPORT, LOCK = "data.dvc", Path("dvc.lock")
RESTORE_ONLY = "GENEVOLVE_RESTORE_ONLY"
"""Environment variable under which `genevolve stage` refuses to work: another machine has done it."""
NO_REMOTE = ("no remote specified", "config file error", "unsupported")
"""What DVC says where sending or fetching again is of no use."""
BUSY = "Unable to acquire lock"
WAIT_SECONDS, TRIES = 5.0, 120
"""A busy lock fails at once: another run, or the orphan of a killed one. Wait for it up to ten minutes."""


def repro(stage: str) -> None:
    """Bring one stage up to date and nothing else; raise StageError when it fails, TryLaterError when that may pass."""
    if stage == IMPORT and not Path(IMPORT).exists():  # only before the first dataset was recorded
        _dvc("import-url", "-q", "build/dataset", "data")
        _dvc("unfreeze", "-q", IMPORT)
        return
    _dvc("repro", "-q", "-s", stage)


def add(folder: Path) -> None:
    """Have DVC keep a folder that no stage makes."""
    _dvc("add", "-q", str(folder))


def cache() -> Path:
    """Return the folder of DVC's cache."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, env=_environment()
    )
    if done.returncode:
        raise StageError(f"dvc cache dir: {_reason(done.stderr) or 'failed'}")
    return Path(done.stdout.strip())


def collect() -> None:
    """Remove what no branch, no tag and not the working tree refers to from DVC's cache."""
    _dvc("gc", "-q", "-f", "-w", "-a", "-T")


def confirm(stage: str) -> None:
    """Raise StageError unless a stage is up to date as DVC sees it; it is not run here."""
    _dvc("repro", "-q", "-s", stage, environment={RESTORE_ONLY: "1"})


def lock_entry(stage: str) -> dict[str, Any]:
    """Return what dvc.lock says about a stage."""
    entry: dict[str, Any] = read_yaml(LOCK)["stages"][stage]
    return entry


def adopt(stage: str, entry: Mapping[str, Any]) -> None:
    """Put what another machine's dvc.lock says about a stage into ours, and fetch the stage's outputs."""
    lock = read_yaml(LOCK)
    write_whole(LOCK, yaml.safe_dump({**lock, "stages": {**lock["stages"], stage: dict(entry)}}, sort_keys=False))
    pull(stage)


def push(*targets: str) -> None:
    """Send what stages or .dvc files made to the default remote."""
    _dvc("push", *targets)


def pull(*targets: str) -> None:
    """Fetch what stages or .dvc files made from the default remote, and put it into place."""
    _dvc("pull", *targets)


def _dvc(*arguments: str, environment: Mapping[str, str] | None = None) -> None:
    for attempt in range(TRIES):
        code, errors = _call(arguments, environment or {})
        if code == 0:
            return
        if BUSY not in errors:
            break
        if attempt == 0:
            print("another run holds DVC's lock; waiting for it to end", file=sys.stderr, flush=True)
        time.sleep(WAIT_SECONDS)
    passing = BUSY in errors or _reason(errors).endswith(MAY_PASS)
    if arguments[0] in ("push", "pull"):
        passing = not any(text in errors for text in NO_REMOTE)
    kind = TryLaterError if passing else StageError
    raise kind(f"dvc {' '.join(arguments)}: {_reason(errors) or f'exit code {code}'}")


def python_path() -> str:
    """Return PYTHONPATH for a child: ours, without this folder, which Prefect puts there, and where `dvc` would be this file."""
    here = Path(__file__).resolve().parent
    return os.pathsep.join(p for p in sys.path if p and Path(p).resolve() != here)


def _reason(errors: str) -> str:
    """Return the stage's own last sentence, else DVC's."""
    for prefix in ("genevolve: ", "ERROR: "):
        for line in reversed(errors.splitlines()):
            if line.startswith(prefix):
                return line.removeprefix(prefix)
    return ""


def _call(arguments: tuple[str, ...], more: Mapping[str, str]) -> tuple[int, str]:
    """Run dvc with its output passed on as it comes; return (exit code, what it wrote to stderr)."""
    command = [sys.executable, "-m", "dvc", *arguments]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**_environment(), **more}, text=True, bufsize=0
    ) as process:
        assert process.stderr is not None
        kept: list[str] = []
        while piece := process.stderr.read(1):  # by character: progress bars end in no newline
            kept.append(piece)
            sys.stderr.write(piece)
            sys.stderr.flush()
        return process.wait(), "".join(kept)


def _environment() -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": python_path(),
        "DVC_NO_ANALYTICS": "1",
    }
