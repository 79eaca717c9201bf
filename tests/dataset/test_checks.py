"""What must never reach a user: near-duplicates across the bench's border, broken tables, unreadable ground truths."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from genevolve.dataset.build import Built
from genevolve.dataset.duplicates import NEAR, Seen, masked, refuse_shared, shingles
from genevolve.dataset.errors import DatasetError
from genevolve.dataset.expectations import check_tables, request_table, sft_table
from genevolve.dataset.public import load_quarantine, load_requests, load_sft
from genevolve.dataset.report import check_dataset
from genevolve.dataset.splits import check_splits
from genevolve.dataset.truth import make_truth, visual_filter
from genevolve.judge.pixels import PixelJudge
from genevolve.records import Request
from genevolve.render.compositor import Compositor
from genevolve.settings import Settings
from genevolve.tools.world import World


def _request(number: int, question: str) -> Request:
    return Request(
        id=f"q-{number:06d}",
        question=question,
        eval_type="quality_anchored",
        category="c",
        difficulty="easy",
        split="sft",
    )


def test_near_duplicates_are_found_exactly_as_comparing_all_pairs_would() -> None:
    rng = Random(1)
    words = [f"word{i}" for i in range(60)]
    base = [[rng.choice(words) for _ in range(rng.randint(25, 45))] for _ in range(40)]
    questions = []
    for row in base:
        questions.append(" ".join(row))
        for changes in (1, 2, 6):
            other = list(row)
            for _ in range(changes):
                other[rng.choice((0, 1, -1, -2, rng.randrange(len(other))))] = rng.choice(words)
            questions.append(" ".join(other))
    rng.shuffle(questions)
    seen, kept = Seen(), []
    for i, q in enumerate(questions):
        near = any(len(shingles(q) & shingles(k)) >= NEAR * len(shingles(q) | shingles(k)) or q == k for k in kept)
        assert (seen.add(_request(i, q)) is not None) == near
        if not near:
            kept.append(q)
    assert len(kept) < len(questions) - 10


def test_one_template_with_one_scene_is_one_request(dataset: Path) -> None:
    r = load_requests(dataset, "sft")[0]
    seen = Seen()
    template = masked('Draw a cat, with "HI" at the top.', ["a cat"], "HI")
    assert template == 'Draw <thing>, with "<text>" at the top.'
    assert seen.add(r, template) is None
    other = r.model_copy(update={"id": "q-999999", "question": "Something else entirely, said in many other words."})
    assert seen.add(other, template) == r.id


def test_a_bench_request_shared_with_another_split_stops_the_build(dataset: Path) -> None:
    requests = load_requests(dataset)
    check_splits(requests)
    bench = next(r for r in requests if r.split == "bench")
    rest = [r for r in requests if r.split != "bench"]
    with pytest.raises(DatasetError, match="share entities"):
        check_splits([*requests, bench.model_copy(update={"split": "sft", "id": "q-999999"})])
    near = bench.model_copy(
        update={"id": "q-999998", "split": "sft", "scene": None, "question": bench.question + " Thanks."}
    )
    with pytest.raises(DatasetError, match=f"{bench.id} is a near-duplicate of request q-999998"):
        refuse_shared([bench], [*rest, near])


def test_suites_pass_the_dataset_and_catch_a_corrupted_table(dataset: Path, settings: Settings, tmp_path: Path) -> None:
    requests, trajectories = load_requests(dataset), load_sft(dataset) + load_sft(dataset, "sft_heldout")
    bench = [r for r in requests if r.split == "bench"]
    sizes = {"requests": len(requests), "bench": len(bench), "sft": len(trajectories)}
    broken = [r.model_copy(update={"question": "Show IMG_001 as it is."}) if r is bench[0] else r for r in requests]
    broken_sft = [trajectories[0].model_copy(update={"program": None}), *trajectories[1:]]
    good = {"requests": request_table(requests), "bench": request_table(bench), "sft": sft_table(trajectories)}
    assert check_tables(good, sizes) == []

    built = Built(requests=broken, trajectories={"sft": broken_sft})
    with pytest.raises(DatasetError, match=rf"The requests table fails .* of question' in 1 rows, .* {bench[0].id}\."):
        check_dataset(built, settings.dataset, tmp_path)
    caught = {q.id: q for q in load_quarantine(tmp_path)}
    assert {bench[0].id, trajectories[0].id} <= caught.keys()
    assert caught[bench[0].id].stage == "expectations"
    failures = check_tables({"bench": request_table(bench[1:])}, sizes)
    assert any("row_count" in f.expectation and not f.ids for f in failures)


def test_the_visual_filter_keeps_gold_and_drops_what_shows_something_else(dataset: Path) -> None:
    world = World.open(dataset / "world")
    bench = load_requests(dataset, "bench")[:4]
    judge = PixelJudge()
    truths = make_truth(Compositor(), judge, world, bench, 1)
    assert [t.reason for t in truths] == [""] * len(bench)
    assert [t.png for t in truths] == [(dataset / r.gt_image).read_bytes() for r in bench if r.gt_image]
    pictures = [t.png for t in truths if t.png is not None]
    reasons = visual_filter(judge, bench, [*pictures[1:], b"no picture"])
    assert all(reasons)
    assert reasons[-1].startswith("the judge failed")
