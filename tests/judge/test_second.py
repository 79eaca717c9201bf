"""The second judge on real pictures, its parts on their own, and a bench folder scored again."""

from __future__ import annotations

import ast
import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from genevolve.bench.rescore import rescore
from genevolve.dataset.wording import gold_prompt
from genevolve.judge.base import JudgeJob
from genevolve.judge.second import SecondJudge, copies, glyphs, likeness
from genevolve.records import Score, write_jsonl
from genevolve.render.base import RenderJob
from genevolve.render.compositor import Compositor, plan
from genevolve.scene import Scene
from tests.bench.parts import make_trajectory
from tests.tools.web import picture

from .parts import BHUTAN, CHILE, DIMENSIONS, GIRAFFE, ONE, TWO, ZEBRA, art, request, with_subject

STEMS = {
    "object:giraffe": (GIRAFFE, ZEBRA),
    "flag:bhutan": (BHUTAN, CHILE),
    "object:zebra": (ZEBRA, GIRAFFE),
    "flag:chile": (CHILE, BHUTAN),
}
"""Entity -> its picture, then its look-alikes'."""


def references(entity: str) -> Sequence[str]:
    return [art(stem).decode() for stem in STEMS[entity]]


def draw(scene: Scene, *entities: str, seed: int = 1, prompt: str | None = None) -> bytes:
    shown = entities or [s.entity for s in scene.subjects]
    files = tuple(art(STEMS[e][0]) for e in shown)
    png = Compositor().render([RenderJob("second", prompt or gold_prompt(scene), files, seed)])[0]
    assert png is not None
    return png


def score(scene: Scene, image: bytes) -> Score:
    judge = SecondJudge(references)
    found = judge.score([JudgeJob(request(scene), image, b"")])[0]
    assert found is not None, judge.reasons
    return found


def lowered(scene: Scene, image: bytes) -> list[str]:
    found, full = score(scene, image), score(scene, draw(scene))
    return [d for d in DIMENSIONS if getattr(found, d) < getattr(full, d)]


def test_gold_with_other_guesses_is_whole() -> None:
    assert score(ONE, draw(ONE, seed=5)).overall == 1.0
    two = score(TWO, draw(TWO, seed=5))
    assert (two.overall, two.overall_renormalised, two.text_accuracy_na) == (0.8, 1.0, True)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_blank_picture_gets_nothing(grey: int) -> None:
    blank = picture(size=(320, 320), colour=(grey,) * 3)
    assert score(ONE, blank).overall == 0.0
    assert score(TWO, blank).overall <= 0.25 * 0.8


def test_a_look_alike_lowers_visual_correctness_alone() -> None:
    assert lowered(ONE, draw(ONE, "object:zebra")) == ["visual_correctness"]
    assert lowered(TWO, draw(TWO, "flag:chile", "object:giraffe")) == ["visual_correctness"]


@pytest.mark.parametrize("seed", range(20, 24))
def test_a_crop_or_another_hue_lowers_visual_correctness_alone(seed: int) -> None:
    prompt = gold_prompt(ONE).replace(", shown whole and unaltered", "")
    how = plan(RenderJob("second", prompt, (art(STEMS["object:giraffe"][0]),), seed)).subjects[0].alteration
    assert lowered(ONE, draw(ONE, seed=seed, prompt=prompt)) == ([] if how == "none" else ["visual_correctness"])


@pytest.mark.parametrize("text", ["OPEN DAYY", "OPN DAY", "OEPN DAY", "OPEN DAV"])
def test_one_wrong_letter_lowers_text_accuracy_alone(text: str) -> None:
    assert lowered(ONE, draw(ONE.model_copy(update={"text": text}))) == ["text_accuracy"]


@pytest.mark.parametrize(
    "wrong",
    [
        with_subject(ONE, 0, count=2),
        with_subject(ONE, 0, position="right"),
        with_subject(ONE, 0, colour="blue"),
        ONE.model_copy(update={"light": "pink dawn"}),
    ],
)
def test_a_wrong_requirement_lowers_faithfulness_alone(wrong: Scene) -> None:
    assert lowered(ONE, draw(wrong)) == ["faithfulness"]


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
    assert lowered(TWO, draw(wrong)) == ["faithfulness"]


def test_what_cannot_be_judged_is_missing_with_a_reason_and_spoils_no_other_job() -> None:
    gold = draw(ONE)
    good = JudgeJob(request(ONE), gold, b"")
    noise = random.Random(0).randbytes(500)
    digits = request(ONE.model_copy(update={"text": "24 HOURS"}))
    jobs = [
        dataclasses.replace(good, image=b""),
        dataclasses.replace(good, image=noise),
        dataclasses.replace(good, image=gold[: len(gold) // 2]),
        dataclasses.replace(good, request=request(None)),
        dataclasses.replace(good, request=request(with_subject(ONE, 0, entity="object:unknown"))),
        dataclasses.replace(good, request=digits),
        good,
    ]
    judge = SecondJudge(references)
    assert [s is None for s in judge.score(jobs)] == [True] * 6 + [False]
    assert all("judge-test" in r for r in judge.reasons[:6])
    assert not judge.reasons[6]


def test_it_shares_nothing_with_the_first_judge_but_the_protocol_and_the_formulae() -> None:
    for file in Path(likeness.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("genevolve.judge"):
                names = {f"{node.module}.{a.name}" for a in node.names}
                allowed = ("genevolve.judge.second", "genevolve.judge.base", "genevolve.judge.kscore")
                assert all(n.startswith(allowed) for n in names), f"{file.name}: {names}"


def test_copies_of_a_drawing_in_two_parts_are_not_counted_twice() -> None:
    thumb = np.zeros((copies.THUMB, copies.THUMB, 3), dtype=np.float32)
    sticks = [copies.Unit((x, 10, x + 10, 60), None, 500, thumb) for x in (10, 25, 60, 75)]
    assert copies.copies(copies.Group(tuple(sticks)), 2) == [(10, 10, 35, 60), (60, 10, 85, 60)]
    assert len(copies.copies(copies.Group(tuple(sticks)))) == 4


def test_agreement_of_letters() -> None:
    assert glyphs.agreement("OPENDAY", "open  day") == 1.0
    assert glyphs.agreement("OEPNDAY", "OPEN DAY") == 0.5
    assert glyphs.agreement("CLOSED", "OPEN DAY") == 0.0
    assert glyphs.agreement("", "OPEN DAY") == 0.0


def test_a_bench_folder_is_scored_again_from_its_pictures(tmp_path: Path) -> None:
    bench, data = tmp_path / "bench", tmp_path / "data"
    asked = [request(ONE, id=i, split="bench", gt_image="gt.png") for i in ("a", "b", "c", "d")]
    write_jsonl(data / "requests.jsonl", asked)
    (data / "gt.png").write_bytes(draw(ONE))
    pictures = {"a": draw(ONE, seed=5), "b": draw(ONE, "object:zebra")}
    (bench / "images").mkdir(parents=True)
    for name, png in pictures.items():
        (bench / "images" / f"{name}.png").write_bytes(png)
    # The third picture is lost, the fourth request got no program.
    answers = [make_trajectory(r, None, image=f"images/{r.id}.png") for r in asked[:3]]
    answers.append(make_trajectory(asked[3], None, program=None, image=None))
    write_jsonl(bench / "blocks" / "00000.jsonl", answers)
    found = rescore(bench, data, SecondJudge(references))
    assert found == {"a": 1.0, "b": 0.6, "c": None, "d": 0.0}
