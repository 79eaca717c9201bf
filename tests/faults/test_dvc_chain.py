"""The fault matrix of docs/operations.md: a cycle with DVC, by the command line, cut at each link in every stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from genevolve.tracking import MlflowTracker
from tests.faults.bodies import ONCE, STAGES, wait_for
from tests.faults.chain import Command, Project, command_line, dvc_of, gone, kill, tree
from tests.faults.results import digests

pytestmark = [pytest.mark.slow, pytest.mark.faults]
BUSY = "another run holds DVC's lock"


class Night:
    """One cycle that meets the same fault in one stage after the other, each time started again."""

    def __init__(self, project: Project, fault: str) -> None:
        self.project, self.fault = project, fault
        self.at_work: Command | None = None

    def disturb(self, stage: str) -> None:
        """Bring the night to the middle of a stage, and cut it there."""
        switches = self.project.switches
        switches.hold(stage)
        command = self.at_work or self.project.start()
        self.at_work = None
        work = psutil.Process(switches.met(stage, command.at_work))
        dvc, everything = dvc_of(work.pid), tree(command.pid)
        assert {command.pid, dvc.pid, work.pid} <= {p.pid for p in everything}
        getattr(self, self.fault)(command, dvc, work, stage)
        if self.at_work is None:
            for process in everything:
                wait_for(lambda process=process: gone(process), f"{process} is left behind")

    def stage(self, command: Command, dvc: psutil.Process, work: psutil.Process, stage: str) -> None:
        kill([work])
        self.project.switches.release(stage)
        assert command.end() == 1
        (said,) = command.sentences()
        assert "exited with -9" in said

    def dvc(self, command: Command, dvc: psutil.Process, work: psutil.Process, stage: str) -> None:
        """Its stage lives on; the command waits for it, says what happened, and ends before the next start."""
        kill([dvc])
        self.project.switches.release(stage)
        assert command.end() == 1
        assert gone(work)
        (said,) = command.sentences()
        assert said.endswith("killed (signal 9); the same command goes on from here")

    def flow_and_dvc(self, command: Command, dvc: psutil.Process, work: psutil.Process, stage: str) -> None:
        """The stage lives on; the next start waits for its lock, and takes its result."""
        kill([psutil.Process(command.pid), dvc])
        self.at_work = self.project.start()
        wait_for(lambda: self.second(work), "the second start does not come to the stage")
        assert self.at_work.at_work()
        self.project.switches.release(stage)
        wait_for(lambda: gone(work), "the orphan does not end")

    def second(self, work: psutil.Process) -> bool:
        """Whether the next start has a process of its own for the stage that the orphan is still at."""
        assert self.at_work is not None
        wanted = work.cmdline()[1:]
        return any(command_line(p)[1:] == wanted for p in tree(self.at_work.pid))

    def flow(self, command: Command, dvc: psutil.Process, work: psutil.Process, stage: str) -> None:
        """DVC and its stage live on; the next start waits until they have ended."""
        kill([psutil.Process(command.pid)])
        self.at_work = self.project.start()
        wait_for(lambda: self.at_work is not None and BUSY in self.at_work.said(), "the second start does not wait")
        self.project.switches.release(stage)
        for process in (dvc, work):
            wait_for(lambda process=process: gone(process), "the orphans do not end")

    def all_at_once(self, command: Command, dvc: psutil.Process, work: psutil.Process, stage: str) -> None:
        kill(tree(command.pid))
        self.project.switches.release(stage)


FAULTS = ("stage", "dvc", "flow_and_dvc", "flow", "all_at_once")
MARKED = [pytest.param(f, marks=pytest.mark.xdist_group(f"dvc chain {i % 2}")) for i, f in enumerate(FAULTS)]


@pytest.fixture(scope="module", params=MARKED)
def night(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[Night]:
    fault = request.param
    night = Night(Project(tmp_path_factory.mktemp("dvc") / "disturbed", project), fault)
    yield night
    if night.at_work is not None:
        kill(tree(night.at_work.pid))


def told(night: Night) -> None:
    """MLflow knows of every stage that it finished once, in the cycle's run, and how often it was killed before."""
    track = MlflowTracker(night.project.folder / "mlruns")
    (cycle,) = track._runs("tags.cycle = 'c001' and tags.kind = 'cycle'")
    assert cycle.info.status == "FINISHED"
    runs = track._runs("tags.kind = 'stage'")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {cycle.info.run_id}
    told = Counter((run.info.run_name, run.info.status) for run in runs)
    killed = night.fault in ("stage", "all_at_once")
    stages = ("build", "cold_start@c000", "bench@c000", "evolve@c001", "bench@c001")
    assert told == Counter({(s, status): 1 for s in stages for status in ("FINISHED", "KILLED")[: 1 + killed]})
    assert not [*night.project.folder.glob("build/**/.*.untold-*")]


@pytest.mark.parametrize("stage", [*STAGES, "the end"])
def test_kill_9(night: Night, stage: str, undisturbed_dvc: dict[str, str]) -> None:
    if stage != "the end":
        night.disturb(stage)
    else:
        command = night.at_work or night.project.start()
        assert command.end() == 0, command.said()
        night.at_work = None
        assert digests(night.project.folder) == undisturbed_dvc
        told(night)
    expected = {k for k in ONCE if STAGES.index(k.split()[0]) <= STAGES.index(stage)} if stage in STAGES else set(ONCE)
    calls = night.project.switches.calls()
    assert set(calls.values()) == {1}, calls  # nothing was made, or paid for, twice
    assert set(calls) <= expected
