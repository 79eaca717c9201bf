"""One generator in a process of its own: a GPU each, killed when it takes too long, started anew when it dies (ours)."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from genevolve.errors import GenEvolveError
from genevolve.render.base import Renderer, RenderError, RenderJob


class WorkerLost(Exception):
    """A worker's process is gone, and the program it drew with it; `start` makes a new one."""


class Worker:
    """The parent's side. One caller at a time; methods block."""

    def __init__(self, make: Callable[[], Renderer]) -> None:
        """`make` is called in the new process: it must be picklable. A renderer's `load`, if it has one, is called too."""
        self._make = make
        self._process: multiprocessing.process.BaseProcess | None = None
        self._wire: Connection | None = None

    def start(self) -> None:
        """Start the process and wait until its generator is ready; raise RenderError, one sentence, when it never is."""
        self.stop()
        context = multiprocessing.get_context("spawn")
        wire, theirs = context.Pipe()
        self._wire = wire  # `stop`, called by another thread, takes the attribute away; this name stays
        self._process = context.Process(target=_serve, args=(self._make, theirs), daemon=True)
        self._process.start()
        theirs.close()  # else the end of the process would not be the end of the pipe
        try:
            said = wire.recv()
        except (EOFError, OSError):
            said = "the process that loads it died, most likely of too little memory"
        if said is not None:
            self.stop()
            raise RenderError(f"The generator cannot start: {said}")

    def render(self, job: RenderJob, seconds: float) -> bytes | None:
        """Return the job's PNG, or None where the generator drew nothing; raise WorkerLost."""
        wire = self._wire
        if wire is None:
            raise WorkerLost("it is not running")
        try:
            wire.send(job)
            if not wire.poll(seconds):
                raise WorkerLost(f"a program took longer than {seconds:g} s")
            picture, fault = wire.recv()
        except (EOFError, OSError):
            self.stop()
            raise WorkerLost("its process died") from None
        except WorkerLost:
            self.stop()
            raise
        if fault:
            self.stop()
            raise WorkerLost(fault)
        return picture  # type: ignore[no-any-return]

    def stop(self) -> None:
        """End the process, whatever it does."""
        process, wire, self._process, self._wire = self._process, self._wire, None, None
        if process is not None:
            process.kill()
            process.join()
        if wire is not None:
            wire.close()


def _serve(make: Callable[[], Renderer], wire: Connection) -> None:
    """Draw what comes down the pipe until the parent closes it, also by dying."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    try:
        renderer = make()
        getattr(renderer, "load", lambda: None)()
    except Exception as e:
        wire.send(str(e) if isinstance(e, GenEvolveError) else f"{type(e).__name__}: {e}")
        return
    wire.send(None)
    while True:
        try:
            job = wire.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (renderer.render([job])[0], "")
        except Exception as e:
            answer = (None, str(e) or type(e).__name__)
        wire.send(answer)
