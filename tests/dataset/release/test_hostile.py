"""Files of strangers: what is broken or meant badly is named with its place, and costs itself alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve.dataset.public import load_quarantine, load_requests
from genevolve.dataset.release import rows
from genevolve.dataset.release.importing import import_dataset
from genevolve.dataset.release.pictures import PictureError, clean_path, decode, load_picture
from genevolve.dataset.release.rows import Fault, Row, read_rows
from genevolve.dataset.release.turns import read_turns
from genevolve.records import Message
from tests.dataset.release.parts import bench_row, conversation, lines, picture, put, rl_row, sft_row, write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "GenEvolve-Data-Bench")


def test_every_bad_line_is_named_and_the_good_ones_are_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LONGEST_LINE", 20_000)
    bad = {
        '{"id": 7, "question": "cut off': "not JSON: Unterminated string",
        "[1, 2]": "not a JSON object: list",
        '{"id": 7, "id": 8}': "a JSON key is written twice",
        '{"id": 7, "x": NaN}': "not JSON: NaN is no JSON value",
        '{"id": 7, "x": ' + "[" * 9000 + "]" * 9000 + "}": "nested too deeply",
        '{"id": 7, "x": ' + "9" * 9000 + "}": "a number that is too long",
        '{"id": 7, "question": "' + "x" * 20_000 + '"}': "line too long",
        json.dumps(bench_row(7, question="")): "field 'question': missing",
        json.dumps(bench_row(7, question=["a"])): "field 'question': not text: list",
        json.dumps(bench_row(7, question="x" * 4001)): "field 'question': too long: 4001 characters",
        json.dumps(bench_row(7, question="\ud800")): "field 'question': not valid Unicode",
        json.dumps(bench_row(7, gt_image=None)): "field 'gt_image': missing",
    }
    lines(source / "GenEvolve-Bench" / "test.jsonl", [bench_row(0), *bad, "", bench_row(1)])
    with (source / "GenEvolve-Bench" / "test.jsonl").open("ab") as stream:
        stream.write(b'{"id": "\xff"}\n')
    import_dataset(source, tmp_path / "out")
    assert [r.id for r in load_requests(tmp_path / "out", "bench")] == ["bench-0", "bench-1"]
    left = {q.row: q for q in load_quarantine(tmp_path / "out")}
    for number, says in enumerate(bad.values(), 2):
        assert f"GenEvolve-Bench/test.jsonl, line {number}" in left[number].reason
        assert says in left[number].reason
    assert "not UTF-8 text" in left[len(bad) + 4].reason
    assert len(left) == len(bad) + 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"messages": None}, "field 'messages': missing"),
        ({"messages": "[1"}, "field 'messages': not JSON"),
        ({"messages": conversation(0)[:2]}, "field 'messages': not a list of 3 to 200 messages"),
        (
            {"messages": [*conversation(0)[:-1], {"role": "tool", "content": "x"}]},
            "'messages.4.role': not system, user",
        ),
        ({"messages": [*conversation(0)[1:], {"role": "user", "content": "x"}]}, "'messages': roles do not alternate"),
        ({"messages": [*conversation(0)[:-1], {"role": "assistant", "content": "done"}]}, "holds no <answer>"),
        (
            {"messages": [{"role": "system", "content": [{"type": "image"}]}, *conversation(0)[1:]]},
            "content': not text",
        ),
        ({"images": []}, "'images': not a list of 1 to 400 pictures"),
        ({"images": ["/etc/passwd"]}, "'images.0': an absolute path: /etc/passwd"),
        ({"images": ["images/../../secret.png"]}, "'images.0': a path that leads out of the folder"),
        ({"images": ["C:\\secret.png"]}, "'images.0': an absolute path"),
        ({"images": ["images/traj_00000/IMG_001.jpg", "images/none.jpg"]}, "'images.1': no such file"),
    ],
)
def test_a_bad_conversation_is_named_by_field(
    source: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    lines(source / "GenEvolve-Data-SFT" / "train.jsonl", [sft_row(1), sft_row(0, **change)])
    report = import_dataset(source, tmp_path / "out")
    assert report.splits["sft"] == 1
    (left,) = load_quarantine(tmp_path / "out")
    assert left.file == "GenEvolve-Data-SFT/train.jsonl"
    assert left.row == 2
    assert says in left.reason


def test_no_picture_leads_out_of_the_folder_hangs_or_bursts(source: Path, tmp_path: Path) -> None:
    images = source / "GenEvolve-Data-RL" / "images"
    secret = put(tmp_path / "secret.png", picture(1, kind="PNG"))
    (images / "link.png").symlink_to(secret)
    (images / "out").symlink_to(tmp_path)
    os.mkfifo(images / "fifo.png")
    put(images / "text.png", "not a picture")
    put(images / "drawing.svg", '<svg xmlns="http://www.w3.org/2000/svg"/>')
    put(images / "cut.png", picture(2, (400, 400), "PNG")[:-200])
    bomb = bytearray(picture(3, kind="PNG"))
    bomb[16:24] = (60000).to_bytes(4, "big") * 2  # width and height of the header
    put(images / "bomb.png", bytes(bomb))
    put(images / "thin.png", picture(4, (4000, 9), "PNG"))
    wanted = {
        "images/link.png": "a link",
        "images/out/secret.png": "a link",
        "images/fifo.png": "not a plain file",
        "images": "",
        "images/text.png": "not a JPEG, PNG, WEBP or GIF picture",
        "images/drawing.svg": "not a JPEG, PNG, WEBP or GIF picture",
        "images/cut.png": "a broken picture",
        "images/bomb.png": "",
        "images/thin.png": "too thin or too small",
        "../secret.png": "a path that leads out of the folder",
        str(secret): "an absolute path",
        "~/secret.png": "an absolute path",
    }
    asked = [rl_row(n, gt_image=path) for n, path in enumerate(wanted)]
    lines(source / "GenEvolve-Data-RL" / "train.jsonl", [*asked, rl_row(99, gt_image="images/case_00001.jpg")])
    began = time.monotonic()
    import_dataset(source, tmp_path / "out", validation=0)
    assert time.monotonic() - began < 20
    assert [r.id for r in load_requests(tmp_path / "out", "evolve")] == ["rl-99"]
    left = {q.row: q.reason for q in load_quarantine(tmp_path / "out")}
    for number, says in enumerate(wanted.values(), 1):
        assert f"line {number}, field 'gt_image': {says}" in left[number]
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    assert all(p.read_bytes() != secret.read_bytes() for p in (tmp_path / "out").rglob("*.png"))


def test_a_data_file_that_is_a_link_is_not_followed(source: Path, tmp_path: Path) -> None:
    train = source / "GenEvolve-Data-RL" / "train.jsonl"
    train.rename(tmp_path / "elsewhere.jsonl")
    train.symlink_to(tmp_path / "elsewhere.jsonl")
    report = import_dataset(source, tmp_path / "out")
    assert report.splits["evolve"] == 0
    assert any("train.jsonl is a link and is not read" in note for note in report.notes)


def test_bytes_that_are_no_parquet_cost_their_file_alone(source: Path, tmp_path: Path) -> None:
    (source / "GenEvolve-Data-RL" / "train.jsonl").unlink()
    put(source / "GenEvolve-Data-RL" / "train.parquet", b"PAR1" + b"\x00" * 100 + b"PAR1")
    put(source / "GenEvolve-Bench" / "extra_test.json", '{"not": "an array"}')
    report = import_dataset(source, tmp_path / "out")
    left = {q.file: q for q in load_quarantine(tmp_path / "out")}
    assert left["GenEvolve-Data-RL/train.parquet"].row == 0
    assert "not Parquet, or damaged from here on" in left["GenEvolve-Data-RL/train.parquet"].reason
    assert left["GenEvolve-Bench/extra_test.json"].reason.endswith("not a JSON array: dict")
    assert report.splits["bench"] == 6


@given(st.text(max_size=60))
def test_a_clean_path_never_leaves_its_folder(text: str) -> None:
    try:
        clean = clean_path(text)
    except PictureError:
        return
    assert not Path(clean).is_absolute()
    assert ".." not in Path(clean).parts
    assert (Path("/root/folder") / clean).is_relative_to("/root/folder")
    assert clean_path(clean) == clean


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_or_the_decoder_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "train.jsonl"
    path.write_bytes(data)
    assert all(isinstance(row, (Row, Fault)) for row in read_rows(path, "train.jsonl"))
    with pytest.raises(PictureError):
        decode(data)
    with pytest.raises(PictureError):
        load_picture((path.parent,), path.name)


def test_an_endless_row_of_tags_takes_no_time() -> None:
    text = "<tool_call>{" * 30_000
    began = time.monotonic()
    played = read_turns([Message(role="assistant", content=text)], {})
    assert played.program is None
    assert played.refused
    assert time.monotonic() - began < 2
