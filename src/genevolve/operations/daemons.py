"""Background processes that outlive the command that started them, and are stopped for certain, they and no others.

A daemon is known by its pid, its start time and a token in its environment, which all that it starts inherits. A pid that
the system has given to somebody else has neither, and is never signalled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from genevolve.errors import GenEvolveError
from genevolve.files import write_whole
from genevolve.operations import FOLDER

if TYPE_CHECKING:
    import psutil

STATE = FOLDER / "serve.json"
SERVER, MLFLOW = "prefect server", "mlflow ui"
TOKEN = "GENEVOLVE_SERVE"
"""Environment variable that marks our processes."""


class ServeError(GenEvolveError):
    """Something that was to run in the background does not."""


class Daemon(BaseModel):
    """One process as it was started."""

    model_config = ConfigDict(frozen=True)
    name: str
    pid: int
    started: float
    """seconds since the epoch, as the system says"""
    token: str
    url: str = ""
    log: Path

    def alive(self) -> bool:
        return self.process() is not None

    def process(self) -> psutil.Process | None:
        """Return the process if it is still the one that was started, else None."""
        import psutil

        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started) < 2 and _token(found) == self.token
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def last_words(self) -> str:
        """Return the last line of the log that says something."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip()[:300] for line in reversed(lines) if any(c.isalpha() for c in line)), "")


class State(BaseModel):
    """Our background processes."""

    model_config = ConfigDict(frozen=True)
    daemons: tuple[Daemon, ...] = ()

    @classmethod
    def read(cls) -> State:
        try:
            return cls.model_validate_json(STATE.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return cls()

    def alive(self, name: str) -> Daemon | None:
        return next((d for d in self.daemons if d.name == name and d.alive()), None)

    def plus(self, daemon: Daemon) -> State:
        """Return, and write down at once, the state with one more daemon. Dead ones stay: what they started may live on."""
        state = State(daemons=(*self.daemons, daemon))
        write_whole(STATE, state.model_dump_json(indent=1) + "\n")
        return state


def spawn(
    name: str, command: Sequence[str], *, token: str, log: Path, environment: Mapping[str, str], url: str = ""
) -> Daemon:
    """Start a command in a session of its own, its output in `log`; return at once."""
    import psutil

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**environment, TOKEN: token},
            start_new_session=True,
            # A shell's background job ignores SIGINT, and so would all it starts: Prefect's worker ends itself by one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    return Daemon(
        name=name, pid=process.pid, started=psutil.Process(process.pid).create_time(), token=token, url=url, log=log
    )


def wait_until(daemon: Daemon, answers: Callable[[], bool], seconds: float) -> None:
    """Wait until a daemon answers; ServeError when it ends before, or takes longer than `seconds`."""
    end = time.monotonic() + seconds
    while not answers():
        if not daemon.alive():
            raise ServeError(
                f"{daemon.name} ended at once: {daemon.last_words() or 'no word'} (all of it: {daemon.log})"
            )
        if time.monotonic() > end:
            raise ServeError(f"{daemon.name} does not answer after {seconds:.0f} s; its log is {daemon.log}")
        time.sleep(0.25)


def stop(daemons: Iterable[Daemon], patience: float = 20.0) -> list[str]:
    """End daemons and all that they started: SIGTERM, after `patience` seconds SIGKILL; return the names that were running.

    psutil checks a process's start time again before it signals it.
    """
    import psutil

    daemons = list(daemons)
    running = [daemon.name for daemon in daemons if daemon.alive()]
    left = marked({daemon.token for daemon in daemons})
    for how in ("terminate", "kill"):
        for process in left:
            try:
                getattr(process, how)()
            except psutil.NoSuchProcess:
                continue
        _, left = psutil.wait_procs(left, timeout=patience)
        left = list({*left, *marked({daemon.token for daemon in daemons})})  # what was started meanwhile
        if not left:
            break
    if left:
        raise ServeError(f"process {', '.join(str(p.pid) for p in left)} does not end")
    return running


def marked(tokens: set[str]) -> list[psutil.Process]:
    """Return the living processes of this user that carry one of the tokens, this one excepted."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and _token(process) in tokens:
                found.append(process)
        except psutil.Error:  # ended meanwhile, or somebody else's
            continue
    return found


def _token(process: psutil.Process) -> str | None:
    return process.environ().get(TOKEN)
