"""Background processes: found again, waited for, stopped with all that they started; a stranger is never signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from genevolve.operations.daemons import TOKEN, Daemon, ServeError, State, marked, spawn, stop, wait_until

SLEEP = "import time; time.sleep(300)"
PARENT = f"""
import subprocess, sys, signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print(child.pid, flush=True)
signal.pause()
"""


def start(folder: Path, code: str) -> Daemon:
    return spawn(
        "toy",
        [sys.executable, "-c", code],
        token=uuid.uuid4().hex,
        log=folder / "logs" / "toy.log",
        environment=dict(os.environ),
    )


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[Daemon, int]]:
    """A daemon and the pid of its child, which is in a session of its own."""
    daemon = start(tmp_path, PARENT)
    _wait(daemon)
    yield daemon, int(daemon.log.read_text())
    stop([daemon], 5)


def _wait(daemon: Daemon) -> None:
    wait_until(daemon, lambda: daemon.log.read_text().strip().isdigit(), 60)


def test_stop_ends_a_daemon_and_what_it_started(family: tuple[Daemon, int]) -> None:
    daemon, child = family
    assert daemon.alive()
    assert stop([daemon], 10) == ["toy"]
    assert not daemon.alive()
    assert not psutil.pid_exists(child)
    assert stop([daemon], 10) == []


@pytest.mark.faults
def test_the_orphan_of_a_killed_daemon_is_stopped(family: tuple[Daemon, int]) -> None:
    daemon, child = family
    os.kill(daemon.pid, signal.SIGKILL)
    os.waitpid(daemon.pid, 0)
    assert psutil.pid_exists(child)
    assert stop([daemon], 10) == []
    assert not psutil.pid_exists(child)


@pytest.mark.faults
def test_one_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(300)"
    daemon = start(tmp_path, deaf)
    _wait(daemon)
    assert stop([daemon], 0.5) == ["toy"]
    assert not daemon.alive()


@pytest.mark.faults
@pytest.mark.parametrize("difference", ["start time", "token"])
def test_a_pid_that_belongs_to_somebody_else_now_is_left_alone(tmp_path: Path, difference: str) -> None:
    token = uuid.uuid4().hex
    stranger_token = token if difference == "start time" else uuid.uuid4().hex
    with subprocess.Popen([sys.executable, "-c", SLEEP], env={**os.environ, TOKEN: stranger_token}) as stranger:
        began = psutil.Process(stranger.pid).create_time()
        recorded = began - 3600 if difference == "start time" else began
        daemon = Daemon(name="toy", pid=stranger.pid, started=recorded, token=token, log=tmp_path / "log")
        assert not daemon.alive()
        if difference == "token":
            assert stop([daemon], 1) == []
            assert stranger.poll() is None
        stranger.kill()


def test_a_daemon_that_ends_at_once_is_one_sentence_with_its_last_words(tmp_path: Path) -> None:
    daemon = start(tmp_path, "raise SystemExit('the port is taken')")
    with pytest.raises(ServeError, match=r"toy ended at once: the port is taken \(all of it: .*toy.log\)"):
        wait_until(daemon, lambda: False, 60)


def test_one_that_never_answers_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    daemon = start(tmp_path, SLEEP)
    began = time.monotonic()
    with pytest.raises(ServeError, match="does not answer after 0 s"):
        wait_until(daemon, lambda: False, 0.1)
    assert time.monotonic() - began < 30
    stop([daemon], 5)


def test_the_state_is_written_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert State.read() == State()
    daemon = start(tmp_path, SLEEP)
    state = State().plus(daemon)
    assert State.read() == state
    assert state.alive("toy") == daemon
    assert [p.pid for p in marked({daemon.token})] == [daemon.pid]
    stop([daemon], 5)
    assert State.read().alive("toy") is None
    Path(".genevolve/serve.json").write_text("{half")
    assert State.read() == State()
