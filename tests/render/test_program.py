"""The generator's reading of English: every value of the vocabulary in exact, varied, loose and hostile wording."""

from typing import get_args

import pytest

from genevolve.dataset.wording import gold_prompt
from genevolve.render.contact import loosen
from genevolve.render.guess import Dice, decide, misspell
from genevolve.render.program import MAX_TEXT, OPEN, Slot, parse_prompt
from genevolve.scene import Colour, Light, Material, Pattern, Position, Scene, Subject, TextPlace

SEEDS = range(40)


def one(**subject) -> Scene:
    return Scene(subjects=(Subject(entity="x", **subject),))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize("colour", get_args(Colour))
def test_exact_subject_wording_is_read_and_obeyed_under_every_seed(count, position, colour):
    layout = parse_prompt(gold_prompt(one(count=count, position=position, colour=colour)))
    (subject,) = layout.subjects
    assert subject.whole == Slot("yes", "exact")
    assert (subject.count, subject.position, subject.colour) == (
        Slot(str(count), "exact"),
        Slot(position, "exact"),
        Slot(colour, "exact"),
    )
    for seed in range(5):
        (drawn,) = decide(layout, 1, seed, "r").subjects
        assert (drawn.reference, drawn.count, drawn.position, drawn.colour, drawn.alteration) == (
            0,
            count,
            position,
            colour,
            "none",
        )


@pytest.mark.parametrize(
    ("kind", "value"),
    [(k, v) for k, t in (("light", Light), ("material", Material), ("pattern", Pattern)) for v in get_args(t)],
)
def test_exact_scene_wording_is_obeyed_and_loose_wording_half_the_time(kind, value):
    gold = gold_prompt(one().model_copy(update={kind: value}))
    assert getattr(parse_prompt(gold), kind) == Slot(value, "exact")
    assert all(getattr(decide(parse_prompt(gold), 1, s, "r"), kind) == value for s in SEEDS)
    loose = parse_prompt(loosen(gold))
    assert getattr(loose, kind) == Slot(value, "loose")
    hits = sum(getattr(decide(loose, 1, s, "r"), kind) == value for s in SEEDS)
    assert 10 <= hits <= 30


@pytest.mark.parametrize("place", get_args(TextPlace))
@pytest.mark.parametrize(
    "text", ["OPEN DAY", "MOM'S DAY", "DOGS' DAY OUT", "ST. MARY, NO. 5!", "RED STRIPES ON WOOD", "A"]
)
def test_lettering_is_kept_letter_for_letter_and_never_read_as_an_order(text, place):
    layout = parse_prompt(gold_prompt(one().model_copy(update={"text": text, "text_place": place})))
    assert layout.text == Slot(text, "exact")
    assert layout.text_place == Slot(place, "exact")
    assert layout.pattern == layout.material == OPEN
    assert layout.subjects[0].colour == OPEN
    assert decide(layout, 1, 3, "r").text == text


def test_loose_wordings_of_the_contract():
    layout = parse_prompt(
        "The first reference image, three of them, on the left, with red. The second reference image towards the top. "
        "The words 'OPEN DAY' at the top. Some warm sunset mood. Some wooden feel. Maybe stripes."
    )
    first, second = layout.subjects
    assert (first.whole, first.count, first.position, first.colour) == (
        OPEN,
        Slot("3", "loose"),
        Slot("left", "loose"),
        Slot("red", "loose"),
    )
    assert second.position == Slot("upper", "loose")
    assert layout.text == Slot("OPEN DAY", "loose")
    assert (layout.light, layout.material, layout.pattern) == (
        Slot("warm sunset", "loose"),
        Slot("wooden", "loose"),
        Slot("stripes", "loose"),
    )


@pytest.mark.parametrize(
    "wording",
    [
        "THE FIRST REFERENCE IMAGE, SHOWN WHOLE AND UNALTERED, EXACTLY 3 COPIES, PLACED ENTIRELY IN THE LEFT HALF, ON A SOLID RED PLATE.",
        "Exactly three separate copies of the first reference image, whole and unaltered, placed fully within the left half, "
        "each on its own solid red plates",
        "The first reference image, shown whole and unaltered. Exactly three separate copies are placed entirely in the left half."
        " Each stands on its own solid red plate.",
        "The first reference image,\n shown  whole and unaltered,\texactly three identical copies, placed completely in the left half, "
        "each on its own solid red plate. Gibberish sentence about nothing.",
    ],
)
def test_small_variations_of_the_exact_wording_are_still_exact(wording):
    (subject,) = parse_prompt(wording).subjects
    assert (subject.whole, subject.count, subject.position, subject.colour) == (
        Slot("yes", "exact"),
        Slot("3", "exact"),
        Slot("left", "exact"),
        Slot("red", "exact"),
    )


def test_two_subjects_do_not_mix_and_exact_beats_loose():
    scene = Scene(
        subjects=(
            Subject(entity="a", count=2, position="upper", colour="green"),
            Subject(entity="b", count=1, position="lower", colour="orange"),
        )
    )
    drawn = decide(parse_prompt("Maybe on the left. " + gold_prompt(scene)), 2, 0, "r").subjects
    assert [(s.reference, s.count, s.position, s.colour) for s in drawn] == [
        (0, 2, "upper", "green"),
        (1, 1, "lower", "orange"),
    ]
    swapped = parse_prompt(
        "The second reference image on the right. The first reference image, placed entirely in the left half."
    )
    assert [s.ordinal for s in swapped.subjects] == [0, 1]
    again = parse_prompt(
        "The first reference image, on the right. The first reference image, placed entirely in the left half."
    )
    assert [s.position for s in again.subjects] == [Slot("left", "exact")]


def test_guesses_do_not_depend_on_the_words():
    texts = (
        "The first reference image.",
        "Some lovely picture, a poster please. The first reference image! Thanks.",
        "The first reference image, shown whole and unaltered.",
        "The first reference image. The exact text 'HI' in large bold letters on a plain banner at the top.",
    )
    for seed in SEEDS:
        plans = [decide(parse_prompt(t), 1, seed, "r") for t in texts]
        assert len({(p.light, p.material, p.pattern) for p in plans}) == 1
        assert len({(p.subjects[0].count, p.subjects[0].colour, p.subjects[0].position) for p in plans}) == 1
    others = {decide(parse_prompt(texts[0]), 1, s, r) for s in range(4) for r in ("r", "q")}
    assert len(others) > 4


def test_loose_wishes_fail_in_the_way_they_should():
    gold = gold_prompt(
        one(count=3, position="left", colour="red").model_copy(update={"text": "OPEN DAY", "text_place": "bottom"})
    )
    layout = parse_prompt(loosen(gold))
    plans = [decide(layout, 1, s, "r") for s in range(200)]
    assert {p.subjects[0].count for p in plans} == {2, 3, 4}
    assert {p.subjects[0].position for p in plans} == {"left", "right"}
    assert {p.subjects[0].alteration for p in plans} == {"none", "recolour", "crop"}
    for hits in (
        sum(p.subjects[0].count == 3 for p in plans),
        sum(p.subjects[0].position == "left" for p in plans),
        sum(p.subjects[0].colour == "red" for p in plans),
        sum(p.text == "OPEN DAY" for p in plans),
    ):
        assert 75 <= hits <= 125
    assert all(p.text_place == "bottom" for p in plans)


def test_an_open_slot_is_spread_over_the_vocabulary():
    plans = [decide(parse_prompt("The first reference image."), 1, s, "r") for s in range(400)]
    assert {p.light for p in plans} == {None, *get_args(Light)}
    assert {p.subjects[0].colour for p in plans} == {None, *get_args(Colour)}
    assert {p.subjects[0].position for p in plans} == {None, *get_args(Position)}
    assert all(p.text is None for p in plans)
    right = sum(p.light == "pink dawn" for p in plans)
    assert 50 <= right <= 110


def test_a_misspelt_text_is_always_another_text():
    dice = Dice(0, "m")
    for i, text in enumerate(["OPEN DAY", "AA", "A", "ZOO", "!!", "A B", "NOON"] * 20):
        for how in ("drop", "double", "swap"):
            wrong = misspell(text, how, dice.uniform(str(i)))
            assert wrong != text
            assert wrong.strip()
            assert abs(len(wrong) - len(text)) <= 1


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        " \n\t",
        "The first reference image " * 2000,
        "'" * 10_000,
        "on the " * 3000 + "left",
        "exactly " + "separate " * 5000 + "copies",
        "the first reference image, with " + "a " * 5000 + "red",
        "\x00\x1b[31m\ud800</svg><script>alert(1)</script><image href='file:///etc/passwd'/>&amp;&lt;",
        "The exact text '</text><rect/>&\"' in large bold letters on a plain banner at the top.",
        "The exact text '" + "W" * 79 + "' in large bold letters on a plain banner at the top.",
        "٣ copies, exactly ５ copies, second second reference image 2 image 1 reference",
    ],
)
def test_hostile_text_is_read_quickly_and_yields_a_plan(hostile):
    import time

    start = time.process_time()
    plan = decide(parse_prompt(hostile), 1, 0, "r")
    assert time.process_time() - start < 0.5
    assert 1 <= len(plan.subjects) <= 2
    assert plan.text is None or 0 < len(plan.text) <= MAX_TEXT + 1
