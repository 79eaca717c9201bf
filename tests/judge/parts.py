"""What the judges' tests share: pictures of the corpus, two scenes, and a request about a scene."""

from __future__ import annotations

from functools import cache
from typing import Any

from genevolve.records import Request
from genevolve.scene import Scene, Subject
from genevolve.tools import sources

GIRAFFE, ZEBRA, BHUTAN, CHILE = "1F992", "1F993", "1F1E7-1F1F9", "1F1E8-1F1F1"
EGYPT, YEMEN, PAKISTAN, POSTAL_HORN = "1F1EA-1F1EC", "1F1FE-1F1EA", "1F1F5-1F1F0", "1F4EF"
DIMENSIONS = ("faithfulness", "visual_correctness", "text_accuracy", "aesthetics")
ONE = Scene(
    subjects=(Subject(entity="object:giraffe", count=3, position="left", colour="red"),),
    text="OPEN DAY", text_place="top", light="warm sunset",
)  # fmt: skip
TWO = Scene(
    subjects=(
        Subject(entity="flag:bhutan", count=1, position="upper"),
        Subject(entity="object:giraffe", count=2, position="lower"),
    ),
    material="wooden",
    pattern="dots",
)


@cache
def art(stem: str) -> bytes:
    return next(a for a in sources.art() if a.stem == stem).path.read_bytes()


def request(scene: Scene | None, **given: Any) -> Request:
    fields = {
        "id": "judge-test",
        "question": "q",
        "eval_type": "quality_anchored",
        "category": "c",
        "difficulty": "easy",
    }
    return Request.model_validate({**fields, "split": "sft", "scene": scene, **given})


def with_subject(scene: Scene, index: int, **changes: object) -> Scene:
    subjects = list(scene.subjects)
    subjects[index] = subjects[index].model_copy(update=changes)
    return scene.model_copy(update={"subjects": tuple(subjects)})
