"""GenEvolve-Data-Bench becomes a dataset folder: every record there or quarantined, splits that do not leak."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from genevolve.dataset.errors import DatasetError
from genevolve.dataset.public import SftRow, load_public, load_quarantine, load_requests, load_sft
from genevolve.dataset.release.importing import import_dataset
from genevolve.records import Split
from tests.dataset.release.parts import bench_row, lines, picture, put, rl_row, sft_row, write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "GenEvolve-Data-Bench")


def test_a_whole_source_becomes_a_dataset_that_the_stages_can_load(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = import_dataset(source, out)
    assert report.splits == {"sft": 4, "sft_heldout": 1, "evolve": 9, "validation": 1, "bench": 6}
    assert load_quarantine(out) == []
    bench = load_requests(out, "bench")
    assert [r.id for r in bench] == [f"bench-{n}" for n in range(6)]
    first = bench[0]
    assert (first.eval_type, first.category, first.difficulty) == (
        "quality_anchored",
        "architecture_landmark",
        "medium",
    )
    assert first.scene is None
    assert first.gold_program is None
    for r in load_requests(out):
        if r.gt_image is not None:
            assert (out / r.gt_image).is_file()
    rl = load_requests(out, "evolve")[0]
    assert (out / str(rl.gt_image)).read_bytes() == picture(int(rl.id.removeprefix("rl-")))  # the very bytes
    assert (rl.eval_type, rl.category) == (None, None)

    trajectory = load_sft(out)[0]
    assert trajectory.id == "traj_00000-0"
    assert [c.name for c in trajectory.tool_calls] == ["image_search"]
    assert [row["img_id"] for row in trajectory.tool_calls[0].result] == ["IMG_001", "IMG_002"]
    assert trajectory.program is not None
    assert trajectory.program.files == ("images/traj_00000/IMG_002.jpg",)
    row = load_public(out, "sft")[0]
    assert isinstance(row, SftRow)
    assert row.images == ("images/traj_00000/IMG_001.jpg", "images/traj_00000/IMG_002.jpg")
    assert (out / row.images[0]).read_bytes() == picture(1)

    note = json.loads((out / "source.jsonl").read_text().splitlines()[2])
    assert note["columns"]["prompt_pool_index"] == 502
    assert note["columns"]["id"] == 2
    assert report.columns["bench"] == Counter(prompt_pool_index=6, meta=6, extra_info=6)
    yields = {y["stage"]: (y["in"], y["kept"]) for y in json.loads((out / "yields.json").read_text())}
    assert yields["import: read"] == (21, 21)
    assert yields["split: bench"] == (6, 6)


def test_the_same_source_gives_the_same_bytes_and_halves_that_share_the_tracks(tmp_path: Path) -> None:
    source = write_source(tmp_path / "GenEvolve-Data-Bench", rl=60, bench=24)
    for name in ("a", "b"):
        import_dataset(source, tmp_path / name)
    a, b = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "ab"
    )
    assert a == b
    bench = load_requests(tmp_path / "a", "bench")
    halves = Counter((r.eval_type, r.half) for r in bench)
    assert halves == {
        (t, h): n for t, n in (("quality_anchored", 4), ("knowledge_anchored", 8)) for h in ("gate", "report")
    }
    validation = load_requests(tmp_path / "a", "validation")
    assert len(validation) == 3  # 60 * 129 / 2575
    import_dataset(source, tmp_path / "c", validation=10)
    assert len(load_requests(tmp_path / "c", "validation")) == 10


def test_nothing_that_trains_repeats_a_bench_request(source: Path, tmp_path: Path) -> None:
    asked = bench_row(3)["question"]
    lines(
        source / "GenEvolve-Data-RL" / "train.jsonl",
        [
            rl_row(0),
            rl_row(1, prompt=asked),
            rl_row(2, prompt=asked + " Thanks!"),
            rl_row(3, prompt=rl_row(0)["prompt"]),
        ],
    )
    copied = sft_row(0)
    copied["messages"][1]["content"] = asked.upper()
    lines(source / "GenEvolve-Data-SFT" / "train.jsonl", [copied, sft_row(1)])
    (source / "GenEvolve-Bench" / "images" / "case_00003.jpg").unlink()  # not even when the bench row itself is lost
    report = import_dataset(source, tmp_path / "out")
    reasons = {(q.file, q.row): q.reason for q in load_quarantine(tmp_path / "out")}
    rl, sft = "GenEvolve-Data-RL/train.jsonl", "GenEvolve-Data-SFT/train.jsonl"
    assert reasons[(rl, 2)] == f"{rl}, line 2, field 'question': a near-duplicate of a bench request: bench-3"
    assert "a near-duplicate of a bench request" in reasons[(rl, 3)]
    assert "the same question twice: first as rl-0" in reasons[(rl, 4)]
    assert "a near-duplicate of a bench request" in reasons[(sft, 1)]
    assert reasons[("GenEvolve-Bench/test.jsonl", 4)].endswith("'gt_image': no such file: images/case_00003.jpg")
    assert len(reasons) == 5
    assert report.left_out["question: a near-duplicate of a bench request"] == 3


def test_rl_rows_that_the_source_holds_out_validate_but_only_beside_the_bench(source: Path, tmp_path: Path) -> None:
    """The RL part's eval split is the pool that the bench was taken from: most of it are bench requests."""
    rows = [rl_row(100 + n, prompt=bench_row(n)["question"], gt_image="images/case_00001.jpg") for n in range(6)]
    lines(source / "GenEvolve-Data-RL" / "eval.jsonl", [*rows, rl_row(200, gt_image="images/case_00002.jpg")])
    report = import_dataset(source, tmp_path / "out", validation=2)
    validation = [r.id for r in load_requests(tmp_path / "out", "validation")]
    assert validation[0] == "rl-200"
    assert len(validation) == 2
    assert report.files["GenEvolve-Data-RL/eval.jsonl"] == Counter(rows=7, kept=1, **{"left out": 6})

    for path in (source / "GenEvolve-Bench").glob("*.jsonl"):
        path.unlink()
    alone = import_dataset(source, tmp_path / "alone")
    assert alone.left_out["held out by its source, and no bench to tell it from"] == 7
    assert not {"rl-100", "rl-200"} & {r.id for r in load_requests(tmp_path / "alone")}


def test_ids_that_meet_are_told_apart_and_doubles_are_refused(source: Path, tmp_path: Path) -> None:
    lines(
        source / "GenEvolve-Bench" / "test.jsonl", [bench_row(0, id="case_1"), bench_row(1, id="0"), bench_row(2, id=0)]
    )
    lines(
        source / "GenEvolve-Data-RL" / "train.jsonl",
        [rl_row(0, id="case_1"), rl_row(1, id="a b/ü"), rl_row(2, id=None), rl_row(3, id=True), rl_row(4, id="..")],
    )
    import_dataset(source, tmp_path / "out", validation=0)
    ids = [r.id for r in load_requests(tmp_path / "out", "bench")]
    assert ids == ["case_1", "bench-0"]
    other = [r.id for r in load_requests(tmp_path / "out", "evolve")]
    assert other[0] == "rl-case_1"
    assert other[2] == "rl-row-3"
    assert all(i.startswith("rl-") for i in other)
    reasons = [q.reason for q in load_quarantine(tmp_path / "out")]
    assert reasons[0].endswith("'id': an id that is there twice: bench-0, first in GenEvolve-Bench/test.jsonl, line 2")
    assert reasons[1].endswith("'id': not a string or a whole number: bool")


@pytest.mark.parametrize("embed", [False, True])
def test_parquet_gives_the_same_records_as_jsonl_with_paths_or_with_pictures_inside(
    source: Path, tmp_path: Path, embed: bool
) -> None:
    import_dataset(source, tmp_path / "jsonl")
    for path in sorted(source.rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if embed and "gt_image" in row:
                row["gt_image"] = {
                    "bytes": (path.parent / row["gt_image"]).read_bytes(),
                    "path": Path(row["gt_image"]).name,
                }
            if embed and "images" in row:
                row["images"] = [{"bytes": (path.parent / p).read_bytes(), "path": Path(p).name} for p in row["images"]]
                row["id"] = Path(json.loads(path.read_text().splitlines()[rows.index(row)])["images"][0]).parent.name
        parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet"))
        path.unlink()
    report = import_dataset(source, tmp_path / "parquet")
    assert all(name.endswith(".parquet") for name in report.files)
    splits: tuple[Split, ...] = ("sft", "sft_heldout", "evolve", "validation", "bench")
    for split in splits:
        assert load_requests(tmp_path / "parquet", split) == load_requests(tmp_path / "jsonl", split)
        assert load_public(tmp_path / "parquet", split) == load_public(tmp_path / "jsonl", split)
    assert load_sft(tmp_path / "parquet") == load_sft(tmp_path / "jsonl")
    files = {p.relative_to(tmp_path / "jsonl") for p in (tmp_path / "jsonl").rglob("*.jpg")}
    assert files == {p.relative_to(tmp_path / "parquet") for p in (tmp_path / "parquet").rglob("*.jpg")}


def test_jsonl_is_preferred_and_another_count_in_parquet_is_said(source: Path, tmp_path: Path) -> None:
    folder = source / "GenEvolve-Bench"
    parquet.write_table(pyarrow.Table.from_pylist([bench_row(n) for n in range(9)]), folder / "test.parquet")
    put(folder / "notes.jsonl", "{}\n")
    report = import_dataset(source, tmp_path / "out")
    assert report.splits["bench"] == 6
    assert "GenEvolve-Bench/test.jsonl has 6 lines, its Parquet 9 rows" in report.notes
    assert any(note.startswith("GenEvolve-Bench/notes.jsonl is not read: its name") for note in report.notes)


@pytest.mark.parametrize("layout", ["one folder", "flat", "json", "shards"])
def test_near_misses_of_the_layout_are_read(source: Path, tmp_path: Path, layout: str) -> None:
    bench = source / "GenEvolve-Bench"
    given = source
    if layout == "one folder":
        given = bench
    elif layout == "flat":
        given = tmp_path / "flat"
        for name, part in (("bench", "GenEvolve-Bench/test"), ("rl_train", "GenEvolve-Data-RL/train")):
            put(given / f"{name}.jsonl", (source / f"{part}.jsonl").read_bytes())
        for path in [*bench.rglob("*.jpg"), *(source / "GenEvolve-Data-RL").rglob("*.jpg")]:
            put(given / "images" / path.name, path.read_bytes())
    elif layout == "json":
        (bench / "test.jsonl").unlink()
        put(bench / "test.json", json.dumps([bench_row(n) for n in range(6)]))
    else:
        (bench / "test.jsonl").unlink()
        for i in (0, 1):
            rows = [bench_row(n) for n in range(3 * i, 3 * i + 3)]
            (bench / "data").mkdir(exist_ok=True)
            parquet.write_table(pyarrow.Table.from_pylist(rows), bench / "data" / f"test-0000{i}-of-00002.parquet")
    report = import_dataset(given, tmp_path / "out")
    assert report.splits["bench"] == 6
    assert not report.left_out


def test_values_in_other_words_are_kept_aside_and_said(source: Path, tmp_path: Path) -> None:
    odd = bench_row(0, eval_type="T1", difficulty="brutal", category=["a"])
    old = {
        k: v
        for k, v in bench_row(1).items()
        if k not in ("eval_type", "category", "difficulty", "gt_image", "question")
    }
    old |= {
        "prompt": "An older row says it in its meta, and calls the question a prompt.",
        "meta": {
            "eval_type": "quality anchored",
            "category": "food",
            "difficulty": "Easy",
            "gt_image": "images/case_00001.jpg",
        },
    }
    lines(source / "GenEvolve-Bench" / "test.jsonl", [odd, old])
    report = import_dataset(source, tmp_path / "out")
    first, second = load_requests(tmp_path / "out", "bench")
    assert (first.eval_type, first.difficulty, first.category) == (None, None, None)
    assert (second.eval_type, second.difficulty, second.category) == ("quality_anchored", "easy", "food")
    assert any("eval_type 'T1' is no known track" in note for note in report.notes)
    kept = json.loads((tmp_path / "out" / "source.jsonl").read_text().splitlines()[0])
    assert kept["columns"]["eval_type"] == "T1"


def test_an_output_that_is_not_ours_to_write_is_refused(source: Path, tmp_path: Path) -> None:
    put(tmp_path / "there" / "file", "x")
    put(tmp_path / "data.dvc", "outs: []")
    for out, says in (
        (tmp_path / "there", "is there already"),
        (source / "inside", "lies inside"),
        (tmp_path / "data" / "public", "which DVC owns"),
    ):
        with pytest.raises(DatasetError, match=says):
            import_dataset(source, out)
    with pytest.raises(DatasetError, match="there is no such folder"):
        import_dataset(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DatasetError, match="holds no GenEvolve-Data: expected GenEvolve-Data-SFT"):
        import_dataset(tmp_path / "there", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "GenEvolve-Data-Bench",
        "data.dvc",
        "there",
    ]  # no partial folder


def test_questions_in_other_scripts_are_not_all_near_duplicates(source: Path, tmp_path: Path) -> None:
    questions = [
        "画一座灯塔，旁边有三只海鸥。",
        "画一个茶壶，放在木桌上，光线温暖。",
        "東京駅の前に立つ二人の旅行者を描いてください。",
    ]
    rows = [bench_row(n, question=q) for n, q in enumerate(questions[:1])]
    lines(source / "GenEvolve-Bench" / "test.jsonl", rows)
    lines(source / "GenEvolve-Data-RL" / "train.jsonl", [rl_row(n, prompt=q) for n, q in enumerate(questions)])
    report = import_dataset(source, tmp_path / "out", validation=0)
    assert report.splits["evolve"] == 2
    assert report.left_out == Counter({"question: a near-duplicate of a bench request": 1})


def test_the_commonest_system_message_is_kept_as_a_prompt_file(source: Path, tmp_path: Path) -> None:
    path = source / "GenEvolve-Data-SFT" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["messages"][0]["content"] = "Another prompt."
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "out"
    report = import_dataset(source, out)
    assert (out / "system_prompt.md").read_text() == "You are a helpful assistant for grounding prompts."
    said = list(report.lines())
    assert "system prompts of SFT: 2; the commonest, of 4 of 5 conversations, is system_prompt.md" in said
    assert "observations of SFT as policy.dialogue=release words them: 5 conversations" in said
    kept = json.loads((out / "report.json").read_text())
    assert (kept["system_prompts"], kept["dialogues"]) == ({"distinct": 2, "commonest": 4}, {"release": 5})
