"""Paired bootstrap by request: is the difference between two policies more than the luck of these requests (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from genevolve.bench.score import BenchError

_CHUNK = 500  # resamples at a time: [500, n] indices stay small


@dataclass(frozen=True)
class Paired:
    """Mean of after - before over the paired requests, its percentile interval, and what could not be paired."""

    before: float
    after: float
    diff: float
    low: float
    high: float
    p: float
    """one-sided: how often a resample shows no improvement, (k + 1) / (B + 1)"""
    n: int
    wins: int
    losses: int
    missing_before: int
    """requests left out because only `before`, or both, had no score"""
    missing_after: int
    resamples: int
    seed: int
    confidence: float

    @property
    def ci(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def sentence(self) -> str:
        """Say the result, missing rows included."""
        text = (
            f"{self.before:.4f} -> {self.after:.4f}: {self.diff:+.4f}, {self.confidence:.0%} interval "
            f"[{self.low:+.4f}, {self.high:+.4f}], n = {self.n}, one-sided p = {self.p:.4f}"
        )
        left_out = self.missing_before + self.missing_after
        if not left_out:
            return text + "."
        return f"{text}; {left_out} left out ({self.missing_before} missing before, {self.missing_after} only after)."

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ci": [self.low, self.high], "excludes_zero": self.excludes_zero}


def paired_bootstrap(
    before: Mapping[str, float | None],
    after: Mapping[str, float | None],
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Paired:
    """Compare two policies on the same requests (id -> score, None: missing).

    Requests are resampled with replacement, each with its two scores, so what is hard for both cancels out. A
    request with a missing score on either side is left out of both and counted. The same input and seed give the
    same numbers, whatever the order of the ids. Raises BenchError when the two sides do not hold the same requests,
    or fewer than two can be paired.
    """
    import numpy as np

    _check(before, after)
    paired: list[tuple[float, float]] = []
    missing_before = missing_after = 0
    for key in sorted(before):
        b, a = before[key], after[key]
        if b is not None and a is not None:
            paired.append((b, a))
        elif b is None:
            missing_before += 1
        else:
            missing_after += 1
    if len(paired) < 2:
        raise BenchError(f"A paired comparison needs two requests scored on both sides; there are {len(paired)}.")
    scores = np.asarray(paired, dtype=np.float64)  # [n, 2]
    diffs = scores[:, 1] - scores[:, 0]
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            diffs[rng.integers(0, len(diffs), size=(min(_CHUNK, resamples - start), len(diffs)))].mean(axis=1)
            for start in range(0, resamples, _CHUNK)
        ]
    ).round(12)  # sums of twentieths are off by 1e-18: an end of the interval that lies on zero must not lie above it
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Paired(
        before=float(scores[:, 0].mean()),
        after=float(scores[:, 1].mean()),
        diff=float(diffs.mean()),
        low=float(low),
        high=float(high),
        p=float((np.count_nonzero(means <= 0) + 1) / (resamples + 1)),
        n=len(paired),
        wins=int((diffs > 0).sum()),
        losses=int((diffs < 0).sum()),
        missing_before=missing_before,
        missing_after=missing_after,
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )


def _check(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> None:
    only_before, only_after = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    if only_before or only_after:
        example = (only_before or only_after)[0]
        raise BenchError(
            f"The two runs are not on the same requests: {len(only_before)} stand only before, "
            f"{len(only_after)} only after (for example '{example}'). Score both policies on one bench."
        )
