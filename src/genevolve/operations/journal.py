"""One cycle at a time on a line of work, and a journal of how each one ended, readable when every server is down."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from genevolve.errors import GenEvolveError
from genevolve.operations import FOLDER

Outcome = Literal["promoted", "not promoted", "failed", "skipped", "stopped"]


class BusyError(GenEvolveError):
    """Another cycle of the same line is at work."""


class Night(BaseModel):
    """One line of the journal."""

    model_config = ConfigDict(frozen=True)
    line: str
    began: datetime
    ended: datetime
    outcome: Outcome
    said: str = ""
    """the error's sentence, or why it was skipped"""
    cycle: str = ""
    """empty where the cycle did not come to its end"""
    after: float | None = None
    """KScore on the report half"""
    diff: float | None = None
    ci: tuple[float, float] | None = None
    run: str = ""
    """Prefect's id of the run; empty for a plain one"""


class Running(BaseModel):
    """Who holds the lock, or held it when it was killed."""

    model_config = ConfigDict(frozen=True)
    pid: int
    began: datetime
    run: str = ""


def now() -> datetime:
    return datetime.now(UTC)


def lock_file(line: str, folder: Path = FOLDER) -> Path:
    return folder / (f"cycle-{line}.lock" if line else "cycle.lock")


@contextmanager
def night(line: str, folder: Path = FOLDER, run: str = "") -> Iterator[dict[str, Any]]:
    """Hold the line's lock and note in the journal how the cycle ended; yield a dict for its numbers.

    `run` is Prefect's id of the run. Raises BusyError, with no line in the journal, where another process holds the lock. The
    system lets go of the lock of a killed process; the file then still says who that was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began, numbers = now(), dict[str, Any]()
    with lock_file(line, folder).open("a+", encoding="utf-8") as lock:
        if not _take(lock):
            raise BusyError(_busy(line, holder(line, folder)))
        _say(lock, Running(pid=os.getpid(), began=began, run=run).model_dump_json())
        try:
            yield numbers
        except BaseException as error:
            stopped = not isinstance(error, Exception)  # Ctrl-C, or `make stop`
            _note(
                line,
                began,
                "stopped" if stopped else "failed",
                " ".join(str(error).split())[:500],
                {"run": run},
                folder,
            )
            raise
        else:
            _note(
                line,
                began,
                "promoted" if numbers.get("promoted") else "not promoted",
                "",
                {**numbers, "run": run},
                folder,
            )
        finally:
            with suppress(OSError):  # a full disk must not hide the error that it caused
                _say(lock, "")


def skipped(line: str, why: str, folder: Path = FOLDER) -> None:
    """Note that a cycle was not even begun."""
    folder.mkdir(parents=True, exist_ok=True)
    _note(line, now(), "skipped", why, {}, folder)


def holder(line: str, folder: Path = FOLDER) -> Running | None:
    """Return what the lock file says: of the running cycle, or of one that was killed; None after a proper end."""
    try:
        return Running.model_validate_json(lock_file(line, folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_running(line: str, folder: Path = FOLDER) -> bool:
    """Return whether a living process holds the line's lock."""
    try:
        with lock_file(line, folder).open("r", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def runs(folder: Path = FOLDER, n: int = 20) -> set[str]:
    """Return Prefect's ids of the runs of this machine, at work, killed or ended: the last n of every line."""
    lines = {path.stem.removeprefix("cycle").removeprefix("-") for path in folder.glob("cycle*.lock")}
    held = {who.run for line in lines if (who := holder(line, folder)) is not None}
    return (held | {entry.run for line in lines for entry in last_nights(line, n, folder)}) - {""}


def last_nights(line: str, n: int, folder: Path = FOLDER) -> list[Night]:
    """Return the line's last n nights, the latest first; a line that cannot be read is passed over."""
    try:
        lines = (folder / "journal.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[Night] = []
    for text in reversed(lines):
        try:
            entry = Night.model_validate_json(text)
        except ValidationError:
            continue
        if entry.line == line:
            found.append(entry)
        if len(found) == n:
            break
    return found


def _busy(line: str, who: Running | None) -> str:
    what = f"a cycle of the line '{line}'" if line else "a cycle"
    since = f" (process {who.pid}, since {who.began:%Y-%m-%d %H:%M:%S} UTC)" if who else ""
    return f"{what} is running here already{since}; two would disturb each other: wait for it, or stop it"


def _take(lock: Any) -> bool:
    for attempt in range(10):  # `genevolve status` holds it for an instant, to look
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt < 9:
                time.sleep(0.05)
    return False


def _say(lock: Any, text: str) -> None:
    lock.truncate(0)
    lock.write(text)
    lock.flush()


def _note(line: str, began: datetime, outcome: str, said: str, numbers: Mapping[str, Any], folder: Path) -> None:
    assert outcome in get_args(Outcome)
    kept = {k: numbers[k] for k in ("cycle", "after", "diff", "ci", "run") if numbers.get(k) is not None}
    entry = Night.model_validate(
        {"line": line, "began": began, "ended": now(), "outcome": outcome, "said": said, **kept}
    )
    # One write of one line: O_APPEND keeps two writers apart. A full disk must not hide the error that it caused.
    with suppress(OSError), (folder / "journal.jsonl").open("ab", buffering=0) as journal:
        journal.write((json.dumps(entry.model_dump(mode="json"), ensure_ascii=False) + "\n").encode())
