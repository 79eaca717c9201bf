"""Runs an ablation: a cold start per seed, then evolve and bench per arm and seed, side by side, each found again after
a crash.

Every unit is one process's work and ends in a file: a cold start in its stage folder, a run in its result JSON. What is
there is not done again; what was cut off goes on where the stages can (stages/runner.py).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genevolve.ablation import results as files
from genevolve.ablation.arms import Arm, Table, arm_settings, rollouts, start_settings
from genevolve.ablation.progress import Sample, pace, seconds_left
from genevolve.errors import GenEvolveError, StageError
from genevolve.processes import end_with_parent
from genevolve.services.cache import BudgetError
from genevolve.settings import Settings
from genevolve.stages.runner import Job, run_job
from genevolve.tracking import Tracker, tracker
from genevolve.training.checkpoint import base_folder
from genevolve.workspace import folder_digest

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} rollouts [{elapsed}{postfix}]"
"""Without tqdm's own estimate: its rate knows neither what is under way nor that a stage has its own pace."""
TICK = 15.0
"""Seconds between two looks at the clock of the bar; a run takes minutes."""


@dataclass(frozen=True)
class Place:
    """The folders of an ablation."""

    dataset: Path
    work: Path
    """stage folders of the arms"""
    starts: Path
    """stage folders of the cold starts; `--quick` shares them with the whole ablation"""
    out: Path
    """result files"""
    benchmarks: Mapping[str, Path] = field(default_factory=dict)
    """further benches, as Table has them"""

    def start(self, seed: int) -> Path:
        return self.starts / f"cold-s{seed}" / "trained"


@dataclass(frozen=True)
class Stamp:
    """What every result of one command says about where it was made."""

    commit: str
    machine: str
    dataset: str
    """sha256 of the dataset folder"""
    base: str
    """sha256 of the base's weights and of its tokenizer"""


@dataclass(frozen=True)
class Unit:
    """One process's work: the cold start of a seed (`arm` None), or one arm with one seed."""

    seed: int
    settings: Settings
    name: str = ""
    arm: Arm | None = None

    @property
    def title(self) -> str:
        return f"{self.name}-s{self.seed}" if self.arm else f"cold-s{self.seed}"

    def stages(self, place: Place) -> dict[str, Job]:
        """Return the unit's stages in their order, by name; a further bench is `bench-NAME`."""
        start, folder = place.start(self.seed), place.work / self.title

        def job(stage: str, out: Path, report: Path, end: str = "", **inputs: Path | None) -> Job:
            return Job(stage, self.title + end, self.settings, {"dataset": place.dataset, **inputs}, out, report)

        if self.arm is None:
            base = base_folder(self.settings.policy.base)
            return {"cold_start": job("cold_start", start, start.with_name("cold_start.json"), base=base)}
        policy = base_folder(self.settings.policy.base) if self.arm.policy == "base" else start / "policy"
        found = {}
        if self.arm.policy == "evolved":
            found["evolve"] = job("evolve", folder / "trained", folder / "evolve.json", parent=policy)
            policy = folder / "trained" / "policy"
        for name, dataset in _benches(place).items():
            inputs = {"dataset": dataset, "policy": policy, "baseline": None}
            found[name] = job("bench", folder / name, folder / f"{name}.json", name.removeprefix("bench"), **inputs)
        return found

    def work(self, requests: Mapping[str, int]) -> dict[str, int]:
        """Return stage -> about how many trajectories it plays or trains on: the measure of the progress bar."""
        if self.arm is None:
            return {"cold_start": round(requests["sft"] * self.settings.cold_start.epochs)}
        b = self.settings.bench
        played = {name: min(n, b.requests or n) * b.draws for name, n in requests.items() if name.startswith("bench")}
        if self.arm.policy != "evolved":
            return played
        c = self.settings.cycle
        looks = 1 + -(-c.steps // c.validate_every)
        return {"evolve": rollouts(self.settings) + looks * c.validation_k * requests["validation"], **played}


def _benches(place: Place) -> dict[str, Path]:
    return {"bench": place.dataset, **{f"bench-{name}": folder for name, folder in place.benchmarks.items()}}


def plan(
    table: Table,
    arms: Mapping[str, Arm],
    place: Place,
    stamp: Stamp,
    *,
    profile: str | None,
    seeds: Sequence[int],
    per_arm: bool = False,
    quick: bool = False,
) -> list[Unit]:
    """Return the units that are still to do, core arms first, each seed's cold start before the arms that need it.

    `per_arm`: an arm takes no more of `seeds` than its entry says. Raises ResultError for a result that was made with
    other settings or data.
    """
    runs = []
    for core in (True, False):
        for at, seed in enumerate(seeds):
            for name, arm in arms.items():
                if arm.core is core and not (per_arm and at >= arm.seeds):
                    unit = Unit(seed, arm_settings(table, arm, profile, seed, quick), name, arm)
                    if not _done(unit, place, stamp):
                        runs.append(unit)
    units: list[Unit] = []
    started: set[int] = set()
    for unit in runs:
        if unit.arm and unit.arm.policy != "base" and unit.seed not in started:
            started.add(unit.seed)
            units.append(Unit(unit.seed, start_settings(table, profile, unit.seed)))
        units.append(unit)
    return units


def _done(unit: Unit, place: Place, stamp: Stamp) -> bool:
    path = files.result_path(place.out, unit.name, unit.seed)
    if not path.exists():
        return False
    if files.read_result(path).recipe != files.recipe_of(unit.settings, stamp.dataset, stamp.base):
        raise files.ResultError(
            f"{path} was made with other settings, data or base than now: delete it, or take another --out folder."
        )
    return True


def run(units: Sequence[Unit], place: Place, stamp: Stamp, jobs: int | None = None) -> dict[str, str]:
    """Run the units, `jobs` at a time (None: by the cores), no more than there are runs; return title -> sentence of those
    that failed.

    A failed arm stops no other; a failed cold start leaves out the arms that need it. Where the command's budget is used
    up, nothing new begins, and its BudgetError is raised when what is under way has ended.
    """
    from tqdm import tqdm

    from genevolve.dataset.public import load_requests

    sizes = {name: len(load_requests(folder, "bench")) for name, folder in _benches(place).items()}
    sizes["validation"] = len(load_requests(place.dataset, "validation"))
    sizes["sft"] = units[0].settings.dataset.sft
    jobs = min(jobs or len(os.sched_getaffinity(0)), sum(u.arm is not None for u in units))
    work = {u.title: work_left(u, place, sizes) for u in units}
    earlier, samples, began = _earlier(units, place, sizes), list[Sample](), dict[str, float]()
    failed: dict[str, str] = {}
    spent: BudgetError | None = None
    waiting, running = list(units), dict[Future[dict[str, float]], Unit]()
    unstarted = {u.seed for u in units if u.arm is None}
    total = sum(sum(stages.values()) for stages in work.values())
    bar = tqdm(total=total, desc="ablate", bar_format=BAR)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _quiet) as pool, bar:
        while waiting or running:
            for unit in [u for u in waiting if not _blocked(u, unstarted)][: jobs - len(running)]:
                waiting.remove(unit)
                running[pool.submit(_work, unit, place, stamp)] = unit
                began[unit.title] = time.monotonic()
            ages = [(work[u.title], time.monotonic() - began[u.title]) for u in running.values()]
            left = seconds_left(ages, [work[u.title] for u in waiting], pace(earlier) | pace(samples), jobs)
            said = [] if left is None else [f"about {tqdm.format_interval(left)} left"]
            bar.set_postfix_str(", ".join([*said, *(u.title for u in running.values())]))
            for future in wait(running, TICK, FIRST_COMPLETED).done:
                unit = running.pop(future)
                bar.update(sum(work[unit.title].values()))
                sentence = _sentence(future)
                if isinstance(error := future.exception(), BudgetError):
                    spent, waiting = error, []
                elif sentence:
                    failed[unit.title] = sentence
                else:
                    samples.append((future.result(), unit.work(sizes)))
                    unstarted -= {unit.seed} if unit.arm is None else set()
                if sentence and unit.arm is None:
                    lost = [u for u in waiting if _blocked(u, {unit.seed})]
                    failed |= {u.title: f"its cold start failed: {sentence}" for u in lost}
                    waiting = [u for u in waiting if u not in lost]
    if spent:
        raise spent
    return failed


def work_left(unit: Unit, place: Place, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the unit's work without that of the stages whose folders are there."""
    stages = unit.stages(place)
    return {stage: amount for stage, amount in unit.work(sizes).items() if not _is_there(stages[stage])}


def _is_there(job: Job) -> bool:
    """Return whether a stage was done with these settings, inputs and code; run_job looks at the folder's bytes, too."""
    try:
        note = json.loads(job.beside(".done.json").read_text(encoding="utf-8"))
        return job.out.is_dir() and bool(note["fingerprint"] == job.fingerprint())
    except (OSError, ValueError, KeyError):
        return False


def _earlier(units: Sequence[Unit], place: Place, sizes: Mapping[str, int]) -> list[Sample]:
    """Return what the finished results say about time, for as long as this run knows nothing itself: arms have one budget."""
    work = {stage: amount for u in units for stage, amount in u.work(sizes).items()}
    return [(r.seconds, work) for r in files.read_results(place.out)]


def _blocked(unit: Unit, unstarted: set[int]) -> bool:
    return unit.arm is not None and unit.arm.policy != "base" and unit.seed in unstarted


def _sentence(future: Future[dict[str, float]]) -> str:
    """Return why a unit failed, in one line; an empty string when it did not. A dead process ends the whole ablation."""
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise StageError("A process of the ablation died, most likely of too little memory; run again.") from error
    if error is None:
        return ""
    known = isinstance(error, GenEvolveError)
    return " ".join(str(error).split()) if known else f"unexpected {type(error).__name__}: {error}"


def _quiet() -> None:
    """In a new process: its own bars would break the one above them. tqdm reads this when it is first imported."""
    os.environ["TQDM_DISABLE"] = "1"
    end_with_parent()


def _work(unit: Unit, place: Place, stamp: Stamp) -> dict[str, float]:
    """Do one unit; what it prints goes to a log beside its stage folders. Return the seconds of its stages, without those
    that were there or went on from an earlier run."""
    log = place.work / "logs" / f"{unit.title}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if unit.arm is None:
        return _run_stages(unit, place)[1]
    track = tracker()
    with track.arm(unit.title, {**unit.settings.model_dump(mode="json"), "arm": unit.name}):
        done, seconds = _run_stages(unit, place, track)
        result = write_result(unit, unit.arm, place, stamp, done)
        track.log_curve([{"step": row["rollouts"], **row} for row in result.curve])
        track.log_metrics({"kscore": mean(result.scores), "valid": result.valid, "seconds": result.seconds})
    return seconds


def _run_stages(
    unit: Unit, place: Place, track: Tracker | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Return stage -> what run_job returns, and stage -> seconds of those that were begun and ended here."""
    done, seconds = {}, {}
    for stage, job in unit.stages(place).items():
        gone_on = job.beside(".partial").is_dir()
        done[stage] = run_job(job, track)
        if not (gone_on or done[stage]["skipped"]):
            seconds[stage] = float(done[stage]["seconds"])
    return done, seconds


def write_result(
    unit: Unit, arm: Arm, place: Place, stamp: Stamp, done: Mapping[str, Mapping[str, Any]]
) -> files.Result:
    """Have the second judge score the bench, and write the result of the stages in `done`."""
    folder, settings = place.work / unit.title, unit.settings
    seconds = {} if arm.policy == "base" else {"cold_start": _seconds(place.start(unit.seed))}
    seconds |= {stage: d["seconds"] for stage, d in done.items()}
    curve: list[dict[str, float]] = []
    if "evolve" in done:
        first = json.loads((folder / "trained" / "start.json").read_text())
        per_round = settings.sampling.k * settings.cycle.requests_per_step
        curve = files.curve_rows(first, done["evolve"]["curve"], per_round)
    metrics = done["bench"]["metrics"]
    result = files.Result(
        arm=unit.name,
        label=arm.label,
        seed=unit.seed,
        profile=settings.profile,
        overrides=arm.overrides,
        settings=files.all_values(settings),
        recipe=files.recipe_of(settings, stamp.dataset, stamp.base),
        dataset=stamp.dataset,
        base=stamp.base,
        commit=stamp.commit,
        machine=stamp.machine,
        finished=datetime.now(UTC).date().isoformat(),
        seconds=seconds,
        rollouts=round(curve[-1]["rollouts"]) if curve else 0,
        scores=_scores(folder / "bench"),
        benchmarks={
            name: files.BenchmarkScores(dataset=folder_digest(path), scores=_scores(folder / f"bench-{name}"))
            for name, path in place.benchmarks.items()
        },
        scores_second=second_scores(folder / "bench", place.dataset, settings),
        valid=metrics["sampling"]["valid"],
        dimensions=metrics["summary"]["all"]["dimensions"],
        abilities={name: row["rate"] for name, row in metrics["skills"].items()},
        chosen_round=done["evolve"]["metrics"].get("best_round") if "evolve" in done else None,
        curve=curve,
    )
    result.write(place.out)
    return result


def second_scores(bench: Path, dataset: Path, settings: Settings) -> dict[str, float | None] | None:
    """Return the second judge's scores; None for requests without a scene (imported, or written by a model): it knows the
    embedded world alone."""
    from genevolve.bench.rescore import rescore
    from genevolve.dataset.public import load_requests
    from genevolve.stages.backends import make_second_judge

    if any(r.scene is None for r in load_requests(dataset, "bench")):
        return None
    return rescore(bench, dataset, make_second_judge(settings, dataset))


def _scores(bench: Path) -> dict[str, float | None]:
    found: dict[str, float | None] = json.loads((bench / "scores.json").read_text())["all"]
    return found


def _seconds(out: Path) -> float:
    """Return the time of the stage that made a folder, from the runner's note beside it."""
    return float(json.loads(out.with_name(f".{out.name}.done.json").read_text())["seconds"])


def mean(scores: Mapping[str, float | None]) -> float | None:
    """Return the mean of the scores that are there."""
    known = [s for s in scores.values() if s is not None]
    return sum(known) / len(known) if known else None
