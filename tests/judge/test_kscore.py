"""Both overall formulas and the quantisation."""

import pytest

from genevolve.judge import kscore


def test_released_and_renormalised_formulas_with_text() -> None:
    assert kscore.overall(0.5, 1, 0.5, 0, text_na=False) == (0.65, 0.65)


def test_without_text_the_released_formula_reaches_point_eight_and_the_renormalised_one() -> None:
    assert kscore.overall(1, 1, 0.5, 1, text_na=True) == (0.8, 1.0)
    assert kscore.overall(1, 0.5, 0.0, 0, text_na=True) == (0.5, 0.5)  # a T passed beside N/A is not looked at
    assert kscore.reach(text_na=True) == 0.8
    assert kscore.reach(text_na=False) == 1.0


@pytest.mark.parametrize(("raw", "bin_"), [(0, 0), (0.25, 0), (0.26, 0.5), (0.75, 0.5), (0.76, 1), (1, 1)])
def test_quantisation_gives_no_half_point_away(raw: float, bin_: float) -> None:
    assert kscore.quantise(raw) == bin_


@pytest.mark.parametrize("raw", [-0.1, 1.1, float("nan")])
def test_a_value_that_is_no_dimension_is_refused(raw: float) -> None:
    with pytest.raises(ValueError, match="KScore dimension"):
        kscore.quantise(raw)


def test_build_marks_missing_text_and_quantises() -> None:
    score = kscore.build(0.9, 0.6, None, 1.0, "why")
    assert (score.faithfulness, score.visual_correctness, score.text_accuracy, score.text_accuracy_na) == (
        1,
        0.5,
        0.5,
        True,
    )
    assert score.overall == pytest.approx(0.6)
    assert score.overall_renormalised == pytest.approx(0.4 / 0.6)
    assert kscore.build(1, 1, 0.0, 1).overall == pytest.approx(0.6)
