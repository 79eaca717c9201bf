"""The paired bootstrap: coverage, pairing, missing rows, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from genevolve.bench.score import BenchError
from genevolve.bench.stats import paired_bootstrap


def sides(rng: np.random.Generator, n: int, lift: float) -> tuple[dict[str, float | None], dict[str, float | None]]:
    hard = rng.random(n)
    before = {f"q{i}": float(h + rng.normal(0, 0.1)) for i, h in enumerate(hard)}
    after = {f"q{i}": float(h + lift + rng.normal(0, 0.1)) for i, h in enumerate(hard)}
    return dict(before), dict(after)


def test_a_real_gain_is_told_from_noise_although_requests_differ_widely() -> None:
    result = paired_bootstrap(*sides(np.random.default_rng(1), 240, 0.05))
    assert result.low > 0
    assert result.excludes_zero
    assert result.p < 0.001
    assert result.diff == pytest.approx(result.after - result.before)
    assert result.high - result.low < 0.06  # unpaired it would be about .1


def test_the_interval_matches_the_normal_one_and_covers_as_it_says() -> None:
    before, after = sides(np.random.default_rng(2), 200, 0.0)
    result = paired_bootstrap(before, after)
    d = np.array([after[k] - before[k] for k in before])  # type: ignore[operator]
    half = 1.96 * d.std() / np.sqrt(len(d))
    assert result.low == pytest.approx(d.mean() - half, abs=0.003)
    assert result.high == pytest.approx(d.mean() + half, abs=0.003)
    covered = 0
    for seed in range(200):
        r = paired_bootstrap(*sides(np.random.default_rng(100 + seed), 60, 0.0), resamples=400, seed=seed)
        covered += r.low <= 0 <= r.high
    assert 178 <= covered <= 199


def test_the_same_seed_gives_the_same_numbers_whatever_the_order() -> None:
    before, after = sides(np.random.default_rng(3), 30, 0.1)
    turned = dict(reversed(list(after.items())))
    assert paired_bootstrap(before, after, 1000, 7) == paired_bootstrap(before, turned, 1000, 7)
    assert paired_bootstrap(before, after, 1000, 7) != paired_bootstrap(before, after, 1000, 8)


def test_missing_on_one_side_leaves_both_out_and_is_said() -> None:
    before = {"a": 0.1, "b": 0.2, "c": None, "d": None, "e": 0.3}
    after = {"a": 0.3, "b": 0.4, "c": 0.9, "d": None, "e": None}
    result = paired_bootstrap(before, after, 200)
    assert (result.n, result.missing_before, result.missing_after, result.wins) == (2, 2, 1, 2)
    assert (result.diff, result.low, result.high) == pytest.approx((0.2, 0.2, 0.2))
    assert "3 left out (2 missing before, 1 only after)" in result.sentence()


def test_no_change_is_no_proof() -> None:
    same = {f"q{i}": 0.5 for i in range(10)}
    result = paired_bootstrap(same, dict(same), 200)
    assert (result.diff, result.p, result.excludes_zero) == (0, 1, False)


def test_an_interval_that_ends_on_zero_proves_nothing() -> None:
    # Scores are sums of twentieths; in floating point .35 - .15 + .75 - .95 is above zero.
    before = {f"q{i}": (0.15, 0.95)[i % 2] for i in range(40)}
    after = {f"q{i}": (0.35, 0.75)[i % 2] for i in range(40)}
    ends = [paired_bootstrap(before, after, 400, seed, confidence=c) for seed in range(8) for c in (0.1, 0.01)]
    assert any(r.low == 0 for r in ends)
    assert not any(0 < abs(end) < 1e-9 for r in ends for end in r.ci)


def test_unpaired_ids_and_too_few_rows_are_refused_with_a_sentence() -> None:
    with pytest.raises(
        BenchError, match=r"not on the same requests: 1 stand only before, 2 only after \(for example 'a'\)"
    ):
        paired_bootstrap({"a": 1.0, "b": 1.0}, {"b": 1.0, "c": 1.0, "d": 1.0})
    with pytest.raises(BenchError, match="needs two requests"):
        paired_bootstrap({"a": 1.0, "b": None}, {"a": 1.0, "b": 1.0})
