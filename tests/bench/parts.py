"""A small bench on disk: requests, two policies' trajectories, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from genevolve.records import Message, Program, Reference, Request, Reward, Score, Trajectory

WEIGHTS = (0.1, 0.4, 0.4, 0.1)


def make_score(f: float = 1, v: float = 1, t: float = 1, a: float = 1, na: bool = False) -> Score:
    values = (f, v, 0.5 if na else t, a)
    overall = sum(w * x for w, x in zip(WEIGHTS, values, strict=True))
    kept = [(w, x) for i, (w, x) in enumerate(zip(WEIGHTS, values, strict=True)) if not (na and i == 2)]
    renormalised = sum(w * x for w, x in kept) / sum(w for w, _ in kept)
    names = ("faithfulness", "visual_correctness", "text_accuracy", "aesthetics")
    fields = dict(zip(names, values, strict=True))
    return Score(**fields, text_accuracy_na=na, overall=round(overall, 6), overall_renormalised=renormalised)


def make_request(number: int, **given: Any) -> Request:
    fields = {
        "id": f"q{number:03d}",
        "question": f"Draw thing {number}.",
        "eval_type": "knowledge_anchored" if number % 2 else "quality_anchored",
        "category": ("flags", "animals", "food")[number % 3],
        "difficulty": ("easy", "medium", "hard")[number % 3],
        "split": "bench",
        "half": "gate" if number % 2 else "report",
        "gt_image": f"gt/q{number:03d}.png",
    }
    return Request.model_validate({**fields, **given})


def make_trajectory(request: Request, score: Score | None, **given: Any) -> Trajectory:
    answer = '<think> giraffe IMG_002</think><answer>{"gen_prompt": " The first reference image.", "reference_images": [{"img_id": "IMG_002", "note": " giraffe"}]}</answer>'  # noqa: E501
    call = '<think> find it</think><tool_call>{"name": "image_search", "arguments": {"query": " giraffe"}}</tool_call>'
    fields: dict[str, Any] = {
        "id": f"t-{request.id}",
        "request_id": request.id,
        "rollout": 0,
        "question": request.question,
        "messages": (
            Message(role="system", content="system text"),
            Message(role="user", content=request.question),
            Message(role="assistant", content=call),
            Message(role="user", content="<tool_response>\n - giraffe IMG_002\n</tool_response>"),
            Message(role="assistant", content=answer),
        ),
        "program": Program(
            gen_prompt="The first reference image, shown whole and unaltered.",
            reference_images=(Reference(img_id="IMG_002", note="giraffe"),),
            files=("images/giraffe.svg",),
        ),
        "image": f"{request.id}.png",
        "reward": Reward(image=score, total=score.overall if score else None),
    }
    return Trajectory.model_validate({**fields, **given})


def paint(path: Path, colour: str, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)
