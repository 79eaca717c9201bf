"""What the results of an ablation say: means, paired differences, intervals, learning curves. Pure functions on results.

Every arm of a seed shares that seed's cold start, its order of requests and its bench, so arms are compared within a
seed and a request. Scores of an arm form a table [S, R] of seeds and bench requests; the difference of two arms is the
table of their differences.

Intervals are percentiles of a two-way ("pigeonhole") bootstrap: a resample draws S seeds and, independently, R requests
with replacement and averages the cells where they meet. The requests are the same for every seed, so they are drawn once
for all of them; drawing them anew for each seed would count the luck of the requests S times too little. For a mean it
is never too narrow by that (Owen 2007, "The pigeonhole bootstrap"); what makes it so is few seeds: with one seed it
knows the luck of the requests alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genevolve.ablation.results import Result, ResultError

Table = NDArray[np.float64]
"""[S, R] seeds by requests; nan is missing"""
RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 1000  # resamples at a time: [1000, R] counts stay small
GROUP_RESAMPLES = 2_000
"""At most, for the many intervals by track and skill."""
SPLITS = ("track", "difficulty", "skills")


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and requests with its 95% interval."""

    mean: float
    low: float
    high: float
    seeds: int
    requests: int
    missing: int
    """cells left out because a judge failed"""

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Reach:
    """When a learning curve first stands at or above a target."""

    target: float
    rollouts: float | None
    """None: never"""
    share: float | None
    """of the rollouts that the reference had"""


def interval(values: Table, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean of a table [S, R] with its interval; raises ResultError where no cell is there."""
    known = ~np.isnan(values)
    if not known.any():
        raise ResultError("There is nothing to average: no seed has a scored request in common.")
    means = resampled_means(values, resamples, seed)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail])
    seeds, requests = values.shape
    return Interval(
        float(values[known].mean()), float(low), float(high), seeds, requests, int(values.size - known.sum())
    )


def resampled_means(values: Table, resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the two-way bootstrap means [B] of a table [S, R]; nan where a resample met missing cells only."""
    rng = np.random.default_rng(seed)
    seeds, requests = values.shape
    filled, known = np.nan_to_num(values), (~np.isnan(values)).astype(np.float64)
    out = []
    for start in range(0, resamples, _CHUNK):
        n = min(_CHUNK, resamples - start)
        rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=n).astype(np.float64)  # [n, S] times drawn
        columns = rng.multinomial(requests, np.full(requests, 1 / requests), size=n)  # [n, R]
        total, count = ((rows @ filled) * columns).sum(1), ((rows @ known) * columns).sum(1)
        out.append(np.divide(total, count, out=np.full(n, np.nan), where=count > 0))
    return np.concatenate(out).round(12)  # as in bench/stats.py


def table(scores: Mapping[int, Mapping[str, float | None]], requests: Sequence[str] | None = None) -> Table:
    """Return seed -> request -> score as a table, seeds and requests in sorted order; a null is nan.

    `requests` keeps only those. Raises ResultError when two seeds were not scored on the same requests.
    """
    names = sorted(next(iter(scores.values())))
    for seed, row in scores.items():
        if sorted(row) != names:
            raise ResultError(f"Seed {seed} was scored on other requests than seed {min(scores)}: run it again.")
    kept = names if requests is None else [name for name in names if name in set(requests)]
    rows = [[row[name] for name in kept] for _, row in sorted(scores.items())]
    return np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64).reshape(
        len(rows), len(kept)
    )


def scores_of(results: Iterable[Result], second: bool = False) -> dict[int, dict[str, float | None]]:
    """Return seed -> scores of one arm's results, by the reward judge or the second one; seeds without are left out."""
    found = {r.seed: r.scores_second if second else r.scores for r in results}
    return {seed: scores for seed, scores in found.items() if scores is not None}


def difference(
    arm: Mapping[int, Mapping[str, float | None]],
    reference: Mapping[int, Mapping[str, float | None]],
    requests: Sequence[str] | None = None,
) -> Table | None:
    """Return arm - reference, paired by seed and request; None when they share no seed."""
    shared = sorted(set(arm) & set(reference))
    if not shared:
        return None
    pair = [table({seed: side[seed] for seed in shared}, requests) for side in (arm, reference)]
    if pair[0].shape != pair[1].shape or set(arm[shared[0]]) != set(reference[shared[0]]):
        raise ResultError("Two arms were not scored on the same requests: run one of them again.")
    return pair[0] - pair[1]


def compare(arm: Sequence[Result], reference: Sequence[Result], resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """Return the paired difference of two arms by both judges and by seed; None when they share no seed."""
    first = difference(scores_of(arm), scores_of(reference))
    if first is None:
        return None
    found = interval(first, resamples)
    second = difference(scores_of(arm, True), scores_of(reference, True))
    again = None if second is None else interval(second, resamples)
    shared = sorted({r.seed for r in arm} & {r.seed for r in reference})
    by_seed = {str(seed): float(np.nanmean(row)) for seed, row in zip(shared, first, strict=True)}
    return {
        **asdict(found),
        "excludes_zero": found.excludes_zero,
        "by_seed": by_seed,
        "second": None if again is None else {**asdict(again), "excludes_zero": again.excludes_zero},
        "judges_agree": None if again is None else bool(np.sign(found.mean) == np.sign(again.mean)),
    }


def by_group(
    arm: Sequence[Result],
    reference: Sequence[Result],
    requests: Mapping[str, Mapping[str, Any]],
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """Return split -> group -> paired difference on that group's requests: tracks, difficulties, skills.

    A request counts under every skill it needs, so the groups of `skills` overlap.
    """
    ours, theirs = scores_of(arm), scores_of(reference)
    out: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        groups: dict[str, list[str]] = {}
        for name, what in requests.items():
            for value in what[split] if isinstance(what[split], list) else [what[split]]:
                groups.setdefault(str(value), []).append(name)
        for value, names in sorted(groups.items()):
            values = difference(ours, theirs, names)
            if values is not None and values.size and not np.isnan(values).all():
                out.setdefault(split, {})[value] = asdict(interval(values, resamples))
    return out


def mean_curve(results: Sequence[Result]) -> list[dict[str, float]]:
    """Return the mean over seeds of every field at every number of rollouts that all seeds reached and measured."""
    points: dict[float, list[dict[str, float]]] = {}
    for result in results:
        for row in result.curve:
            points.setdefault(row["rollouts"], []).append(with_overall(row))
    out = []
    for at, rows in sorted(points.items()):
        if len(rows) == len(results):
            shared = set.intersection(*(set(row) for row in rows)) - {"rollouts"}
            out.append({"rollouts": at} | {key: sum(row[key] for row in rows) / len(rows) for key in sorted(shared)})
    return out


def with_overall(row: Mapping[str, float]) -> dict[str, float]:
    """Return a curve's row with `validation_overall`: KScore over all rollouts, 0 where there was no valid program.

    `validation_kscore` averages drawn pictures only, so a policy that fails on hard requests would seem to rise.
    """
    if "validation_kscore" not in row:
        return dict(row)
    return {**row, "validation_overall": row["validation_kscore"] * row["validation_valid"]}


def reach(
    curve: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]], field: str = "validation_overall"
) -> Reach | None:
    """Return when `curve` first stands at `reference`'s last value of a field; None where either lacks the field.

    The answer is as coarse as the looks at the validation split. 0 means the start stood there already: the reference
    had gained nothing.
    """
    looks = [row for row in reference if field in row]
    mine = [row for row in curve if field in row]
    if not looks or not mine or not looks[-1]["rollouts"]:
        return None
    target, whole = looks[-1][field], looks[-1]["rollouts"]
    at = next((row["rollouts"] for row in mine if row[field] >= target - 1e-12), None)
    return Reach(target, at, None if at is None else at / whole)


def summarise(
    results: Sequence[Result],
    requests: Mapping[str, Mapping[str, Any]],
    references: Sequence[str],
    order: Sequence[str] = (),
    resamples: int = RESAMPLES,
    benchmarks: Iterable[str] = (),
) -> dict[str, Any]:
    """Return all that the report shows, as plain values. `order`: arms as the table of arms has them; others follow.

    `benchmarks`: the further ones; without any, there is no key of that name.
    """
    by_arm = {arm: list(rows) for arm, rows in groupby(sorted(results, key=_by_arm_and_seed), key=lambda r: r.arm)}
    names = [n for n in order if n in by_arm] + sorted(set(by_arm) - set(order))
    _check(results, by_arm)
    further = {
        name: _benchmark(name, {arm: by_arm[arm] for arm in names}, references, resamples) for name in benchmarks
    }
    return ({"benchmarks": further} if further else {}) | {
        "profile": sorted({r.profile for r in results}),
        "dataset": sorted({r.dataset for r in results}),
        "commits": sorted({r.commit for r in results}),
        "machines": sorted({r.machine for r in results}),
        "dates": [min(r.finished for r in results), max(r.finished for r in results)],
        "runs": len(results),
        "resamples": resamples,
        "confidence": CONFIDENCE,
        "bootstrap": "two-way: seeds and, independently, requests, drawn with replacement; percentile interval",
        "references": [name for name in references if name in by_arm],
        "arms": {name: _arm(name, by_arm, requests, references, resamples) for name in names},
    }


def _benchmark(
    name: str, by_arm: Mapping[str, Sequence[Result]], references: Sequence[str], resamples: int
) -> dict[str, Any]:
    """Return a further benchmark's means and differences by arm, and the runs that were never scored on it."""
    runs = [r for rows in by_arm.values() for r in rows]
    if len({r.benchmarks[name].dataset for r in runs if name in r.benchmarks}) > 1:
        raise ResultError(f"The folder of the benchmark '{name}' changed between runs: give it another name.")
    found = {a: {r.seed: r.benchmarks[name].scores for r in rows if name in r.benchmarks} for a, rows in by_arm.items()}
    found = {arm: scores for arm, scores in found.items() if scores}
    arms = {}
    for arm, scores in found.items():
        pairs = {ref: difference(scores, found[ref]) for ref in references if ref in found and ref != arm}
        arms[arm] = {
            "label": by_arm[arm][0].label,
            "seeds": sorted(scores),
            "kscore": asdict(interval(table(scores), resamples)),
            "differences": {ref: None if d is None else asdict(interval(d, resamples)) for ref, d in pairs.items()},
        }
    return {"arms": arms, "lacking": [f"{r.arm}-s{r.seed}" for r in runs if name not in r.benchmarks]}


def _by_arm_and_seed(result: Result) -> tuple[str, int]:
    return result.arm, result.seed


def _check(results: Sequence[Result], by_arm: Mapping[str, Sequence[Result]]) -> None:
    if len({r.dataset for r in results}) > 1 or len({r.profile for r in results}) > 1:
        raise ResultError("The results are of several datasets or profiles: keep each in an --out folder of its own.")
    for arm, rows in by_arm.items():
        if len({str({**r.settings, "seeds": None}) for r in rows}) > 1:
            raise ResultError(f"The seeds of arm '{arm}' were run with different settings: run some of them again.")


def _arm(
    name: str,
    by_arm: Mapping[str, Sequence[Result]],
    requests: Mapping[str, Mapping[str, Any]],
    references: Sequence[str],
    resamples: int,
) -> dict[str, Any]:
    results = by_arm[name]
    second = scores_of(results, True)
    others = {ref: by_arm[ref] for ref in references if ref in by_arm and ref != name}
    curve = mean_curve(results)
    return {
        "label": results[0].label,
        "overrides": results[0].overrides,
        "seeds": [r.seed for r in results],
        "kscore": asdict(interval(table(scores_of(results)), resamples)),
        "kscore_second": asdict(interval(table(second), resamples)) if second else None,
        "valid": _mean(r.valid for r in results),
        "dimensions": _means([r.dimensions for r in results]),
        "abilities": _means([r.abilities for r in results]),
        "differences": {ref: compare(results, rows, resamples) for ref, rows in others.items()},
        "groups": {
            ref: by_group(results, rows, requests, min(resamples, GROUP_RESAMPLES)) for ref, rows in others.items()
        },
        "rollouts": results[0].rollouts,
        "chosen_rounds": [r.chosen_round for r in results],
        "minutes": _mean(sum(r.seconds.values()) / 60 for r in results),
        "curve": curve,
        "reach": {ref: _reach(results, rows) for ref, rows in others.items()} if curve else {},
    }


def _reach(results: Sequence[Result], reference: Sequence[Result]) -> dict[str, Any] | None:
    """Return the answer for the mean curves over shared seeds, and for each seed alone."""
    pairs = {r.seed: (r, o) for r in results for o in reference if r.seed == o.seed}
    if not pairs:
        return None
    whole = reach(mean_curve([r for r, _ in pairs.values()]), mean_curve([o for _, o in pairs.values()]))
    alone = {str(seed): reach(mean_curve([r]), mean_curve([o])) for seed, (r, o) in pairs.items()}
    if whole is None:
        return None
    return {**asdict(whole), "by_seed": {seed: None if a is None else a.share for seed, a in alone.items()}}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {key: _mean(row.get(key) for row in rows) for key in sorted({key for row in rows for key in row})}
