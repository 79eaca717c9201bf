"""The estimate against sums one can do by hand."""

from __future__ import annotations

import pytest

from genevolve.ablation.progress import pace, seconds_left

ARM = {"evolve": 100, "bench": 10}


def test_a_pace_is_of_stages_that_were_run_and_a_further_bench_goes_at_that_of_the_bench() -> None:
    runs = [({"evolve": 200.0, "bench": 10.0}, ARM), ({"evolve": 210.0}, ARM), ({}, {"cold_start": 1000})]
    assert pace(runs) == {"evolve": pytest.approx(2.05), "bench": 1.0}
    assert pace([]) == {}
    cut_off = ({"evolve": 5.0}, ARM)
    assert pace([*runs, cut_off])["evolve"] == 2.0
    assert seconds_left([], [{"bench-other": 10}], {"bench": 2.0}, 1) == 20.0


def test_what_is_left_goes_to_the_first_free_process_and_is_unknown_without_a_pace() -> None:
    known = {"evolve": 2.0, "bench": 1.0}  # an arm takes 210 s
    assert seconds_left([], [ARM] * 3, known, 2) == 420.0, "three arms by two: the third waits for the first"
    assert seconds_left([(ARM, 200.0), (ARM, 10.0)], [ARM], known, 2) == 220.0
    assert seconds_left([(ARM, 300.0)], [], known, 1) == 0.0, "longer under way than thought"
    assert seconds_left([({}, 1.0)], [{"bench": 10}], known, 1) == 10.0, "a cold start that is there takes no time"
    assert seconds_left([({"cold_start": 5}, 1.0)], [ARM], known, 1) is None
