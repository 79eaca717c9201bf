"""The pixel judge on real pictures: gold is whole, blank is nothing, each corruption hits its own dimension, garbage is missing."""

import dataclasses
import io
import random

import pytest
from PIL import Image

from genevolve.dataset.wording import gold_prompt
from genevolve.judge import ocr
from genevolve.judge.base import JudgeJob
from genevolve.judge.pixels import PixelJudge
from genevolve.records import Score
from genevolve.render.base import RenderJob
from genevolve.render.compositor import Compositor
from genevolve.scene import Scene, Subject

from .parts import (
    BHUTAN,
    CHILE,
    DIMENSIONS,
    EGYPT,
    GIRAFFE,
    ONE,
    PAKISTAN,
    POSTAL_HORN,
    TWO,
    YEMEN,
    ZEBRA,
    art,
    request,
    with_subject,
)


def draw(prompt: str, *stems: str, seed: int = 1) -> bytes:
    png = Compositor().render([RenderJob("judge-test", prompt, tuple(art(s) for s in stems), seed)])[0]
    assert png is not None
    return png


def score(scene: Scene, image: bytes, *stems: str) -> Score:
    judge = PixelJudge()
    found = judge.score([JudgeJob(request(scene), image, draw(gold_prompt(scene), *stems, seed=0))])[0]
    assert found is not None, judge.reasons
    return found


def lowered(scene: Scene, image: bytes, *stems: str) -> list[str]:
    found = score(scene, image, *stems)
    full = score(scene, draw(gold_prompt(scene), *stems), *stems)
    assert full.overall == (1.0 if scene.text else 0.8), full
    return [d for d in DIMENSIONS if getattr(found, d) < getattr(full, d)]


def test_gold_with_other_guesses_is_whole() -> None:
    assert score(ONE, draw(gold_prompt(ONE), GIRAFFE, seed=5), GIRAFFE).overall == 1.0
    two = score(TWO, draw(gold_prompt(TWO), BHUTAN, GIRAFFE, seed=5), BHUTAN, GIRAFFE)
    assert (two.overall, two.overall_renormalised, two.text_accuracy_na) == (0.8, 1.0, True)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_blank_picture_gets_nothing(grey: int) -> None:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (320, 320), (grey, grey, grey)).save(stream, "PNG")
    assert score(ONE, stream.getvalue(), GIRAFFE).overall == 0.0
    assert score(TWO, stream.getvalue(), BHUTAN, GIRAFFE).overall <= 0.25 * 0.8


def test_a_look_alike_lowers_visual_correctness_alone() -> None:
    assert lowered(ONE, draw(gold_prompt(ONE), ZEBRA), GIRAFFE) == ["visual_correctness"]
    assert lowered(TWO, draw(gold_prompt(TWO), CHILE, GIRAFFE), BHUTAN, GIRAFFE) == ["visual_correctness"]


@pytest.mark.parametrize("seed", range(6))
def test_a_small_emblem_at_any_size_tells_look_alikes_apart(seed: int) -> None:
    scene = Scene(subjects=(Subject(entity="flag:egypt"),), light="bright daylight")
    assert score(scene, draw(gold_prompt(scene), EGYPT, seed=seed), EGYPT).visual_correctness == 1
    assert score(scene, draw(gold_prompt(scene), YEMEN, seed=seed), EGYPT).visual_correctness < 1


@pytest.mark.parametrize("colour", ["green", "yellow", "purple"])
@pytest.mark.parametrize("stem", [PAKISTAN, POSTAL_HORN])
def test_art_with_holes_or_of_its_plates_colour_is_still_itself(stem: str, colour: str) -> None:
    scene = Scene(subjects=(Subject(entity="x", count=2, colour="red"),), light="pink dawn")
    other = with_subject(scene, 0, colour=colour)
    assert lowered(scene, draw(gold_prompt(other), stem, seed=3), stem) == ["faithfulness"]


def test_an_unasked_second_subject_does_not_hedge_the_choice() -> None:
    hedge = (
        gold_prompt(ONE) + " The second reference image, shown whole and unaltered, placed entirely in the right half."
    )
    assert "visual_correctness" in lowered(ONE, draw(hedge, GIRAFFE, ZEBRA), GIRAFFE)


@pytest.mark.parametrize("seed", range(20, 26))
def test_a_crop_or_another_hue_lowers_visual_correctness_alone(seed: int) -> None:
    from genevolve.render.compositor import plan

    prompt = gold_prompt(ONE).replace(", shown whole and unaltered", "")
    altered = plan(RenderJob("judge-test", prompt, (art(GIRAFFE),), seed)).subjects[0].alteration
    expected = [] if altered == "none" else ["visual_correctness"]
    assert lowered(ONE, draw(prompt, GIRAFFE, seed=seed), GIRAFFE) == expected


@pytest.mark.parametrize("text", ["OPEN DAYY", "OPN DAY", "OEPN DAY", "OPEN DAV"])
def test_one_wrong_letter_lowers_text_accuracy_alone(text: str) -> None:
    wrong = ONE.model_copy(update={"text": text})
    assert lowered(ONE, draw(gold_prompt(wrong), GIRAFFE), GIRAFFE) == ["text_accuracy"]


@pytest.mark.parametrize(
    "wrong",
    [
        with_subject(ONE, 0, count=2),
        with_subject(ONE, 0, count=4),
        with_subject(ONE, 0, position="right"),
        with_subject(ONE, 0, colour="blue"),
        with_subject(ONE, 0, colour=None),
        ONE.model_copy(update={"light": "pink dawn"}),
    ],
)
def test_a_wrong_requirement_lowers_faithfulness_alone(wrong: Scene) -> None:
    if wrong.subjects[0].colour is None:  # seed 4 guesses another plate or none where the text is silent
        assert "faithfulness" in lowered(ONE, draw(gold_prompt(wrong), GIRAFFE, seed=4), GIRAFFE)
    else:
        assert lowered(ONE, draw(gold_prompt(wrong), GIRAFFE), GIRAFFE) == ["faithfulness"]


@pytest.mark.parametrize(
    "wrong",
    [
        with_subject(with_subject(TWO, 0, position="lower"), 1, position="upper"),
        with_subject(TWO, 1, count=3),
        TWO.model_copy(update={"material": "marble"}),
        TWO.model_copy(update={"pattern": "stripes"}),
    ],
)
def test_a_wrong_requirement_of_two_subjects_lowers_faithfulness_alone(wrong: Scene) -> None:
    assert lowered(TWO, draw(gold_prompt(wrong), BHUTAN, GIRAFFE), BHUTAN, GIRAFFE) == ["faithfulness"]


def test_what_cannot_be_judged_is_missing_with_a_reason_and_spoils_no_other_job() -> None:
    gold = draw(gold_prompt(ONE), GIRAFFE)
    noise = random.Random(0).randbytes(500)
    judge = PixelJudge()
    good = JudgeJob(request(ONE), gold, gold)
    jobs = [
        dataclasses.replace(good, image=noise),
        dataclasses.replace(good, image=gold[: len(gold) // 2]),
        dataclasses.replace(good, gt=noise),
        JudgeJob(request(None), gold, gold),
        good,
    ]
    found = judge.score(jobs)
    assert [s is None for s in found] == [True, True, True, True, False]
    assert all("judge-test" in r for r in judge.reasons[:4])
    assert not judge.reasons[4]
    assert "ground truth" in judge.reasons[2]


@pytest.mark.parametrize("size", [(640, 640), (160, 160), (320, 321)])
def test_a_picture_of_another_size_is_refused_with_a_sentence(size: tuple[int, int]) -> None:
    gold = draw(gold_prompt(ONE), GIRAFFE)
    with Image.open(io.BytesIO(gold)) as picture:
        stream = io.BytesIO()
        picture.resize(size).save(stream, "PNG")
    judge, good = PixelJudge(), JudgeJob(request(ONE), gold, gold)
    other = stream.getvalue()
    found = judge.score([dataclasses.replace(good, image=other), dataclasses.replace(good, gt=other), good])
    assert [s is None for s in found] == [True, True, False]
    told = f"the picture has {size[0]} x {size[1]} pixels; this judge reads 320 x 320 alone"
    assert judge.reasons == [f"request judge-test: {told}", f"request judge-test: ground truth: {told}", ""]


def test_a_failing_reader_of_text_leaves_the_sample_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> list[ocr.Line]:
        raise RuntimeError("no model file")

    monkeypatch.setattr(ocr, "read", broken)
    gold = draw(gold_prompt(ONE), GIRAFFE)
    judge = PixelJudge()
    assert judge.score([JudgeJob(request(ONE), gold, gold)]) == [None]
    assert "no model file" in judge.reasons[0]


def test_text_accuracy_rules() -> None:
    assert ocr.accuracy("open  day", "OPEN DAY") == 1.0
    assert ocr.accuracy("OPEN DAV", "OPEN DAY") == 0.5
    assert ocr.accuracy("GRAND OEPNING", "GRAND OPENING") == 0.5
    assert ocr.accuracy("CLOSED", "OPEN DAY") == 0.0
    assert ocr.accuracy("", "OPEN DAY") == 0.0


def test_scores_are_the_same_every_time() -> None:
    image = draw(gold_prompt(ONE), ZEBRA)
    assert score(ONE, image, GIRAFFE) == score(ONE, image, GIRAFFE)
