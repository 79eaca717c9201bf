"""The analysis against sums one can do by hand and against closed forms."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from genevolve.ablation.analysis import (
    by_group,
    compare,
    difference,
    interval,
    mean_curve,
    reach,
    resampled_means,
    scores_of,
    summarise,
    table,
)
from genevolve.ablation.arms import load_table
from genevolve.ablation.charts import interval_chart
from genevolve.ablation.report import write_report
from genevolve.ablation.results import Result, ResultError, read_results, write_requests

from .parts import curve, result

NAMES = [f"q{i:03d}" for i in range(60)]


def grid(values: np.ndarray) -> dict[int, dict[str, float | None]]:  # type: ignore[type-arg]
    return {s + 1: dict(zip(NAMES, map(float, row), strict=False)) for s, row in enumerate(values)}


def test_the_bootstrap_has_the_closed_form_spread_of_a_two_way_mean() -> None:
    """For a_s + b_r the two draws are independent: variance = var(a) / S + var(b) / R, population variances."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=8), rng.normal(size=60)
    means = resampled_means(a[:, None] + b[None, :], 40_000, seed=1)
    assert means.var() == pytest.approx(a.var() / 8 + b.var() / 60, rel=0.03)
    assert means.mean() == pytest.approx(a.mean() + b.mean(), abs=0.01)


def test_with_one_seed_it_is_the_plain_bootstrap_of_the_requests() -> None:
    from genevolve.bench.stats import paired_bootstrap

    rng = np.random.default_rng(0)
    before, after = rng.random(60), rng.random(60)
    plain = paired_bootstrap(dict(zip(NAMES, before, strict=True)), dict(zip(NAMES, after, strict=True)), 20_000)
    ours = interval((after - before)[None, :], 20_000)
    assert ours.mean == pytest.approx(plain.diff)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high), abs=0.004)


def test_a_constant_difference_has_no_spread_however_hard_seeds_and_requests_are() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((3, 60)) * 0.5
    ours = [result("full", s, row) for s, row in grid(scores + 0.125).items()]
    theirs = [result("sft+grpo", s, row) for s, row in grid(scores).items()]
    found = compare(ours, theirs)
    assert found is not None
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.125, 0.125, 0.125))
    assert found["excludes_zero"]
    assert found["by_seed"] == pytest.approx({"1": 0.125, "2": 0.125, "3": 0.125})
    assert found["second"] is None
    assert found["judges_agree"] is None


def test_missing_scores_and_unshared_seeds_are_left_out_and_counted() -> None:
    arm = {1: {"a": 0.9, "b": None, "c": 0.5}, 2: {"a": 0.2, "b": 0.4, "c": 0.6}}
    reference = {2: {"a": 0.1, "b": 0.1, "c": None}, 3: {"a": 1.0, "b": 1.0, "c": 1.0}}
    values = difference(arm, reference)
    assert values is not None
    found = interval(values, 200)
    assert (found.seeds, found.requests, found.missing) == (1, 3, 1)
    assert found.mean == pytest.approx(0.2)  # of .1 and .3
    assert difference({1: arm[1]}, reference) is None
    assert interval(table(arm), 200).mean == pytest.approx((0.9 + 0.5 + 0.2 + 0.4 + 0.6) / 5)


def test_other_requests_are_refused() -> None:
    with pytest.raises(ResultError, match="Seed 2 was scored on other requests than seed 1"):
        table({1: {"a": 1.0}, 2: {"b": 1.0}})
    with pytest.raises(ResultError, match="not scored on the same requests"):
        difference({1: {"a": 1.0}}, {1: {"b": 1.0}})
    with pytest.raises(ResultError, match="nothing to average"):
        interval(np.full((1, 2), np.nan))


def test_the_judges_agree_or_not_in_sign() -> None:
    up, down = {"a": 0.6, "b": 0.7}, {"a": 0.5, "b": 0.5}
    theirs = [result("sft", 1, down, scores_second=down)]
    same = compare([result("full", 1, up, scores_second=up)], theirs, 200)
    other = compare([result("full", 1, up, scores_second={"a": 0.1, "b": 0.5})], theirs, 200)
    assert same is not None
    assert other is not None
    assert (same["judges_agree"], other["judges_agree"]) == (True, False)
    assert other["second"]["mean"] == pytest.approx(-0.2)
    assert scores_of(theirs, second=True) == {1: down}


def test_groups_take_their_own_requests_and_a_request_counts_under_each_of_its_skills() -> None:
    what = {
        "a": {"track": "knowledge", "difficulty": "easy", "category": "x", "skills": ["text", "count"]},
        "b": {"track": "quality", "difficulty": "easy", "category": "x", "skills": ["text"]},
    }
    ours, theirs = [result("full", 1, {"a": 0.5, "b": 1.0})], [result("sft", 1, {"a": 0.25, "b": 0.5})]
    found = by_group(ours, theirs, what, 200)
    assert {k: v["mean"] for k, v in found["track"].items()} == {"knowledge": 0.25, "quality": 0.5}
    assert {k: v["mean"] for k, v in found["skills"].items()} == {"count": 0.25, "text": 0.375}
    assert found["difficulty"]["easy"]["requests"] == 2


def test_when_a_curve_reaches_another_ones_end() -> None:
    grpo = curve(0.3, 0.4, 0.35, 0.5, 0.45)  # its last look counts, not its best
    full = curve(0.3, 0.42, 0.45, 0.44, 0.6)
    scored = [mean_curve([result("x", 1, {"a": 0.0}, curve=c)]) for c in (full, grpo)]
    found = reach(*scored)
    assert found is not None
    assert (found.target, found.rollouts, found.share) == (pytest.approx(0.45), 8.0, 0.5)
    never = reach(mean_curve([result("x", 1, {"a": 0.0}, curve=curve(0.1, 0.2))]), scored[1])
    assert never is not None
    assert (never.rollouts, never.share) == (None, None)
    assert reach(scored[0], []) is None


def test_a_mean_curve_keeps_what_all_seeds_measured_and_counts_failures_as_zero() -> None:
    first = [
        {"rollouts": 0.0, "validation_kscore": 0.8, "validation_valid": 0.5, "kl": 1.0},
        {"rollouts": 4.0, "kl": 2},
    ]
    second = [{"rollouts": 0.0, "validation_kscore": 0.6, "validation_valid": 1.0}]
    rows = mean_curve([result("x", s, {"a": 0.0}, curve=c) for s, c in ((1, first), (2, second))])
    assert [row["rollouts"] for row in rows] == [0.0]
    assert rows[0]["validation_overall"] == pytest.approx((0.8 * 0.5 + 0.6) / 2)
    assert "kl" not in rows[0]


def test_a_summary_refuses_results_that_do_not_belong_together() -> None:
    mixed = [result("full", 1, {"a": 0.0}), result("full", 2, {"a": 0.0}, dataset="e" * 64)]
    with pytest.raises(ResultError, match="several datasets"):
        summarise(mixed, {}, ["sft"])
    changed = [result("full", 1, {"a": 0.0}), result("full", 2, {"a": 0.0}, settings={"distill": {"lr": 1}})]
    with pytest.raises(ResultError, match="'full' were run with different settings"):
        summarise(changed, {}, ["sft"])


def write_results(folder: Path) -> list[Result]:
    rng = np.random.default_rng(5)
    made = []
    for i, arm in enumerate(("full", "sft+grpo", "sft", "new")):
        for seed in (1, 2):
            scores = {name: round(0.1 * i + 0.5 * float(rng.random()), 6) for name in NAMES[:8]}
            extra = {"curve": curve(0.3, 0.4 - 0.02 * i, 0.5 - 0.05 * i)} if i < 2 else {"rollouts": 0}
            extra["label"] = "<b>new</b>" if arm == "new" else arm
            made.append(result(arm, seed, scores, **extra))
    for each in made:
        each.write(folder)
    what = {"track": "t<1>", "difficulty": "easy", "category": "c", "half": "gate", "skills": ["text_rendering"]}
    write_requests(folder, dict.fromkeys(NAMES[:8], what))
    return made


def test_the_report_is_rebuilt_from_the_files_alone_and_needs_no_other_file(in_project: Path, tmp_path: Path) -> None:
    made = write_results(tmp_path)
    assert sorted(read_results(tmp_path), key=str) == sorted(made, key=str)
    reports = tmp_path / "report"
    summary = write_report(tmp_path, load_table(), reports, 500)
    assert list(summary["arms"]) == ["sft", "sft+grpo", "full", "new"]
    written = json.loads((reports / "ablation.json").read_text())
    assert written["arms"]["full"]["differences"]["sft+grpo"]["seeds"] == 2
    assert written["arms"]["full"]["reach"]["sft+grpo"]["share"] == 1.0
    rows = list(csv.DictReader((reports / "ablation.csv").open()))
    assert [row["arm"] for row in rows] == list(summary["arms"])
    assert float(rows[2]["kscore"]) == pytest.approx(summary["arms"]["full"]["kscore"]["mean"])
    html = (reports / "ablation.html").read_text()
    assert "<script" not in html
    assert "<b>new" not in html  # a label is text, in the table and in the charts
    assert "t<1>" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("<svg") >= 4
    before = html
    write_report(tmp_path, load_table(), reports, 500)
    assert (reports / "ablation.html").read_text() == before


def test_a_broken_or_missing_result_is_one_sentence(in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="There is no result in"):
        write_report(tmp_path, load_table(), tmp_path / "report")
    write_results(tmp_path)
    (tmp_path / "full-s1.json").write_text('{"arm": 3}')
    with pytest.raises(ResultError, match=r"full-s1\.json is not a result \(arm: .*delete it"):
        read_results(tmp_path)
    with pytest.raises(ResultError, match="of another bench"):
        write_requests(tmp_path, {"other": {}})


def test_an_arm_far_from_all_others_is_an_arrow_and_does_not_press_them_together() -> None:
    rows = [(f"arm {i}", 0.85 + i / 100, 0.84 + i / 100, 0.86 + i / 100) for i in range(8)]
    chart = interval_chart(rows, "near")
    assert (chart.count("<circle"), chart.count("<polygon")) == (8, 0)
    far = interval_chart([*rows, ("no tool", 0.1, 0.05, 0.15)], "far")
    assert (far.count("<circle"), far.count("<polygon")) == (8, 1)
    places = [re.findall(r'<circle cx="([0-9.]+)"', c) for c in (chart, far)]
    assert places[0] == places[1]
    assert "0.1000" in far
    pair = interval_chart([rows[0], ("no tool", 0.1, 0.05, 0.15)], "two")
    assert pair.count("<circle") == 2, "of two rows neither is the odd one"
