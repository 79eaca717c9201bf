"""A clone of the last commit with servers of its own: what the benchmarks of whole nights share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from genevolve.operations.addresses import call, listens

NIGHTLY = "evolution-cycle/nightly"
STRANGE = ("PREFECT_API", "PREFECT_HOME", "MLFLOW_TRACKING", "MLFLOW_REGISTRY", "GENEVOLVE_")
"""Begin the names of variables that would lead a clone to somebody else's servers and settings."""


class Clone:
    """A checkout in a folder, and the environment of all that runs in it: free ports, no settings from outside."""

    def __init__(self, folder: Path, probe: Path | None = None) -> None:
        """Clone the repository of the working directory, unless `folder` is there; `probe`: where benchmarks/probe writes."""
        self.folder = folder.absolute()
        if not folder.exists():
            subprocess.run(["git", "clone", "--quiet", str(Path.cwd()), str(folder)], check=True)
        path = [self.folder / "src", self.folder]
        if probe:
            path.insert(0, self.folder / "benchmarks" / "probe")
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(STRANGE)},
            "GENEVOLVE_PREFECT_PORT": free_port(),
            "GENEVOLVE_MLFLOW_PORT": free_port(),
            **({"GENEVOLVE_PROBE": str(probe.absolute())} if probe else {}),
            "PREFECT_PROFILES_PATH": str(self.folder / ".genevolve" / "profiles.toml"),
            "PYTHONPATH": os.pathsep.join(map(str, path)),
        }

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.environment['GENEVOLVE_PREFECT_PORT']}/api"

    @property
    def pages(self) -> str:
        """Where MLflow's pages are."""
        return f"http://127.0.0.1:{self.environment['GENEVOLVE_MLFLOW_PORT']}"

    def run(self, *command: str) -> None:
        """Run `python -m COMMAND` there as a user would; end this process when it fails."""
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}")

    def ask(self, path: str, body: dict[str, Any] | None = None, seconds: float = 120) -> Any:
        """Return what the clone's Prefect server answers; a busy one is asked again, one that is gone ends this process."""
        end = time.monotonic() + seconds
        while (said := call(f"{self.api}/{path}", body, seconds=30)) is None:
            if time.monotonic() > end:
                sys.exit(f"{self.api}/{path} does not answer; its log is below {self.folder / '.genevolve' / 'logs'}")
            time.sleep(2)
        return said

    def worker_log(self) -> str:
        """Return the end of what the worker and its runs said."""
        logs = self.folder / ".genevolve" / "logs"
        runs = sorted(logs.glob("run-*.log"), key=lambda path: path.stat().st_mtime)
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in [*logs.glob("worker*.log"), *runs[-1:]])

    def left(self) -> list[str]:
        """Return what still runs in the clone or listens at its ports."""
        import psutil

        found = []
        for process in psutil.process_iter():
            try:
                ours = process.pid != os.getpid() and Path(process.cwd()).is_relative_to(self.folder)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"process {process.pid}: {' '.join(process.cmdline())[:200]}")
            except (psutil.Error, OSError):  # ended meanwhile, or somebody else's
                continue
        return found + [f"a listener at {url}" for url in (self.api, self.pages) if listens(url)]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return str(held.getsockname()[1])
