"""One cycle at a time, and the journal: what two starts, a killed one, a failed one and a full disk leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genevolve.errors import StageError
from genevolve.operations import journal
from genevolve.operations.journal import BusyError, is_running, last_nights, lock_file, night, skipped

NUMBERS = {"cycle": "c003", "promoted": True, "after": 0.87, "diff": 0.03, "ci": [0.01, 0.05], "n": 128}
HOLD = """
import sys, time
from pathlib import Path
from genevolve.operations.journal import night
with night(sys.argv[1], Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(300)
"""


def hold(line: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, line, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_night_is_remembered(tmp_path: Path) -> None:
    with night("", tmp_path) as numbers:
        assert is_running("", tmp_path)
        numbers.update(NUMBERS)
    with pytest.raises(StageError), night("", tmp_path):
        raise StageError("evolve@c004: the disk\n is full")
    with pytest.raises(KeyboardInterrupt), night("", tmp_path):
        raise KeyboardInterrupt
    with night("tiny", tmp_path) as numbers:
        numbers.update({**NUMBERS, "promoted": False})
    skipped("", "too late", tmp_path)
    found = last_nights("", 10, tmp_path)
    assert [n.outcome for n in found] == ["skipped", "stopped", "failed", "promoted"]
    assert (found[2].said, found[3].after, found[3].ci) == ("evolve@c004: the disk is full", 0.87, (0.01, 0.05))
    assert [n.outcome for n in last_nights("tiny", 10, tmp_path)] == ["not promoted"]
    assert len(last_nights("", 2, tmp_path)) == 2
    assert not is_running("", tmp_path)
    assert journal.holder("", tmp_path) is None


def test_a_second_start_says_so_and_does_nothing(tmp_path: Path) -> None:
    with hold("", tmp_path) as first:
        with (
            pytest.raises(BusyError, match=rf"a cycle is running here already \(process {first.pid}, since 2"),
            night("", tmp_path),
        ):
            raise AssertionError("two at once")
        with night("tiny", tmp_path):  # another line of cycles is another lock
            pass
        assert is_running("", tmp_path)
        first.kill()
    assert [n.line for n in last_nights("", 9, tmp_path)] == []


@pytest.mark.faults
def test_a_killed_holder_lets_go_and_is_remembered_until_the_next(tmp_path: Path) -> None:
    with hold("", tmp_path) as first:
        os.kill(first.pid, signal.SIGKILL)
    assert not is_running("", tmp_path)
    left = journal.holder("", tmp_path)
    assert left is not None
    assert left.pid == first.pid
    with night("", tmp_path):
        holder = journal.holder("", tmp_path)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert journal.holder("", tmp_path) is None


def test_a_look_at_the_lock_does_not_cost_a_cycle_its_start(tmp_path: Path) -> None:
    looker = "import sys; from pathlib import Path; from genevolve.operations.journal import is_running\n"
    loop = f"{looker}print('on', flush=True)\nwhile True: is_running('', Path(sys.argv[1]))"
    with night("", tmp_path):
        pass
    with subprocess.Popen([sys.executable, "-c", loop, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(50):
            with night("", tmp_path):
                pass
        process.kill()


@pytest.mark.faults
def test_a_damaged_journal_costs_a_line_and_no_more(tmp_path: Path) -> None:
    with night("", tmp_path) as numbers:
        numbers.update(NUMBERS)
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write('{"half": \n\x00\xff\n')
    lock_file("", tmp_path).write_text("{not json")
    assert [n.cycle for n in last_nights("", 5, tmp_path)] == ["c003"]
    assert journal.holder("", tmp_path) is None


@pytest.mark.faults
def test_a_journal_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(StageError, match="its own"), night("", tmp_path):
        raise StageError("its own")
