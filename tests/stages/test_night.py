"""A real night after a real cycle: memory and records carried on, requests chosen by them, the same bytes after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve.dataset.public import load_requests
from genevolve.errors import GenEvolveError
from genevolve.profiles import load
from genevolve.records import Bundle, Request, Trajectory, read_jsonl
from genevolve.settings import Settings
from genevolve.stages import evolve
from genevolve.stages.crew import Crew, training_sampling
from genevolve.stages.curriculum import Played, records_of
from genevolve.stages.fresh import draw_fresh
from genevolve.stages.sample import step_seed, training_seed
from genevolve.workspace import folder_digest

from .parts import FEW, Evolved, cut_off_in_round_two

pytestmark = pytest.mark.xdist_group("evolved")


def few(*more: str) -> Settings:
    return load("tiny", overrides=[*FEW, *more])


@pytest.fixture
def first(evolved: Evolved) -> Path:
    """The folder of a cold start's cycle."""
    return evolved.whole


def bundles(path: Path) -> list[Bundle]:
    return list(read_jsonl(path / "memory.jsonl", Bundle))


def test_a_night_goes_on_from_the_night_before_and_ends_with_the_same_bytes(
    first: Path, dataset: Path, tmp_path: Path
) -> None:
    assert not (first / "history.jsonl").exists()  # a cold start's cycle leaves what it always left
    settings = few("cycle.night=2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    with cut_off_in_round_two(whole, broken):
        done = evolve.run(settings, dataset=dataset, parent=first / "policy", earlier=first, out=whole)
    history, fresh = records_of(first, settings.judge.alpha)
    assert list(read_jsonl(whole / "history.jsonl", Played)) == history
    assert (len(history), fresh) == (4, [])
    assert done["curriculum"]["requests"] == 4

    kept = {b.id: b for b in bundles(first)}
    new = [b for b in bundles(whole) if b.id not in kept]
    assert set(kept) <= {b.id for b in bundles(whole)}
    assert all(b.step > max((k.step for k in kept.values()), default=0) for b in new)

    assert evolve.run(settings, dataset=dataset, parent=first / "policy", earlier=first, out=broken) == done
    assert folder_digest(broken) == folder_digest(whole)


def test_two_nights_draw_other_numbers_and_validate_on_the_same(first: Path, dataset: Path) -> None:
    nights = [few(f"cycle.night={n}") for n in (0, 2, 3)]
    assert len({training_seed(s, step) for s in nights for step in (1, 2)}) == 6
    assert len({step_seed(s, 0) for s in nights}) == 1
    requests = load_requests(dataset, "evolve")[:1]
    with Crew(nights[0], dataset) as crew:
        played = [
            crew.play(first / "policy", requests, 3, training_sampling(s), training_seed(s, 1))[0].completion_ids
            for s in nights
        ]
    assert len({tuple(ids) for ids in played}) > 1


def test_a_learnt_out_pool_is_filled_up_and_fresh_requests_are_played_and_passed_on(
    first: Path, dataset: Path, tmp_path: Path
) -> None:
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    earlier.mkdir()
    out.mkdir()
    pool = load_requests(dataset, "evolve")
    (earlier / "history.jsonl").write_text(
        "".join(Played(request_id=r.id, rewards=(0.9, 0.9), lack=0).model_dump_json() + "\n" for r in pool)
    )
    done = evolve.run(few("cycle.night=5"), dataset=dataset, parent=first / "policy", earlier=earlier, out=out)
    assert done["curriculum"] == {
        "requests": 4,
        "never_played": 4,
        "unsolved": 0,
        "learnt": 0,
        "drawn_fresh": 4,
    }
    fresh = list(read_jsonl(out / "fresh.jsonl", Request))
    played = {
        t.request_id for p in sorted((out / "rounds").glob("*/trajectories.jsonl")) for t in read_jsonl(p, Trajectory)
    }
    assert played == {r.id for r in fresh}
    history, passed_on = records_of(out, 0.5)
    assert passed_on == fresh
    assert {row.request_id for row in history} == played | {r.id for r in pool}


def test_the_gold_program_of_a_fresh_request_earns_the_whole_reward(dataset: Path) -> None:
    settings = few()
    fresh = draw_fresh(settings, dataset, [], 3, 2, 5)
    gold = [
        Trajectory(id=r.id, request_id=r.id, rollout=0, question=r.question, messages=(), program=r.gold_program)
        for r in fresh
    ]
    from genevolve.stages.crew import Player

    for scored in Player(settings, dataset).score(gold, fresh, None):
        assert scored.reward is not None
        assert scored.reward.image is not None
        assert scored.reward.image.visual_correctness == scored.reward.image.faithfulness == 1


def test_a_corrupt_memory_is_one_sentence_and_nothing_is_lost(first: Path, dataset: Path, tmp_path: Path) -> None:
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    earlier.mkdir()
    out.mkdir()
    (earlier / "memory.jsonl").write_text('{"id": "half a li')
    with pytest.raises(GenEvolveError, match=r"memory\.jsonl, line 1: Bundle"):
        evolve.run(few("cycle.night=2"), dataset=dataset, parent=first / "policy", earlier=earlier, out=out)
    assert (earlier / "memory.jsonl").read_text() == '{"id": "half a li'
