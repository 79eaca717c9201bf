"""What a stage has to tell MLflow: noted beside its folder while it works, told when it is over, then removed.

The stage's own process tells it when it is run by hand, the flow when it had DVC run the stage. Opening MLflow costs a
process about two seconds, which a night's stages save thereby. And a database that is locked when hours of training end
takes nothing along: the note lies there until somebody tells it.

A note is a folder `.NAME.untold-TIME`, one for each time the stage was begun: `note.json` and the files to show.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from genevolve.files import read_object, write_whole
from genevolve.records import Trajectory
from genevolve.registry import PARENT_VARIABLE
from genevolve.tracking import NullTracker, Tracker, tracker

LATER_VARIABLE = "GENEVOLVE_TELL_LATER"
"""Set for a stage whose caller tells what it leaves (flows/dvc.py)."""
_MARK = ".untold-"


class Note:
    """What one run of a stage has to tell. Its body adds to `content`: `metrics`, `curve`, `dataset` (folder, digest,
    context), `traces` ({label: [Trajectory as JSON]})."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    def keep(self, kind: str, paths: Iterable[Path]) -> None:
        """Copy files to show: the stage's folder may be another's by the time that they are."""
        for path in paths:
            (self.folder / kind).mkdir(exist_ok=True)
            shutil.copyfile(path, self.folder / kind / path.name)

    def write(self, **more: Any) -> None:
        self.content |= more
        write_whole(self.folder / "note.json", json.dumps(self.content, ensure_ascii=False))


@contextmanager
def alone(out: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of the stage that fills `out`: an orphan of a killed run may still be writing.

    Without `wait` raises BlockingIOError where somebody else holds it.
    """
    with out.with_name(f".{out.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextmanager
def noted(out: Path, title: str, params: Mapping[str, Any], fingerprint: str, off: bool = False) -> Iterator[Note]:
    """Note that a stage begins, and how it ended: with an error here, else when `.done.json` says so (`_ending`).

    `off`: MLflow is switched off, and will not be told.
    """
    began = time.time()
    content = {"id": uuid.uuid4().hex, "title": title, "params": dict(params), "fingerprint": fingerprint, "off": off}
    content |= {"parent": os.environ.get(PARENT_VARIABLE), "began": began}
    note = Note(out.with_name(f".{out.name}{_MARK}{began:.3f}"), content)
    note.folder.mkdir(parents=True)
    note.write()
    try:
        yield note
    except BaseException:
        with suppress(OSError):  # on a full disk it is told as killed
            note.write(status="FAILED", ended=time.time())
        raise


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


def tell_when_over(out: Path, track: Tracker) -> None:
    """Tell what the stage that fills `out` left to be told, if anything; nothing while somebody is at work there."""
    if _notes(out):
        with suppress(BlockingIOError), alone(out, wait=False):
            tell(out, track)


def tell_all(root: Path, track: Tracker) -> None:
    """Tell what the stages of a workspace left to be told, each in the cycle's run that it belongs to."""
    for folder in sorted({*root.glob(f".*{_MARK}*"), *root.glob(f"*/.*{_MARK}*")}):
        tell_when_over(folder.with_name(folder.name[1:].partition(_MARK)[0]), track)


def tell(out: Path, track: Tracker) -> None:
    """Tell all notes of a stage and remove them. The caller holds the stage's lock: what has not ended was killed.

    Cut off in the middle, it goes on in the same run of MLflow. (Traces are written by MLflow itself in the background: a
    kill within a second or two loses some of them, the records are in the stage's folder.) A note that cannot be read, of
    another version of this code, is put aside with a sentence; one that was made for MLflow stays while MLflow is switched
    off. Raises what MLflow raises.
    """
    for folder in _notes(out):
        if not (folder / "note.json").exists():  # killed before it had written it
            shutil.rmtree(folder)
            continue
        try:
            note = json.loads((folder / "note.json").read_text(encoding="utf-8"))
            if isinstance(track, NullTracker) and not note["off"]:
                continue
            over = _ending(out, note, folder)
            run = track.stage(note["title"], note["params"], parent=note["parent"], note=note["id"], **over)
            content = _content(note) if over["status"] == "FINISHED" else None
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            aside = folder.with_name(folder.name.replace(_MARK, ".untellable-"))
            folder.replace(aside)
            print(f"MLflow is not told of {out}: {aside} cannot be read ({e!r})"[:500], file=sys.stderr, flush=True)
            continue
        if not note["off"]:
            with run:
                if content is not None:
                    _tell_content(content, folder, track)
        (folder / "note.json").unlink()  # first: without it nothing is told again
        shutil.rmtree(folder)


def _content(note: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a finished stage has to tell, read to its end before anything of it is told."""
    dataset = note.get("dataset")
    if dataset is not None:
        place, digest, context = dataset
        dataset = Path(place), digest, context
    traces = {k: [Trajectory.model_validate(t) for t in rows] for k, rows in note["traces"].items()}
    return {"dataset": dataset, "traces": traces, "metrics": note["metrics"], "curve": note["curve"]}


def _tell_content(content: Mapping[str, Any], folder: Path, track: Tracker) -> None:
    if content["dataset"] is not None:
        track.log_dataset(*content["dataset"])
    track.log_metrics(content["metrics"])
    track.log_curve(content["curve"])
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        track.log_files(sorted(kind.iterdir()), kind.name)
    if not (folder / "traced").exists():  # told twice they would stand there twice; all else is the same again
        for label, trajectories in content["traces"].items():
            track.log_traces(trajectories, label)
        (folder / "traced").touch()


def _ending(out: Path, note: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return how a noted run ended, when it began and when it ended: a killed one when it last wrote anything."""
    status, ended = note.get("status"), note.get("ended")
    if status is None:
        keys = ("fingerprint", "digest")
        done = read_object(out.with_name(f".{out.name}.done.json"))
        finished = "digest" in note and [note[key] for key in keys] == [done.get(key) for key in keys]
        status = "FINISHED" if finished else "KILLED"
    if ended is None:
        written = [folder / "note.json", *out.with_name(f".{out.name}.partial").rglob("*")]
        ended = max(path.stat().st_mtime for path in written if path.exists())
    return {"status": status, "began": note["began"], "ended": ended}


def _notes(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f".{out.name}{_MARK}*"))
