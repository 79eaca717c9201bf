"""The artifacts of a cycle: what the pictures and words are made of, and that a fault costs no night."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from flows import artifacts
from flows.artifacts import MAX_BYTES, Change, changes, gallery, gate_words, learning_curve
from genevolve.records import write_jsonl
from genevolve.workspace import Workspace
from tests.bench.parts import make_request, make_score, make_trajectory, paint

NUMBERS = {
    "cycle": "c002",
    "parent": "c001",
    "promoted": False,
    "before": 0.84,
    "after": 0.86,
    "diff": 0.02,
    "ci": [-0.01, 0.05],
    "n": 128,
    "gate": "c002 does not take the place of c001: <b>+0.01</b> on 128 gate requests.",
}
GATE = {"splits": {"category: *flags*": {"n": 30, "diff": -0.1, "low": -0.12, "high": -0.08, "fell": True}}}

PICTURE = artifacts.Picture("curve", "png", b"png", "words")


def bench(folder: Path, scores: dict[str, float | None], colour: tuple[int, int, int]) -> Path:
    """A bench folder as the stage leaves it: scores.json, blocks, images; noisy pictures, which compress badly."""
    (folder / "images").mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"all": scores}))
    played = []
    for key in scores:
        image = Image.effect_noise((320, 320), 90).convert("RGB")
        image.paste(colour, (0, 0, 40, 40))
        image.save(folder / "images" / f"{key}.png")
        request = make_request(0, id=key, question=f"Draw *{key}* <script>alert(1)</script> ![x](http://evil/{key})")
        played.append(make_trajectory(request, None, image=f"images/{key}.png"))
    (folder / "blocks").mkdir()
    write_jsonl(folder / "blocks" / "00000.jsonl", played)
    return folder


def test_the_gates_decision_in_words() -> None:
    words = gate_words(NUMBERS, GATE)
    for part in (
        "c002 is not promoted",
        "c002 does not take the place of c001: \\<b\\>",
        "category: \\*flags\\*: -0.1000 [-0.1200, -0.0800] over 30, fell",
        "c001 scores 0.8400 and c002 0.8600: difference +0.0200 [-0.0100, +0.0500]",
    ):
        assert part in words
    assert "**c002 is champion.**" in gate_words({**NUMBERS, "promoted": True}, {"words": "it is champion already"})


def test_galleries_show_the_largest_changes_and_stay_small(tmp_path: Path) -> None:
    before = {f"q{i}": 0.5 for i in range(8)} | {"gone": None}
    after = {f"q{i}": 0.5 + (i - 3) / 10 for i in range(8)} | {"gone": 0.9}
    a, b = bench(tmp_path / "a", before, (255, 0, 0)), bench(tmp_path / "b", after, (0, 0, 255))
    rows = changes(a, b)
    assert [c.id for c in rows] == ["q7", "q6", "q5", "q4", "q3", "q2", "q1", "q0"]
    picture, words = gallery(a, b, rows[:6])
    sheet = Image.open(io.BytesIO(picture))
    assert (sheet.format, len(picture) <= MAX_BYTES) == ("JPEG", True)
    red, _, blue = sheet.getpixel((14, 14))
    assert red > 150 > blue  # before on the left
    red, _, blue = sheet.getpixel((10 + 164 + 4, 14))
    assert blue > 150 > red  # after on the right
    assert words.splitlines()[0].startswith("- 0.50 to 0.90: Draw \\*q7\\*")
    assert "<script>" not in words
    assert "](http" not in words


def test_of_several_draws_the_gallery_shows_two_that_differ_as_the_means_do(tmp_path: Path) -> None:
    request = make_request(0, id="q")
    sides = []
    for side, scores in (("a", (0.9, 0.1, None)), ("b", (None, 0.5, 0.9))):
        folder = tmp_path / side
        played = []
        for rollout, value in enumerate(scores):
            paint(folder / "images" / f"{rollout}.png", ("red", "lime", "blue")[rollout], 320)
            score = None if value is None else make_score().model_copy(update={"overall": value})
            given = {"id": f"t{rollout}", "rollout": rollout, "image": f"images/{rollout}.png"}
            played.append(make_trajectory(request, score, **given))
        (folder / "blocks").mkdir()
        write_jsonl(folder / "blocks" / "00000.jsonl", played)
        sides.append(folder)
    picture, _ = gallery(sides[0], sides[1], [Change("q", 0.5, 0.7)])
    sheet = Image.open(io.BytesIO(picture))
    for x, shown in ((40, 1), (10 + 164 + 40, 1)):  # .1 to .5: of +-.2 from the means' +.2 the one that differs most
        pixel = sheet.getpixel((x, 40))
        assert max(range(3), key=lambda channel: pixel[channel]) == shown


def test_a_curve_is_drawn_from_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "evolve.csv"
    path.write_text("step,reward,validation_kscore\n1,0.5,\n2,0.6,0.8\n")
    picture = learning_curve(path)
    assert Image.open(io.BytesIO(picture)).size == (480, 240)
    assert len(picture) < 60_000
    path.write_text("step,loss\n1,2\n")
    assert learning_curve(path) == b""


def test_nothing_happens_outside_a_prefect_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("markdown", "table", "image", "link"):
        monkeypatch.setattr(artifacts, f"create_{name}_artifact", lambda *_, **__: pytest.fail("an artifact"))
    artifacts.show(NUMBERS, GATE, Workspace.private(tmp_path), "", [PICTURE])


def test_a_missing_file_costs_its_artifact_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    for name in ("markdown", "table", "image", "link"):
        monkeypatch.setattr(artifacts, f"create_{name}_artifact", lambda *_, key, **__: made.append(key))
    monkeypatch.setattr(artifacts.FlowRunContext, "get", classmethod(lambda cls: object()))
    place = Workspace.private(tmp_path)
    assert artifacts.draw(NUMBERS, place) == []
    artifacts.show(NUMBERS, GATE, place, "http://here", [PICTURE])
    assert made == ["gate", "curve", "report"]
    (tmp_path / "night").mkdir()
    found = artifacts.files({**GATE, "done": True}, place, tmp_path / "night", [PICTURE])
    assert {path.name: path.read_bytes()[:3] for path in found} == {"curve.png": b"png", "gate.json": b"{\n "}
    assert json.loads((tmp_path / "night" / "gate.json").read_text()) == GATE
    said = capsys.readouterr().err
    assert [line.split("'")[1] for line in said.splitlines()] == ["learning-curve", "gallery", "yield", "yields.json"]
