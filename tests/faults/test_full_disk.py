"""The fault matrix of docs/operations.md: the disk under a project with DVC is filled to its last byte in every stage."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from genevolve.tracking import SWITCH_VARIABLE
from tests.faults.bodies import ONCE, STAGES
from tests.faults.chain import Project
from tests.faults.results import digests

pytestmark = [pytest.mark.slow, pytest.mark.faults]
FULL = "the disk is full; make room, and the same command goes on from here"


@pytest.fixture
def small(tmp_path: Path, project: Path) -> Iterator[Project]:
    """A project on a disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk can be mounted by root alone")
    try:
        yield Project(disk, project, **{SWITCH_VARIABLE: "off"})
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk to its last byte; return the file that does."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    stream.write(b"0" * size)
            except OSError:  # this size no longer fits
                continue
    assert os.statvfs(disk).f_bavail == 0
    return ballast


def test_a_full_disk_in_every_stage(small: Project, undisturbed_dvc: dict[str, str]) -> None:
    for stage in STAGES:
        small.switches.hold(stage)
        command = small.start()
        small.switches.met(stage, command.at_work)
        ballast = fill(small.folder)
        small.switches.release(stage)
        assert command.end() == 1, command.said()
        said = [line for line in command.said().splitlines() if line.startswith("genevolve: ")]
        assert said[-1].endswith(FULL), command.said()
        assert "Traceback" not in command.said()
        ballast.unlink()
    command = small.start()
    assert command.end() == 0, command.said()
    assert digests(small.folder) == undisturbed_dvc
    # The record in hand met the full disk: it was asked for, could not be kept, and was asked for again.
    assert small.switches.calls() - ONCE == {f"{stage} 3": 1 for stage in STAGES}
