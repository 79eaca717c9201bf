"""Workers end with the process they work for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

POOL = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from genevolve.processes import end_with_parent

def work(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        pool.submit(work, sys.argv[1]).result()
"""


def test_a_worker_at_work_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script, noted = tmp_path / "pool.py", tmp_path / "pid"
    script.write_text(POOL)
    parent = subprocess.Popen([sys.executable, str(script), str(noted)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (noted.exists() and noted.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker = int(noted.read_text())
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    while running(worker):
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.05)


def running(pid: int) -> bool:
    """A dead child of a container's first process may stay a zombie for ever."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
