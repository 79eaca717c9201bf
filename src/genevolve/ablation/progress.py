"""How long an ablation still takes: from the seconds of stages that were really run, never of those found done."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from statistics import median

Sample = tuple[Mapping[str, float], Mapping[str, int]]
"""stage -> its seconds, stage -> its work, of one unit"""


def kind(stage: str) -> str:
    """Return the stage whose pace a stage has: a further bench (`bench-NAME`) that of `bench`."""
    return stage.partition("-")[0]


def pace(samples: Iterable[Sample]) -> dict[str, float]:
    """Return kind of stage -> seconds a trajectory. The median: a run that was cut off and went on says too few seconds."""
    found: dict[str, list[float]] = {}
    for seconds, work in samples:
        for stage, amount in work.items():
            if amount and stage in seconds:
                found.setdefault(kind(stage), []).append(seconds[stage] / amount)
    return {stage: median(values) for stage, values in found.items()}


def seconds_left(
    running: Iterable[tuple[Mapping[str, int], float]],
    waiting: Iterable[Mapping[str, int]],
    paces: Mapping[str, float],
    jobs: int,
) -> float | None:
    """Return the seconds until the last unit ends, each taken up in its order by the first free of `jobs` processes.

    `running`: work (stage -> trajectories) and seconds since the unit began; `waiting`: work. None while nothing is known
    about a stage that is still to do.
    """
    running, waiting = list(running), list(waiting)
    if {kind(stage) for work in (*waiting, *(w for w, _ in running)) for stage in work} - set(paces):
        return None

    def takes(work: Mapping[str, int]) -> float:
        return sum(amount * paces[kind(stage)] for stage, amount in work.items())

    free = [max(0.0, takes(work) - age) for work, age in running]
    free += [0.0] * (jobs - len(free))
    heapq.heapify(free)
    for work in waiting:
        heapq.heapreplace(free, free[0] + takes(work))
    return max(free)
