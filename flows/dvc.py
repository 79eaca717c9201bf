"""`dvc repro -s STAGE`: DVC decides whether a stage has to run. The command line is called, never imported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from genevolve.errors import MAY_PASS, SettingsError, StageError, TryLaterError
from genevolve.files import write_whole
from genevolve.profiles import read_yaml
from genevolve.stages.telling import LATER_VARIABLE

IMPORT, LOCK = "data.dvc", Path("dvc.lock")
RESTORE_ONLY = "GENEVOLVE_RESTORE_ONLY"
"""Environment variable under which `genevolve stage` refuses to work: another machine has done it."""
NO_REMOTE = ("no remote specified", "config file error", "unsupported")
"""What DVC says where sending or fetching again is of no use."""
REFUSED = (
    "access denied",
    "accessdenied",
    "permission denied",
    "forbidden",
    "unauthorized",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "expiredtoken",
    "unable to locate credentials",
    "credentials were not found",
    "invalid credentials",
    "authentication failed",
)
"""What remotes say, in any case of letters, to whom they do not let in: of no use again, too."""
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
"""What DVC says where another process holds its lock, or works on the same stage."""
WORKERS = Path(".dvc/tmp/rwlock")
"""DVC's own list of which process works on which path."""
WAIT_SECONDS, TRIES = 5.0, 120
"""A busy lock fails at once: another run, or the orphan of a killed one. Wait for it up to ten minutes."""


def repro(stage: str) -> None:
    """Bring one stage up to date and nothing else; raise StageError when it fails, TryLaterError when that may pass.

    What it has to tell MLflow lies beside its folder then, whatever became of it (stages/telling.py).
    """
    _mend(LOCK)
    if stage == IMPORT:
        _prepare_import()
    _dvc("repro", "-s", stage, environment={LATER_VARIABLE: "1"})


def _prepare_import() -> None:
    """See that data.dvc is there. A kill at any point leaves what the next start goes on from: DVC copies only afterwards."""
    _mend(Path(IMPORT))
    if not Path(IMPORT).exists():  # only before the first dataset was recorded
        if Path("data").exists():  # DVC would put the copy inside it
            raise StageError(
                f"data/ is here without {IMPORT}: bring {IMPORT} back (git checkout {IMPORT}), or move data/ away"
            )
        _dvc("import-url", "--no-download", "build/dataset", "data")
    recorded = read_yaml(IMPORT)
    if (
        recorded.get("frozen") and "md5" not in recorded["outs"][0]
    ):  # as --no-download leaves it; a user may freeze his own
        _dvc("unfreeze", IMPORT)


def _mend(path: Path) -> None:
    """Put a file aside that a kill of DVC tore in the middle of its writing; what git has of it, if anything, takes its place.

    Nothing is run again for it that lies here: a stage is found by its fingerprint (stages/runner.py), and recorded anew.
    """
    if not path.exists() or _is_whole(path):
        return
    path.replace(path.with_name(f"{path.name}.damaged"))
    committed = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True)
    if committed.returncode == 0:
        write_whole(path, committed.stdout)
    elif path == Path(IMPORT):  # of the first import, whose copy is made again
        shutil.rmtree("data", ignore_errors=True)
    print(f"{path} was damaged, as a kill leaves it, and lies in {path}.damaged", file=sys.stderr, flush=True)


def _is_whole(path: Path) -> bool:
    """Say whether data.dvc or dvc.lock has what DVC writes into it; the beginning of either may be YAML, too."""
    try:
        found = read_yaml(path)
        return "stages" in found if path == LOCK else all(out["path"] for out in found["outs"]) and "deps" in found
    except (KeyError, TypeError):
        return False
    except SettingsError as e:
        if isinstance(e.__cause__, OSError):  # it may be whole
            raise
        return False


def unchanged(stages: Sequence[str]) -> bool:
    """Say whether DVC would pass over all of these; False, too, where it cannot say. Nothing is run or changed.

    One call for all: most of what a call takes is DVC's own start.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--dry", "-s", *stages],
        capture_output=True,
        text=True,
        env=_environment(),
    )
    passed = set(re.findall(r"^(?:Stage )?'(.+)' didn't change, skipping$", done.stdout, re.MULTILINE))
    return done.returncode == 0 and passed == set(stages)


def add(folder: Path) -> None:
    """Have DVC keep a folder that no stage makes."""
    _dvc("add", str(folder))


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
    _dvc("gc", "-f", "-w", "-a", "-T")


def confirm(stage: str) -> None:
    """Raise StageError unless a stage is up to date as DVC sees it; it is not run here."""
    _dvc("repro", "-s", stage, environment={RESTORE_ONLY: "1"})


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
        if _free_workers(errors):
            continue
        busy = any(text in errors for text in BUSY)
        if not busy:
            break
        if attempt == 0:
            print("another run holds DVC's lock; waiting for it to end", file=sys.stderr, flush=True)
        time.sleep(WAIT_SECONDS)
    passing, hint = busy or _reason(errors).endswith(MAY_PASS), ""
    if arguments[0] in ("push", "pull"):
        refused = any(text in errors.lower() for text in REFUSED)
        passing = not refused and not any(text in errors for text in NO_REMOTE)
        hint = "; the remote does not let us in: check its credentials" if refused else ""
    kind = TryLaterError if passing else StageError
    ended = f"exit code {code}" if code > 0 else f"killed (signal {-code}); the same command goes on from here"
    raise kind(f"dvc {' '.join(arguments)}: {_reason(errors) or ended}{hint}")


def _free_workers(errors: str) -> bool:
    """Remove DVC's list of who works where, if a kill tore it or if it names a process that is no DVC; say whether it did.

    DVC itself drops processes that are gone, but after a restart of the machine their numbers belong to others.
    """
    named = [int(pid) for pid in re.findall(r"\(PID (\d+)\): ", errors)]
    if "RWLock-file" not in errors and (not named or any(_is_dvc(pid) for pid in named)):
        return False
    WORKERS.unlink(missing_ok=True)
    return True


def _is_dvc(pid: int) -> bool:
    import psutil

    try:
        return any(Path(word).name == "dvc" for word in psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # somebody else's: it may be one
        return True


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
    """Run dvc with what it says to stderr passed on as it comes; return (exit code, that text).

    Its chatter on stdout is dropped here: with -q it would keep its errors to itself, too.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = {**_environment(), **more}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True, bufsize=0
    ) as process:
        assert process.stderr is not None
        kept: list[str] = []
        while piece := process.stderr.read(1):  # by character: progress bars end in no newline
            kept.append(piece)
            with suppress(OSError):  # whoever read it may be gone: no reason to end the cycle
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
