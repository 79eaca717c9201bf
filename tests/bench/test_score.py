"""KScore summaries: both formulas, missing rows in every denominator, splits."""

from __future__ import annotations

import pytest

from genevolve.bench.score import BenchError, BenchRow, bench_rows, kscores, overall_values, summarise_scores

from .parts import make_request, make_score, make_trajectory


def test_a_summary_by_hand() -> None:
    rows = [
        BenchRow(make_request(0), make_score(1, 1, 1, 1)),  # 1.0
        BenchRow(make_request(1), make_score(0.5, 1, 0, 0)),  # .45
        BenchRow(make_request(2), make_score(1, 1, na=True)),  # .8, renormalised 1
        BenchRow(make_request(3), None, valid=False),
        BenchRow(make_request(4), None),  # the judge failed
    ]
    s = summarise_scores(rows)["all"]
    assert (s["requests"], s["n"], s["judged"], s["missing"], s["invalid_programs"], s["with_text"]) == (
        5,
        5,
        3,
        2,
        1,
        2,
    )
    assert s["overall"] == pytest.approx(2.25 / 3)
    assert s["overall_missing_zero"] == pytest.approx(2.25 / 5)
    assert s["overall_renormalised"] == pytest.approx((1 + 0.45 + 1) / 3)
    assert s["dimensions"]["text_accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert s["text_accuracy_with_text"] == pytest.approx(0.5)
    f, v, a = 2.5 / 3, 1, 2 / 3
    assert s["second_summary"] == pytest.approx(0.1 * f + 0.4 * v + 0.4 * 0.5 + 0.1 * a)


def test_splits_partition_the_rows_and_carry_their_own_counts() -> None:
    rows = [BenchRow(make_request(i), make_score(v=i % 2) if i else None) for i in range(6)]
    splits = summarise_scores(rows)["splits"]
    assert set(splits) == {"eval_type", "category", "difficulty", "half"}
    for values in splits.values():
        assert sum(s["n"] for s in values.values()) == 6
    assert list(splits["difficulty"]) == ["easy", "medium", "hard"]
    assert splits["eval_type"]["knowledge_anchored"]["overall"] == pytest.approx(1.0)
    assert splits["category"]["flags"]["missing"] == 1


def test_no_rows_and_no_judged_rows_have_no_mean() -> None:
    assert summarise_scores([])["all"]["overall"] is None
    s = summarise_scores([BenchRow(make_request(0), None, valid=False)])["all"]
    assert (s["overall"], s["overall_missing_zero"], s["second_summary"]) == (None, 0, None)


def test_without_any_text_there_is_no_second_summary() -> None:
    assert summarise_scores([BenchRow(make_request(0), make_score(na=True))])["all"]["second_summary"] is None


def test_an_invalid_program_pairs_as_zero_a_failed_judge_as_missing_and_rollouts_as_their_mean() -> None:
    requests = [make_request(i) for i in range(4)]
    answers = [
        make_trajectory(requests[0], make_score(v=0)),
        make_trajectory(requests[0], None, id="t2", rollout=1, program=None, termination="rounds"),
        make_trajectory(requests[1], None),
        make_trajectory(requests[2], make_score()),
    ]
    assert overall_values(bench_rows(requests, answers)) == {
        "q000": pytest.approx(0.3),
        "q001": None,
        "q002": pytest.approx(1.0),
        "q003": 0.0,  # no trajectory at all
    }


def test_a_stray_or_a_double_trajectory_is_refused_by_name() -> None:
    requests = [make_request(0)]
    with pytest.raises(BenchError, match="'q009', which is not in the bench"):
        bench_rows(requests, [make_trajectory(make_request(9), None)])
    twice = make_trajectory(requests[0], make_score())
    with pytest.raises(BenchError, match="two trajectories for rollout 0"):
        bench_rows(requests, [twice, twice])


def test_the_kscores_that_nights_are_compared_by_are_those_that_the_gate_pairs() -> None:
    rows = [
        BenchRow(make_request(0), make_score(1, 1, 1, 1)),
        BenchRow(make_request(1), None, valid=False),  # counts 0
        BenchRow(make_request(2), None),  # the judge failed: left out
        BenchRow(make_request(3), make_score(0.5, 1, 0, 0)),
    ]
    found = kscores(summarise_scores(rows))
    values = overall_values(rows)
    assert found["kscore/all"] == pytest.approx(sum(v for v in values.values() if v is not None) / 3)
    for row in rows:
        assert f"kscore_track/{row.request.eval_type}" in found or values[row.request.id] is None
    halves = {half: [values[r.request.id] for r in rows if r.request.half == half] for half in ("gate", "report")}
    for half, known in halves.items():
        given = [v for v in known if v is not None]
        assert found.get(f"kscore/{half}") == (pytest.approx(sum(given) / len(given)) if given else None)
    assert kscores(summarise_scores([])) == {}
