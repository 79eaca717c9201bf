"""KScore summaries of a bench run (method.md, section 3): the released formula, both readings of N/A, every split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from genevolve.errors import GenEvolveError
from genevolve.records import Difficulty, Request, Score, Trajectory

DIMENSIONS = ("faithfulness", "visual_correctness", "text_accuracy", "aesthetics")
WEIGHTS = {"faithfulness": 0.1, "visual_correctness": 0.4, "text_accuracy": 0.4, "aesthetics": 0.1}
SPLITS = ("eval_type", "category", "difficulty", "half")


class BenchError(GenEvolveError):
    """The rows of a benchmark do not fit together; the message says which."""


@dataclass(frozen=True)
class BenchRow:
    """One rollout of one bench request and what became of it."""

    request: Request
    score: Score | None
    """None is *missing*: no program, no picture, or a judge or a policy's server that failed"""
    valid: bool = True
    """False: the policy made no valid program, so there was nothing to draw"""
    trajectory: Trajectory | None = None

    @property
    def value(self) -> float | None:
        """As `rollout_value`."""
        return _value(self.score, self.valid)


def bench_rows(requests: Sequence[Request], trajectories: Iterable[Trajectory]) -> list[BenchRow]:
    """Return one row per rollout, in the order of the requests; a request without any has one row, missing and invalid.

    Raises BenchError when a trajectory answers no request of the bench, or a rollout is there twice.
    """
    answers: dict[str, dict[int, Trajectory]] = {r.id: {} for r in requests}
    for t in trajectories:
        if t.request_id not in answers:
            raise BenchError(f"Trajectory '{t.id}' answers request '{t.request_id}', which is not in the bench.")
        rollouts = answers[t.request_id]
        if t.rollout in rollouts:
            raise BenchError(
                f"Request '{t.request_id}' has two trajectories for rollout {t.rollout}: "
                f"'{rollouts[t.rollout].id}' and '{t.id}'."
            )
        rollouts[t.rollout] = t
    rows = []
    for request in requests:
        group = answers[request.id]
        if not group:
            rows.append(BenchRow(request, None, valid=False))
        for _, t in sorted(group.items()):
            rows.append(BenchRow(request, *_outcome(t), t))
    return rows


def rollout_value(trajectory: Trajectory) -> float | None:
    """Return what a rollout adds to its request's mean: 0 without a program, None if missing."""
    return _value(*_outcome(trajectory))


def _outcome(t: Trajectory) -> tuple[Score | None, bool]:
    return t.reward.image if t.reward else None, t.program is not None or t.termination == "error"


def _value(score: Score | None, valid: bool) -> float | None:
    return score.overall if score is not None else None if valid else 0.0


def summarise_scores(rows: Sequence[BenchRow]) -> dict[str, Any]:
    """Return the summary of all rows under `all`, and one per value of every split under `splits`."""
    splits: dict[str, dict[str, Any]] = {}
    for name in SPLITS:
        groups = _by(rows, name)
        if groups:
            splits[name] = {value: _summary(group) for value, group in groups.items()}
    return {"all": _summary(rows), "splits": splits}


def kscores(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the KScore of a summary and of its splits under the names that nights are compared by.

    `kscore/all`, `kscore/gate`, `kscore/report`, `kscore_track/...`, `kscore_difficulty/...`, `kscore_category/...`; each as
    in `overall_values`, a rollout without a program counting 0 and one whose judge failed left out.
    """
    groups = {"kscore/all": summary["all"]}
    names = {
        "half": "kscore",
        "eval_type": "kscore_track",
        "difficulty": "kscore_difficulty",
        "category": "kscore_category",
    }
    for split, name in names.items():
        groups |= {f"{name}/{value}": group for value, group in summary["splits"].get(split, {}).items()}
    counted = {
        name: (g["judged"], g["judged"] + g["invalid_programs"], g["overall"] or 0.0) for name, g in groups.items()
    }
    return {name: mean * judged / n for name, (judged, n, mean) in counted.items() if n}


def overall_values(rows: Sequence[BenchRow]) -> dict[str, float | None]:
    """Return request id -> overall, the mean of its rollouts, for a paired comparison.

    A policy that made no program scored 0 on it (else failing would be a way to leave a hard request out); a judge
    that failed on a picture leaves that rollout out, and the request missing (None) when it has no other.
    """
    values: dict[str, list[float]] = {}
    for r in rows:
        known = values.setdefault(r.request.id, [])
        if (value := r.value) is not None:
            known.append(value)
    return {key: sum(v) / len(v) if v else None for key, v in values.items()}


def shown_pair(before: Sequence[float | None], after: Sequence[float | None]) -> tuple[int, int]:
    """Return which rollout of either policy to show for a request, by their scores (None: missing): the two that differ most
    nearly as the means do.

    Of equally near pairs the one that differs most, then the first; the first rollouts where no mean is known.
    """
    known = [[(i, v) for i, v in enumerate(side) if v is not None] for side in (before, after)]
    if not all(known):
        return known[0][0][0] if known[0] else 0, known[1][0][0] if known[1] else 0
    old, new = known
    wanted = sum(v for _, v in new) / len(new) - sum(v for _, v in old) / len(old)

    def order(pair: tuple[tuple[int, float], tuple[int, float]]) -> tuple[float, float]:
        found = pair[1][1] - pair[0][1]
        return round(abs(found - wanted), 9), -abs(found)

    (i, _), (j, _) = min(product(old, new), key=order)
    return i, j


def _by(rows: Sequence[BenchRow], name: str) -> dict[str, list[BenchRow]]:
    groups: dict[str, list[BenchRow]] = {}
    for row in rows:
        value = getattr(row.request, name)
        if value is not None:
            groups.setdefault(str(value), []).append(row)
    order = {value: i for i, value in enumerate(get_args(Difficulty))}  # easy, medium, hard; the rest by name
    return dict(sorted(groups.items(), key=lambda row: (order.get(row[0], 0), row[0])))


def _summary(rows: Sequence[BenchRow]) -> dict[str, Any]:
    """Summarise rows: `overall` over the judged, `overall_missing_zero` over all, dimensions, the counts behind them.

    `second_summary` averages each dimension first, text over the rows that have text, and weights the means; it is None
    when no judged row has text. A mean over nothing is None.
    """
    scores = [r.score for r in rows if r.score is not None]
    worded = [s for s in scores if not s.text_accuracy_na]
    dimensions = {d: _mean(scores, lambda s, d=d: getattr(s, d)) for d in DIMENSIONS}  # type: ignore[misc]
    text = _mean(worded, lambda s: s.text_accuracy)
    return {
        "requests": len({r.request.id for r in rows}),
        "n": len(rows),
        "judged": len(scores),
        "missing": len(rows) - len(scores),
        "invalid_programs": sum(not r.valid for r in rows),
        "with_text": len(worded),
        "overall": _mean(scores, lambda s: s.overall),
        "overall_missing_zero": sum(s.overall for s in scores) / len(rows) if rows else None,
        "overall_renormalised": _mean(scores, lambda s: s.overall_renormalised),
        "dimensions": dimensions,
        "second_summary": _weighted({**dimensions, "text_accuracy": text}),
        "text_accuracy_with_text": text,
    }


def _mean(scores: Sequence[Score], of: Callable[[Score], float]) -> float | None:
    return sum(of(s) for s in scores) / len(scores) if scores else None


def _weighted(means: Mapping[str, float | None]) -> float | None:
    values = [means[d] for d in DIMENSIONS]
    if any(v is None for v in values):
        return None
    return sum(WEIGHTS[d] * v for d, v in zip(DIMENSIONS, values, strict=True) if v is not None)
