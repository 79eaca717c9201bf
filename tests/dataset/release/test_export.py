"""A dataset of ours in the public formats, and back: the same public records."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from genevolve.dataset.errors import DatasetError
from genevolve.dataset.public import SftRow, load_public, load_quarantine, load_requests, load_sft
from genevolve.dataset.release.exporting import export_dataset
from genevolve.dataset.release.importing import import_dataset
from genevolve.records import Split
from tests.dataset.release.parts import bench_row, lines, picture, put, rl_row, write_source

WITH_TRUTH: tuple[Split, ...] = ("evolve", "validation", "bench")


def test_a_built_dataset_goes_out_and_comes_back_the_same(dataset: Path, tmp_path: Path) -> None:
    written = export_dataset(dataset, tmp_path / "public")
    assert written["GenEvolve-Bench/test.jsonl"] == len(load_requests(dataset, "bench"))
    report = import_dataset(tmp_path / "public", tmp_path / "back")
    assert load_quarantine(tmp_path / "back") == []
    assert not report.left_out
    for split in WITH_TRUTH:
        assert (tmp_path / "back" / f"{split}.jsonl").read_bytes() == (dataset / f"{split}.jsonl").read_bytes()
        hidden = {"scene": None, "gold_program": None}  # of the judges, not of the public formats
        assert load_requests(tmp_path / "back", split) == [
            r.model_copy(update=hidden) for r in load_requests(dataset, split)
        ]
        for r in load_requests(dataset, split):
            assert (tmp_path / "back" / str(r.gt_image)).read_bytes() == (dataset / str(r.gt_image)).read_bytes()
    for name in ("sft", "sft_heldout"):
        for mine, back in zip(load_sft(dataset, name), load_sft(tmp_path / "back", name), strict=True):
            assert (back.id, back.request_id, back.question) == (mine.id, mine.request_id, mine.question)
            assert back.messages == mine.messages
            assert back.program is not None
            assert mine.program is not None
            assert back.program.gen_prompt == mine.program.gen_prompt
            assert back.program.reference_images == mine.program.reference_images
            assert back.program.files == tuple(f.replace(".svg", ".png") for f in mine.program.files)
            assert [(c.turn, c.name, c.arguments, c.ok) for c in back.tool_calls] == [
                (c.turn, c.name, c.arguments, c.ok) for c in mine.tool_calls
            ]
    for row in load_public(tmp_path / "back", "sft"):
        assert isinstance(row, SftRow)
        for file in row.images:
            with Image.open(tmp_path / "back" / file) as drawing:
                assert max(drawing.size) >= 256


def test_what_goes_out_are_the_public_formats(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "public")
    bench = tmp_path / "public" / "GenEvolve-Bench"
    rows = [json.loads(line) for line in (bench / "test.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"id", "question", "gt_image", "eval_type", "category", "difficulty", "half"}
    assert {r["eval_type"] for r in rows} <= {"Knowledge-Anchored", "Quality-Anchored"}
    assert all((bench / r["gt_image"]).is_file() and r["gt_image"].startswith("images/") for r in rows)
    assert parquet.read_table(bench / "test.parquet").to_pylist() == rows
    sft = tmp_path / "public" / "GenEvolve-Data-SFT"
    for name in ("train", "eval"):
        rows = [json.loads(line) for line in (sft / f"{name}.jsonl").read_text().splitlines()]
        assert parquet.read_table(sft / f"{name}.parquet").to_pylist() == rows
        assert all(m["role"] in ("system", "user", "assistant") for r in rows for m in r["messages"])
        assert all((sft / file).is_file() and not file.endswith(".svg") for r in rows for file in r["images"])
    text = "".join(p.read_text() for p in (tmp_path / "public").rglob("*.jsonl"))
    assert '"scene"' not in text
    assert "gold_program" not in text


def test_the_card_lets_the_datasets_library_load_every_part(dataset: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    written = export_dataset(dataset, tmp_path / "public")
    for part, split, file in (("bench", "test", "GenEvolve-Bench/test"), ("sft", "train", "GenEvolve-Data-SFT/train")):
        loaded = load_dataset(str(tmp_path / "public"), part, split=split, cache_dir=str(tmp_path / "cache"))
        assert len(loaded) == written[f"{file}.jsonl"]


def test_an_imported_dataset_goes_out_with_the_ids_and_columns_it_came_with(tmp_path: Path) -> None:
    source = write_source(tmp_path / "GenEvolve-Data-Bench", rl=3, bench=4)
    strange = bench_row(9, id="a b/c", meta="text", gt_image="images/case_00000.jpg")
    lines(source / "GenEvolve-Bench" / "test.jsonl", [*map(bench_row, range(4)), strange])
    import_dataset(source, tmp_path / "in")
    export_dataset(tmp_path / "in", tmp_path / "public")
    rows = [json.loads(line) for line in (tmp_path / "public/GenEvolve-Bench/test.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (source / "GenEvolve-Bench" / "test.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in r.items() if k != "half"} for r in rows] == expected
    import_dataset(tmp_path / "public", tmp_path / "again")
    for split in (*WITH_TRUTH, "sft", "sft_heldout"):
        assert load_requests(tmp_path / "again", split) == load_requests(tmp_path / "in", split)
    assert load_sft(tmp_path / "again") == load_sft(tmp_path / "in")
    for path in (tmp_path / "public").rglob("*.jsonl"):  # the Parquet beside it says the same
        path.unlink()
    import_dataset(tmp_path / "public", tmp_path / "parquet")
    assert load_requests(tmp_path / "parquet") == load_requests(tmp_path / "in")


words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=80).filter(str.strip)
free = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
row = st.fixed_dictionaries(
    {"question": words, "meta": free, "extra_info": free},
    optional={
        "eval_type": st.sampled_from(["Knowledge-Anchored", "quality_anchored", "T1"]),
        "difficulty": st.sampled_from(["easy", "hard", "?"]),
        "category": words,
    },
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(row, min_size=1, max_size=6), ids=st.sets(st.integers(0, 99) | words, min_size=6))
def test_whatever_a_bench_row_holds_it_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], ids: set[object]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    names = sorted(ids, key=str)
    full = [{"id": names[i], **r, "gt_image": "images/a.png"} for i, r in enumerate(rows)]
    lines(folder / "GenEvolve-Bench" / "test.jsonl", full)
    put(folder / "GenEvolve-Bench" / "images" / "a.png", picture(kind="PNG"))
    lines(folder / "GenEvolve-Data-RL" / "train.jsonl", [rl_row(n, gt_image="images/a.png") for n in (1, 2)])
    put(folder / "GenEvolve-Data-RL" / "images" / "a.png", picture(kind="PNG"))
    report = import_dataset(folder, folder.with_name(f"{folder.name}-in"))
    kept = report.files["GenEvolve-Bench/test.jsonl"]
    assert kept["kept"] + kept["left out"] == kept["rows"] == len(full)
    export_dataset(folder.with_name(f"{folder.name}-in"), folder.with_name(f"{folder.name}-out"))
    import_dataset(folder.with_name(f"{folder.name}-out"), folder.with_name(f"{folder.name}-again"))
    first, again = (load_requests(folder.with_name(f"{folder.name}-{n}")) for n in ("in", "again"))
    assert again == first


def test_a_folder_that_is_no_dataset_and_a_lost_picture_are_sentences(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no requests\.jsonl"):
        export_dataset(tmp_path, tmp_path / "public")
    source = write_source(tmp_path / "GenEvolve-Data-Bench")
    import_dataset(source, tmp_path / "in")
    next((tmp_path / "in" / "gt").glob("bench-*")).unlink()
    with pytest.raises(DatasetError, match="the picture cannot be read"):
        export_dataset(tmp_path / "in", tmp_path / "public")
    assert not (tmp_path / "public").exists()
    assert not list(tmp_path.glob(".public*"))
    assert Image.open(io.BytesIO(picture())).size == (40, 30)
