"""KScore: four dimensions in {0, .5, 1} and two overall formulas (method.md, section 3)."""

from __future__ import annotations

from genevolve.records import Score

WEIGHTS = {"faithfulness": 0.1, "visual_correctness": 0.4, "text_accuracy": 0.4, "aesthetics": 0.1}
TEXT_NA = 0.5
"""What the released scorer puts for text_accuracy when the request asks for no text."""


def quantise(value: float) -> float:
    """Return the nearest of {0, .5, 1}; a value exactly between two goes down, so that no half point is given away."""
    if not 0.0 <= value <= 1.0:  # also catches NaN
        raise ValueError(f"a KScore dimension lies in [0, 1], not {value}")
    return 0.0 if value <= 0.25 else 0.5 if value <= 0.75 else 1.0


def overall(
    faithfulness: float, visual_correctness: float, text_accuracy: float, aesthetics: float, text_na: bool
) -> tuple[float, float]:
    """Return (released, renormalised) overall scores.

    released: .1 F + .4 V + .4 T + .1 A with T = .5 when no text is asked (public scorer; the headline).
    renormalised: the same without T when no text is asked, the other weights rescaled to 1 (the paper's wording).
    """
    rest = (
        WEIGHTS["faithfulness"] * faithfulness
        + WEIGHTS["visual_correctness"] * visual_correctness
        + WEIGHTS["aesthetics"] * aesthetics
    )
    weight = WEIGHTS["text_accuracy"]
    released = rest + weight * (TEXT_NA if text_na else text_accuracy)
    renormalised = rest / (1.0 - weight) if text_na else released
    # Rounded so that sums of tenths compare equal; the finest step between two scores is .05.
    return round(released, 6), round(renormalised, 6)


def reach(text_na: bool) -> float:
    """Return the highest released overall a request can get: 1, or .8 when it asks for no text."""
    return overall(1.0, 1.0, 1.0, 1.0, text_na)[0]


def build(
    faithfulness: float,
    visual_correctness: float,
    text_accuracy: float | None,
    aesthetics: float,
    rationale: str = "",
) -> Score:
    """Return the Score of four raw values in [0, 1], quantised; `text_accuracy` None means no text is asked (N/A)."""
    na = text_accuracy is None
    f, v, a = quantise(faithfulness), quantise(visual_correctness), quantise(aesthetics)
    t = TEXT_NA if text_accuracy is None else quantise(text_accuracy)
    released, renormalised = overall(f, v, t, a, na)
    return Score(
        faithfulness=f,
        visual_correctness=v,
        text_accuracy=t,
        aesthetics=a,
        text_accuracy_na=na,
        overall=released,
        overall_renormalised=renormalised,
        rationale=rationale,
    )
