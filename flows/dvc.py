"""`dvc repro -s STAGE`, one stage at a time: DVC decides whether it has to run. The command line is called, never imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from genevolve.errors import StageError

IMPORT = "data.dvc"
BUSY = "Unable to acquire lock"
WAIT_SECONDS, TRIES = 5.0, 120
"""A busy lock fails at once: another run, or the orphan of a killed one. Wait for it up to ten minutes."""


def repro(stage: str) -> None:
    """Bring one stage up to date and nothing else; raise StageError when it fails."""
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


def _dvc(*arguments: str) -> None:
    for attempt in range(TRIES):
        code, errors = _call(arguments)
        if code == 0:
            return
        if BUSY not in errors:
            break
        if attempt == 0:
            print("another run holds DVC's lock; waiting for it to end", file=sys.stderr, flush=True)
        time.sleep(WAIT_SECONDS)
    raise StageError(f"dvc {' '.join(arguments)}: {_reason(errors) or f'exit code {code}'}")


def _reason(errors: str) -> str:
    """Return the stage's own last sentence, else DVC's."""
    for prefix in ("genevolve: ", "ERROR: "):
        for line in reversed(errors.splitlines()):
            if line.startswith(prefix):
                return line.removeprefix(prefix)
    return ""


def _call(arguments: tuple[str, ...]) -> tuple[int, str]:
    """Run dvc with its output passed on as it comes; return (exit code, what it wrote to stderr)."""
    command = [sys.executable, "-m", "dvc", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=_environment(), text=True, bufsize=0) as process:
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
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "DVC_NO_ANALYTICS": "1",
    }
