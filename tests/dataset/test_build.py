"""GenEvolve-Data is built from a seed: the same bytes every time, disjoint splits, and every left-out record has its reason."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from genevolve.agent.system import GUIDE_TITLE
from genevolve.dataset.audit import Audit
from genevolve.dataset.build import quotas
from genevolve.dataset.errors import DatasetError
from genevolve.dataset.public import BenchRow, RlRow, SftRow, load_public, load_quarantine, load_requests, load_sft
from genevolve.errors import SettingsError
from genevolve.profiles import load
from genevolve.records import Split, read_jsonl
from genevolve.settings import Settings
from genevolve.stages import build as stage
from genevolve.tools.world import World

AGAIN = """
import sys
from pathlib import Path
from genevolve.settings import Settings
from genevolve.stages.build import make_dataset
make_dataset(Settings.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_built_twice_it_is_the_same_bytes_whatever_the_hash_seed(
    dataset: Path, settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    out.mkdir()
    values = settings.model_dump(mode="json")
    values["distill"] = {k: v for k, v in values["distill"].items() if k not in ("steps", "temperature", "seed")}
    command = [sys.executable, "-c", AGAIN, json.dumps(values), str(dataset / "world"), str(out)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "77"}, capture_output=True)
    first = {name: d for name, d in digests(dataset).items() if not name.startswith("world/") and name != "report.json"}
    assert digests(out) == first


def test_every_split_has_its_size_and_its_share_of_tracks(dataset: Path, settings: Settings) -> None:
    requests = load_requests(dataset)
    sizes = settings.dataset
    for split in get_args(Split):
        rows = [r for r in requests if r.split == split]
        assert len(rows) == getattr(sizes, split), split
        knowledge = sum(r.eval_type == "knowledge_anchored" for r in rows)
        assert knowledge == round(0.55 * len(rows))
        assert all(r.id.startswith(r.eval_type[0]) for r in rows)
    assert len({r.id for r in requests}) == len(requests) == len({r.question for r in requests})


def test_no_entity_is_shared_and_no_twin_is_asked_for(dataset: Path) -> None:
    by_split = {
        s: {x.entity for r in load_requests(dataset, s) if r.scene for x in r.scene.subjects} for s in get_args(Split)
    }
    everything = [e for entities in by_split.values() for e in entities]
    assert max(Counter(everything).values()) == 1
    assert not {"flag:chad", "flag:romania", "flag:monaco", "flag:indonesia"} & set(everything)


def test_the_halves_of_the_bench_are_equal_and_fixed(dataset: Path) -> None:
    bench = load_requests(dataset, "bench")
    assert Counter(r.half for r in bench) == {"gate": 3, "report": 3}
    for half in ("gate", "report"):
        assert len({r.eval_type for r in bench if r.half == half}) == 2
    assert all(r.half is None for s in ("sft", "evolve", "validation") for r in load_requests(dataset, s))


def test_requests_never_name_tools_and_hide_what_a_fact_stands_for(dataset: Path) -> None:
    world = World.open(dataset / "world")
    for r in load_requests(dataset):
        assert not any(w in r.question.lower() for w in ("image_search", "query_knowledge", "reference image", "img_"))
        assert r.scene is not None
        entities = [world.entity(s.entity) for s in r.scene.subjects]
        clued = [e for e in entities if any(f.clue in r.question for f in e.facts)]
        assert bool(clued) == (r.eval_type == "knowledge_anchored")
        assert all(e.name in r.question for e in entities if e not in clued)
        assert len(r.scene.requirements()) >= 2


def test_the_yield_table_adds_up(dataset: Path) -> None:
    rows = {y["stage"]: y for y in json.loads((dataset / "yields.json").read_text())}
    order = ["de-duplication, length", "teacher loop, structurally valid", "program checks", "audit on six dimensions"]
    for earlier, later in pairwise(order):
        assert rows[earlier]["kept"] == rows[later]["in"]
    sft, gt = rows["SFT export"], rows["ground truth rendered"]
    assert rows[order[-1]]["kept"] == sft["in"] + gt["in"]
    assert sft["in"] == sft["kept"] + sft["spare"]
    assert rows["visual filter"]["in"] == gt["kept"]
    assert rows["self-evolution and validation"]["kept"] + rows["bench"]["kept"] == rows["visual filter"]["kept"]
    quarantined = Counter(q.stage for q in load_quarantine(dataset))
    lost = {
        "de-duplication, length": rows[order[0]],
        "teacher": rows[order[1]],
        "program checks": rows[order[2]],
        "audit": rows[order[3]],
        "visual filter": rows["visual filter"],
    }
    for stage_name, row in lost.items():
        assert row["in"] - row["kept"] == quarantined[stage_name], stage_name
    assert gt["in"] - gt["spare"] - gt["kept"] == quarantined["ground truth"]


def test_left_out_records_have_a_reason_and_are_nowhere_else(dataset: Path) -> None:
    quarantine = load_quarantine(dataset)
    kept = {r.id for r in load_requests(dataset)}
    assert quarantine
    for q in quarantine:
        assert len(q.reason) > 5
        assert len(q.digest) == 16
        assert q.id not in kept
    rejected = {a.id: a.reason for a in read_jsonl(dataset / "audit.jsonl", Audit) if a.reason}
    assert {q.id: q.reason for q in quarantine if q.stage == "audit"} == rejected


def test_public_files_parse_and_name_files_that_are_there(dataset: Path) -> None:
    for split in ("sft", "sft_heldout"):
        rows = load_public(dataset, split)
        trajectories = load_sft(dataset, split)
        assert len(rows) == len(trajectories)
        for row, t in zip(rows, trajectories, strict=True):
            assert isinstance(row, SftRow)
            assert row.messages == t.messages
            assert [m.role for m in row.messages[:2]] == ["system", "user"]
            assert row.messages[-1].content.endswith("</answer>")
            shown = sum(m.content.count("IMG_") for m in row.messages if "<tool_response>" in m.content)
            assert len(row.images) == shown
            assert all((dataset / image).is_file() for image in row.images)
    for split in ("evolve", "validation", "bench"):
        requests = load_requests(dataset, split)
        public = load_public(dataset, split)
        assert [r.id for r in public if isinstance(r, RlRow)] == [r.id for r in requests]
        for row in public:
            assert isinstance(row, BenchRow if split == "bench" else RlRow)
            assert (dataset / row.gt_image).read_bytes().startswith(b"\x89PNG")
        text = (dataset / f"{split}.jsonl").read_text()
        assert "scene" not in text
        assert "gen_prompt" not in text
    assert len(list((dataset / "gt").iterdir())) == 12
    assert not (dataset / "left_over.txt").exists()


def test_guided_trajectories_are_the_share_that_was_asked_and_show_their_guide(
    dataset: Path, settings: Settings
) -> None:
    wanted = sum(n for cell, n in quotas(settings.dataset).items() if cell.guided and cell.split == "sft")
    guided = [t for t in load_sft(dataset) if GUIDE_TITLE in t.messages[0].content]
    assert len(guided) == wanted > 0
    plain = next(t for t in load_sft(dataset) if t not in guided)
    assert "{{guide}}" not in plain.messages[0].content


def test_trajectories_are_token_free_and_their_programs_are_valid(dataset: Path) -> None:
    for t in load_sft(dataset):
        assert not t.prompt_ids
        assert not t.completion_ids
        assert t.program is not None
        assert all(c.ok and c.result for c in t.tool_calls)


def test_too_few_recipes_are_one_sentence(dataset: Path, resized: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"10 recipes do not fill the split .* raise dataset\.recipes"):
        stage.make_dataset(resized(recipes=10), dataset / "world", tmp_path / "out")


def test_what_a_build_misses_is_one_sentence(project: Path, tmp_path: Path) -> None:
    params = project / "params.yaml"
    with pytest.raises(SettingsError, match=r"dataset\.teacher_model is empty"):
        stage.run(load("paper", path=params), out=tmp_path / "out")
    with pytest.raises(SettingsError, match=r"world\.search: serper is no world for the scripted teacher"):
        stage.run(load("tiny", overrides=["world.search=serper"], path=params), out=tmp_path / "out")


def test_broken_lines_name_file_line_and_field(dataset: Path, tmp_path: Path) -> None:
    lines = (dataset / "requests.jsonl").read_text().splitlines()
    (tmp_path / "requests.jsonl").write_text("\n".join([lines[0], lines[1].replace('"id":', '"idd":')]) + "\n")
    with pytest.raises(DatasetError, match=r"requests\.jsonl, line 2: Request field 'id'"):
        load_requests(tmp_path, "sft")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_sft(tmp_path)
    with pytest.raises(DatasetError, match="no trajectories of split 'bench'"):
        load_sft(tmp_path, "bench")
