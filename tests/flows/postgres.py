"""A throw-away PostgreSQL in a temporary folder, on a port of its own, with a password; stopped and removed at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.flows.machine import free_ports

PASSWORD = "s3cret@word"
BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path())
"""Where Debian's packages put the programs."""


class Cluster:
    """`with Cluster("mlflow", "prefect") as cluster`: databases of these names."""

    def __init__(self, *databases: str) -> None:
        self.databases = databases
        (self.port,) = free_ports(1)

    def __enter__(self) -> Cluster:
        if not (BIN / "initdb").exists():
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        pytest.importorskip("psycopg2", reason="its driver is not installed: pip install -e '.[team]'")
        self.folder = Path(
            tempfile.mkdtemp(prefix="genevolve-postgres-", dir="/tmp")
        )  # pytest's own are closed to other users
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:  # it refuses to run as root
            for path in (self.folder, password):
                shutil.chown(path, "postgres")
        self._run("initdb", "-D", "data", "-U", "genevolve", "--auth=scram-sha-256", "--pwfile=password", "-E", "UTF8")
        self.start()
        for name in self.databases:
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "genevolve", name)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        how = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", how, "start")

    def stop(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", "data", "-w", "-m", "fast", "stop")

    def uri(self, database: str, driver: str = "postgresql") -> str:
        return f"{driver}://genevolve:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        subprocess.run(
            [*other, str(BIN / program), *arguments],
            cwd=self.folder,
            env={**os.environ, "PGPASSWORD": PASSWORD},
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
