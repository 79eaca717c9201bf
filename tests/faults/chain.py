"""The chain of processes of a cycle with DVC: worker -> run -> dvc -> stage, as it is on a machine, and how to cut it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.faults import bodies
from tests.faults.bodies import Switches, wait_for
from tests.flows.machine import Machine, with_dvc

HERE = Path(__file__).parent


class Project(Machine):
    """A project with DVC whose stages are those of `bodies`, and its switches."""

    def __init__(self, folder: Path, project: Path, **environment: str) -> None:
        path = [HERE / "site", project / "src", project]
        outside = folder.with_name(f"{folder.name}-outside")  # of a disk that may be full
        places = {"DVC_SITE_CACHE_DIR": str(folder / "site"), bodies.FOLDER: str(outside)}
        more = {"PYTHONPATH": os.pathsep.join(map(str, path)), **places, **environment}
        super().__init__(folder, project, **more)
        with_dvc(self, project, folder / "remote")
        self.switches = Switches(outside)

    def start(self, *arguments: str) -> Command:
        return Command(self, *arguments)


class Command:
    """`genevolve evolve` at work; what it says to stderr is in a file."""

    number = 0

    def __init__(self, project: Project, *arguments: str) -> None:
        Command.number += 1
        self.log = project.switches.folder / f"{Command.number}.log"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "genevolve", "evolve", *arguments],
                cwd=project.folder,
                env=project.environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def at_work(self) -> bool:
        return self.process.poll() is None

    def end(self) -> int:
        return self.process.wait(bodies.PATIENCE)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def sentences(self) -> list[str]:
        """What the command itself said at its end: its last line, and whatever looks like a trace."""
        return [line for line in self.said().splitlines() if line.startswith(("genevolve: ", "Traceback"))]


def line_of(pid: int) -> list[psutil.Process]:
    """Return a process and its ancestors, the nearest first."""
    me = psutil.Process(pid)
    return [me, *me.parents()]


def dvc_of(stage: int) -> psutil.Process:
    """Return the process of `dvc repro` above a stage's."""
    return next(p for p in line_of(stage)[1:] if p.cmdline()[1:4] == ["-m", "dvc", "repro"])


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to all of them, and wait until they are gone."""
    processes = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    for process in processes:
        wait_for(lambda process=process: gone(process), f"{process} does not end")


def gone(process: psutil.Process) -> bool:
    """Return whether a process has ended; one that nobody has waited for yet has, too."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def command_line(process: psutil.Process) -> list[str]:
    """Return a process's command line; nothing of one that has ended, as the flow's short calls of git do between two looks."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started, the youngest last."""
    me = psutil.Process(pid)
    return [me, *me.children(recursive=True)]
