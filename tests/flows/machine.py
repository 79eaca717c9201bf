"""A project in a temporary folder with toy stages, and its own Prefect server, worker and MLflow on free ports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from genevolve.operations.daemons import TOKEN, State
from tests.flows import toys

WAIT = 900
"""Seconds a command may take; the machine may be busy."""


def free_ports(n: int) -> list[int]:
    """Return ports that nobody listens on; held together, so that they differ."""
    sockets = [socket.socket() for _ in range(n)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


class Machine:
    """One checkout on one machine: commands run in it as a user would give them."""

    def __init__(self, folder: Path, project: Path, **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "assets").exists() or toys.lay_out(folder, project)
        for name in ("flows", "src"):
            (folder / name).exists() or (folder / name).symlink_to(project / name)
        shutil.copy(project / "prefect.yaml", folder / "prefect.yaml")
        path = [project / "tests" / "flows" / "toy_site", project / "src", project]
        home = folder / "home"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_API")},
            "HOME": str(home),
            "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "NO_COLOR": "1",
            **environment,
        }
        home.mkdir(exist_ok=True)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT,
        )

    def ok(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        found = sorted((self.folder / ".genevolve" / "logs").glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in found)

    def state(self) -> State:
        path = self.folder / ".genevolve" / "serve.json"
        return State.model_validate_json(path.read_text()) if path.exists() else State()

    def left(self) -> list[psutil.Process]:
        """Processes of our daemons or their children that work in this folder."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = TOKEN in process.environ() and Path(process.cwd()).is_relative_to(self.folder)
            except (psutil.Error, OSError):
                continue
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found
