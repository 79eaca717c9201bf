"""What a stage has to tell MLflow: written beside its folder while it works, told when it is over, then removed.

Who tells it has MLflow open anyway: the flow that had DVC run the stage, or the stage's own process when it is run by hand.
Opening MLflow costs a process about two seconds, so a night's stages leave it to their flow. And a database that is locked
when hours of training end takes nothing along: the note lies there until somebody tells it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from genevolve.files import write_whole
from genevolve.records import Trajectory
from genevolve.tracking import PARENT_VARIABLE, Tracker, tracker

LATER_VARIABLE = "GENEVOLVE_TELL_LATER"
"""Set for a stage whose caller tells what it leaves (flows/dvc.py)."""


def teller(out: Path, track: Tracker | None = None) -> Callable[[], None]:
    """Return what tells of a stage that runs in this process: nothing where its caller does that.

    MLflow is opened here: books that cannot be opened end the command before hours of work, not after.
    """
    return (lambda: None) if os.environ.get(LATER_VARIABLE) else partial(tell, out, track or tracker())


@contextmanager
def told(tell: Callable[[], None]) -> Iterator[None]:
    """Tell before it what a killed run left, and behind it what became of it; its own error is the one that is raised."""
    tell()
    try:
        yield
    except BaseException:
        with suppress(Exception):
            tell()
        raise
    tell()


@contextmanager
def alone(out: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of the stage that fills `out`: an orphan of a killed run may still be writing.

    Without `wait` raises BlockingIOError where somebody else holds it.
    """
    with out.with_name(f".{out.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextmanager
def noted(out: Path, title: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Note that a stage begins and how it ends. The body adds what is to be told: `metrics`, `curve`, `dataset` (folder,
    digest, context), `files` ({kind: [paths below out]}), `traces` ({label: [Trajectory as JSON]})."""
    note: dict[str, Any] = {"title": title, "params": dict(params), "parent": os.environ.get(PARENT_VARIABLE)}
    note |= {"status": "RUNNING", "began": time.time()}
    _write(out, note)
    try:
        yield note
    except BaseException:
        with suppress(OSError):  # a full disk: the note stays RUNNING, which is told as killed
            _write(out, note | {"status": "FAILED", "ended": time.time()})
        raise
    _write(out, note | {"status": "FINISHED", "ended": time.time()})


def tell_when_over(out: Path, track: Tracker | None = None) -> None:
    """Tell what the stage that fills `out` left to be told, if anything; nothing while somebody is at work there."""
    if _path(out).exists():
        with suppress(BlockingIOError), alone(out, wait=False):
            tell(out, track)


def tell(out: Path, track: Tracker | None = None) -> None:
    """Tell the note and remove it; the caller holds the stage's lock, so a stage that says RUNNING was killed.

    Killed in the middle it is told again: a second run in MLflow, and nothing lost. Raises what MLflow raises.
    """
    path = _path(out)
    if not path.exists():
        return
    note = json.loads(path.read_text(encoding="utf-8"))
    track = track or tracker()
    over = {"status": "KILLED" if note["status"] == "RUNNING" else note["status"], "began": note["began"]}
    over |= {"ended": note.get("ended", path.stat().st_mtime), "parent": note["parent"]}
    with track.stage(note["title"], note["params"], **over):
        if "dataset" in note:
            folder, digest, context = note["dataset"]
            track.log_dataset(Path(folder), digest, context)
        track.log_metrics(note.get("metrics", {}))
        track.log_curve(note.get("curve", ()))
        for kind, names in note.get("files", {}).items():
            track.log_files([out / name for name in names if (out / name).is_file()], kind)
        for label, rows in note.get("traces", {}).items():
            track.log_traces([Trajectory.model_validate(row) for row in rows], label)
    path.unlink()


def _path(out: Path) -> Path:
    return out.with_name(f".{out.name}.untold.json")


def _write(out: Path, note: Mapping[str, Any]) -> None:
    write_whole(_path(out), json.dumps(note, ensure_ascii=False))
