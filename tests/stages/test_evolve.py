"""The stages with the real base, world, generator and judges on a handful of requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genevolve.dataset.public import load_requests
from genevolve.errors import SettingsError, StageError
from genevolve.profiles import load
from genevolve.records import Trajectory, read_jsonl
from genevolve.settings import Settings
from genevolve.stages import bench, evolve, generate
from genevolve.stages.crew import Crew, bench_sampling
from genevolve.stages.sample import step_requests
from genevolve.workspace import folder_digest

from .parts import Evolved


@pytest.mark.xdist_group("evolved")
def test_an_evolution_that_was_cut_off_ends_with_the_same_bytes(
    few: Settings, dataset: Path, base: Path, evolved: Evolved
) -> None:
    whole, broken, expected = evolved.whole, evolved.broken, evolved.metrics
    assert (broken / "rounds" / "002.new").is_dir()
    assert evolve.run(few, dataset=dataset, parent=base, out=broken) == expected
    assert folder_digest(broken) == folder_digest(whole)
    assert (
        evolve.run(few, dataset=dataset, parent=base, out=broken) == expected
    )  # killed after its end, before the rename
    rows = expected["curve"]
    assert [r["step"] for r in rows] == [1, 2]
    assert all(0 <= r["reward"] <= 1 and r["grad_norm"] >= 0 for r in rows)
    played = list(read_jsonl(whole / "rounds" / "001" / "trajectories.jsonl", Trajectory))
    assert len(played) == 6
    for folder in sorted((whole / "rounds").iterdir()):
        kept = {t.image for t in read_jsonl(folder / "trajectories.jsonl", Trajectory)} - {None}
        assert kept == {f"images/{p.name}" for p in (folder / "images").glob("*.png")}  # of the pairs, and no others
    assert all((whole / page).stat().st_size for page in (*expected["pages"], *expected["images"]))
    assert "# Visual experience of step 2" in (whole / "experience.md").read_text()
    best, worst = expected["traces"]["best"], expected["traces"]["worst"]
    assert [t.request_id for t in best] == [t.request_id for t in worst]
    assert all(b.reward.total > w.reward.total for b, w in zip(best, worst, strict=True))
    assert all(len(t.logprobs) == len(t.completion_ids) for t in played)


def test_the_bench_scores_every_request_and_compares_with_its_baseline(
    few: Settings, dataset: Path, base: Path, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    first = bench.run(few, dataset=dataset, policy=base, out=before)
    second = bench.run(few, dataset=dataset, policy=base, baseline=before, out=after)
    requests = load_requests(dataset, "bench")
    assert first["summary"]["all"]["n"] == len(requests)
    assert second["all"]["diff"] == 0  # the same policy, the same seed: the same pictures
    assert second["all"]["n"] == len(requests)
    scores = json.loads((after / "scores.json").read_text())
    assert set(scores["all"]) == {r.id for r in requests}
    page = (after / "report.html").read_text()
    assert requests[0].id in (after / "requests.csv").read_text()
    assert "<script" not in page
    # Drawn twice: the first draws are those of a bench of one, and a request's score is the mean.
    twice, drawn = few.model_copy(update={"bench": few.bench.model_copy(update={"draws": 2})}), tmp_path / "twice"
    drawn.mkdir()
    third = bench.run(twice, dataset=dataset, policy=base, baseline=before, out=drawn)
    once, both = (list(read_jsonl(f / "blocks" / "00000.jsonl", Trajectory)) for f in (before, drawn))
    assert [t.id for t in both if t.rollout == 0] == [t.id for t in once]
    assert [t.completion_ids for t in both if t.rollout == 0] == [t.completion_ids for t in once]
    assert third["summary"]["all"]["n"] == 2 * third["all"]["n"] == 2 * len(requests)
    for request, score in json.loads((drawn / "scores.json").read_text())["all"].items():
        values = [t.reward.image.overall if t.reward and t.reward.image else 0 for t in both if t.request_id == request]
        assert score == pytest.approx(sum(values) / 2)


def test_the_pool_is_walked_through_before_any_request_comes_again(few: Settings, dataset: Path) -> None:
    pool = load_requests(dataset, "evolve")
    rounds = [r.id for step in (1, 2) for r in step_requests(pool, few, step)]
    assert sorted(rounds) == sorted(r.id for r in pool)
    assert [r.id for r in step_requests(pool, few, 3)] != rounds[:2] or len(pool) < 4


def test_generate_draws_a_picture_or_says_why_not(few: Settings, dataset: Path, base: Path, tmp_path: Path) -> None:
    picture = tmp_path / "out" / "giraffe.png"
    lines: list[str] = []
    try:
        lines += generate.run(
            few, question="Draw a giraffe, on a red plate.", policy=base, out=picture, dataset=dataset
        )
    except StageError as e:
        lines.append(str(e))
    assert (str(picture) if picture.exists() else "no program") in lines[-1]
    assert picture.with_suffix(".trajectory.json").exists()
    with pytest.raises(StageError, match="no embedded world"):
        list(generate.run(few, question="Draw a cat.", policy=base, out=picture, dataset=tmp_path))


def test_a_backend_that_is_not_set_up_is_refused_in_one_sentence_before_any_process_starts(dataset: Path) -> None:
    with pytest.raises(SettingsError, match="GENEVOLVE_POLICY_URL"):
        Crew(load("paper"), dataset)


def test_two_processes_play_what_one_plays(few: Settings, dataset: Path, base: Path) -> None:
    requests = load_requests(dataset, "evolve")
    played = []
    for workers in (1, 2):
        settings = few.model_copy(update={"sampling": few.sampling.model_copy(update={"workers": workers})})
        with Crew(settings, dataset) as crew:
            played.append(crew.play(base, requests, 2, bench_sampling(settings), 5))
    assert played[0] == played[1]
