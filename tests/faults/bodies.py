"""Toy stages that can be met in the middle: six records each, every one "paid" for once, and a place to wait at.

All is steered by files in $GENEVOLVE_FAULTS: `hold-STAGE` makes a stage wait in its middle, where it leaves `at-STAGE` with its
process's number, until that file is gone; `full-STAGE` makes its disk full there; `calls` has a line for every record made.
"""

from __future__ import annotations

import errno
import os
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

from genevolve.files import write_whole
from tests.flows import toys

FOLDER = "GENEVOLVE_FAULTS"
STAGES = ("build", "cold_start", "bench_cold", "evolve", "bench")
RECORDS = 6
PATIENCE = 600.0
"""Seconds that anything here is waited for: only a test that fails waits so long."""


def wait_for(what: Any, why: str) -> None:
    """Wait until `what()` is true; AssertionError with `why` when it never is."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.01)


class Switches:
    """The files, as the test sees them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def hold(self, stage: str) -> None:
        (self.folder / f"at-{stage}").unlink(missing_ok=True)
        (self.folder / f"hold-{stage}").touch()

    def release(self, stage: str) -> None:
        (self.folder / f"hold-{stage}").unlink(missing_ok=True)

    def fill(self, stage: str, full: bool = True) -> None:
        path = self.folder / f"full-{stage}"
        path.touch() if full else path.unlink()

    def arrived(self, stage: str) -> bool:
        return (self.folder / f"at-{stage}").exists()

    def met(self, stage: str, alive: Any = lambda: True) -> int:
        """Wait until the stage is in its middle; return its process's number."""
        wait_for(lambda: self.arrived(stage) or not alive(), f"{stage} was never in its middle")
        assert self.arrived(stage), f"the run ended before {stage}"
        return int((self.folder / f"at-{stage}").read_text())

    def calls(self) -> Counter[str]:
        """How often each record was made."""
        path = self.folder / "calls"
        return Counter(path.read_text().splitlines() if path.exists() else ())


ONCE = Counter({f"{stage} {i}": 1 for stage in STAGES for i in range(RECORDS)})
"""What `calls` says of a cycle in which nothing was made twice."""


def _records(stage: str, out: Path) -> None:
    switches = Switches(Path(os.environ[FOLDER]))
    for i in range(RECORDS):
        if i == RECORDS // 2:
            _middle(stage, switches.folder, out)
        path = out / "records" / f"{i}"
        if not path.exists():
            with (switches.folder / "calls").open("a") as calls:
                calls.write(f"{stage} {i}\n")
            write_whole(path, f"{stage} {i}\n" * 200)


def _middle(stage: str, folder: Path, out: Path) -> None:
    if (folder / f"hold-{stage}").exists():
        write_whole(folder / f"at-{stage}", str(os.getpid()))
        wait_for(lambda: not (folder / f"hold-{stage}").exists(), "nobody let go")
    if (folder / f"full-{stage}").exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "records" / f"{RECORDS // 2}"))


def build(settings: Any, *, out: Path) -> dict[str, Any]:
    _records("build", out)
    return toys.build(settings, out=out)


def cold_start(settings: Any, *, out: Path, **inputs: Path) -> dict[str, Any]:
    _records("cold_start", out)
    return toys.cold_start(settings, out=out, **inputs)


def evolve(settings: Any, *, out: Path, **inputs: Path) -> dict[str, Any]:
    _records("evolve", out)
    return toys.evolve(settings, out=out, **inputs)


def bench(settings: Any, *, baseline: Path | None, out: Path, **inputs: Path) -> dict[str, Any]:
    _records("bench_cold" if baseline is None else "bench", out)
    return toys.bench(settings, baseline=baseline, out=out, **inputs)


def modules() -> dict[str, types.ModuleType]:
    return toys.modules(build=build, cold_start=cold_start, evolve=evolve, bench=bench)
