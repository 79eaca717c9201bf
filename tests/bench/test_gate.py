"""The gate's decision: the whole half, the splits, and the words."""

from __future__ import annotations

from random import Random

import pytest

from genevolve.bench.gate import Decision, decide
from genevolve.bench.score import BenchError
from genevolve.records import Request

IDS = [f"q{i:02d}" for i in range(60)]


def requests() -> list[Request]:
    """Twenty requests about flags, forty about birds."""
    common = {"question": "Draw.", "eval_type": "quality_anchored", "difficulty": "easy", "split": "bench"}
    return [
        Request.model_validate({"id": name, "category": "flags" if i < 20 else "birds", **common})
        for i, name in enumerate(IDS)
    ]


def asked(flags: float, birds: float, noise: float = 0.02, **over: float) -> Decision:
    """Decide on differences of these means, a little noise on each."""
    random = Random(1)
    before: dict[str, float | None] = dict.fromkeys(IDS, 0.5)
    after: dict[str, float | None] = {
        name: 0.5 + (flags if i < 20 else birds) + random.uniform(-noise, noise) for i, name in enumerate(IDS)
    }
    how = {"margin": 0.0, "split_margin": 0.05, "split_rows": 12, **over}
    return decide(before, after, requests(), resamples=500, seed=1, **how)  # type: ignore[arg-type]


def test_a_sure_gain_in_which_no_split_falls_is_promoted() -> None:
    found = asked(0.05, 0.1)
    assert found.promote
    assert {s.name for s in found.splits} == {
        "category: birds",
        "category: flags",
        "difficulty: easy",
        "eval_type: quality_anchored",
    }
    words = found.words("c002", "c001")
    assert words.startswith("c002 takes the place of c001: +0.08")
    assert "60 gate requests" in words
    assert "none of 4 splits fell" in words


def test_a_gain_that_is_not_sure_is_not() -> None:
    found = asked(0.0, 0.0, noise=0.3)
    assert not found.promote
    assert "its lower end does not exceed 0" in found.words("c002", "c001")
    assert not asked(0.05, 0.1, margin=0.2).promote


def test_a_split_that_falls_beyond_the_margin_for_sure_stops_a_gain() -> None:
    found = asked(-0.1, 0.3)
    assert found.paired.low > 0
    assert not found.promote
    words = found.words("c002", "c001")
    assert "c002 does not take the place of c001" in words
    assert "fell by more than 0.05: category: flags -0.1" in words
    assert "over 20 requests" in words
    assert found.to_dict()["splits"]["category: flags"]["fell"] is True
    assert asked(-0.04, 0.3).promote  # not beyond the margin
    assert asked(-0.1, 0.3, split_rows=21).promote  # too few requests to look at
    assert asked(-0.1, 0.3, split_margin=0.2).promote


def test_a_fall_that_may_be_luck_does_not() -> None:
    random = Random(3)
    before: dict[str, float | None] = dict.fromkeys(IDS, 0.5)
    after: dict[str, float | None] = dict.fromkeys(IDS, 0.8)
    after |= {name: 0.5 + random.choice((-0.5, 0.38)) for name in IDS[:20]}
    found = decide(before, after, requests(), margin=0, split_margin=0.05, split_rows=12, resamples=500, seed=1)
    flags = next(s for s in found.splits if s.name == "category: flags")
    assert flags.paired.diff < -0.05 < 0 < flags.paired.high
    assert found.promote


def test_other_requests_on_the_other_side_are_refused() -> None:
    with pytest.raises(BenchError, match="not on the same requests"):
        decide({"a": 1.0}, {"b": 1.0}, [], margin=0, split_margin=0.05, split_rows=12, resamples=100, seed=1)


def test_a_judge_that_failed_leaves_a_request_out_of_both() -> None:
    before: dict[str, float | None] = dict.fromkeys(IDS, 0.5)
    after: dict[str, float | None] = dict.fromkeys(IDS, 0.6)
    after["q00"] = before["q01"] = None
    found = decide(before, after, requests(), margin=0, split_margin=0.05, split_rows=19, resamples=500, seed=1)
    assert found.paired.n == 58
    assert "category: flags" not in {s.name for s in found.splits}  # 18 pairs are left of 20
