"""What a night plays: chosen by need, never from bench or validation, the old order where nothing is known."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve.dataset.public import load_requests
from genevolve.records import RecordError, Request, Reward, Score, write_jsonl
from genevolve.scene import Scene
from genevolve.settings import Settings
from genevolve.stages.curriculum import HISTORY, Played, choose_requests, needs, played, records_of, unlearnt, walk
from genevolve.stages.fresh import can_draw, draw_fresh
from genevolve.stages.sample import of_step, step_requests
from tests.experience.rollouts import make


def request(name: str, split: str = "evolve", **scene: str) -> Request:
    asked = {"subjects": [{"entity": "object:giraffe", "count": 2}], **scene}
    return Request.model_validate(
        {
            "id": name,
            "question": f"Draw {name}.",
            "eval_type": "quality_anchored",
            "category": "mammals",
            "difficulty": "easy",
            "split": split,
            "scene": Scene.model_validate(asked),
        }
    )


POOL = [request(f"r{i:02d}") for i in range(12)]
SOLVED = ((0.9, 0.9), 0.0)
VARIED = ((0.9, 0.1), 0.5)
HOPELESS = ((0.0, 0.0), 1.0)


def group(name: str, how: tuple[tuple[float, ...], float]) -> Played:
    return Played(request_id=name, rewards=how[0], lack=how[1])


def names(requests: list[Request]) -> list[str]:
    return [r.id for r in requests]


@given(size=st.integers(1, 30), n=st.integers(1, 90), seed=st.integers(0, 10))
def test_without_history_it_is_the_walk_of_before(size: int, n: int, seed: int) -> None:
    pool = [request(f"r{i}") for i in range(size)]
    expected = []
    for position in range(n):  # as stages/sample.py had it before there were nights
        order = list(range(size))
        Random(f"{seed}/{position // size}").shuffle(order)
        expected.append(pool[order[position % size]])
    assert choose_requests([], pool, n, seed) == expected == walk(pool, n, seed)


def test_the_steps_of_a_cold_starts_cycle_are_those_of_before(settings: Settings, dataset: Path) -> None:
    pool = load_requests(dataset, "evolve")
    per_step = settings.cycle.requests_per_step
    chosen = choose_requests([], pool, 5 * per_step, settings.seeds.run_seed)
    for step in range(1, 6):
        assert of_step(chosen, settings, step) == step_requests(pool, settings, step)


def test_unsolved_and_varied_requests_come_before_learnt_ones() -> None:
    history = [group(r.id, SOLVED) for r in POOL[:6]] + [group(r.id, VARIED) for r in POOL[6:9]]
    history += [group(r.id, ((0.2, 0.2), 0.8)) for r in POOL[9:]]
    assert set(names(choose_requests(history, POOL, 6, 1))) == {r.id for r in POOL[6:]}
    need = needs(history, POOL)
    assert need["r06"] > need["r09"] > need["r00"]
    assert names(unlearnt(history, POOL)) == [r.id for r in POOL[6:]]


def test_what_is_never_varied_is_tried_less_and_less() -> None:
    once = needs([group("r00", HOPELESS), group("r01", VARIED)], POOL)
    thrice = needs([*[group("r00", HOPELESS)] * 3, group("r01", VARIED)], POOL)
    assert once["r00"] > thrice["r00"]
    assert needs([*[group("r00", HOPELESS)] * 3, group("r00", VARIED)], POOL)["r00"] > thrice["r00"]


def test_rare_skills_come_first_among_the_new() -> None:
    pool = [*POOL, request("lettered", text="OPEN DAY", text_place="top")]
    history = [group(r.id, VARIED) for r in POOL[:8]]
    assert choose_requests(history, pool, 1, 1)[0].id == "lettered"


def test_a_learnt_request_waits_even_if_its_skills_are_rare() -> None:
    pool = [*POOL, request("lettered", text="OPEN DAY", text_place="top")]
    history = [group("lettered", SOLVED), *(group(r.id, VARIED) for r in POOL)]
    assert "lettered" not in names(choose_requests(history, pool, 12, 1))


def test_it_is_a_function_of_its_arguments_and_mixes_by_the_seed() -> None:
    history = [group(r.id, VARIED) for r in POOL[:4]]
    chosen = [names(choose_requests(history, POOL, 8, seed)) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 8
    assert sorted(names(choose_requests(history, POOL, 24, 1))) == sorted(names(POOL) * 2)


@pytest.mark.parametrize("split", ["bench", "validation", "sft", "sft_heldout"])
def test_a_request_of_another_split_is_refused(split: str) -> None:
    for history in ([], [group("r00", VARIED)]):
        with pytest.raises(ValueError, match=f"split '{split}'"):
            choose_requests(history, [*POOL, request("other", split)], 4, 1)


def test_a_group_is_told_by_its_rewards_and_by_what_it_lacks() -> None:
    score = Score(
        faithfulness=1,
        visual_correctness=1,
        text_accuracy=0.5,
        aesthetics=1,
        text_accuracy_na=True,
        overall=0.8,
        overall_renormalised=1,
    )
    perfect = make(0, None, reward=Reward(image=score, sufficiency=1, total=0.9))
    failed = make(1, None, prompt=None, reward=Reward(sufficiency=0, total=0))
    unjudged = make(0, None, request_id="r2", reward=Reward(sufficiency=1))
    (only,) = played([perfect, failed, unjudged], 0.5)
    assert only == Played(request_id="r1", rewards=(0.9, 0.0), lack=0.5)  # without lettering .9 is all there is to get
    assert only.spread() == pytest.approx(0.9)
    assert played([perfect], 0.5)[0].lack == 0


def test_a_corrupt_record_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / HISTORY).write_text('{"request_id": "r1", "lack": 7}\n')
    with pytest.raises(RecordError, match=r"history.jsonl, line 1: Played field 'lack'"):
        records_of(tmp_path, 0.5)
    write_jsonl(tmp_path / HISTORY, [group("r1", VARIED)])
    assert records_of(tmp_path, 0.5) == ([group("r1", VARIED)], [])


def test_fresh_requests_are_about_entities_of_evolve_alone_and_repeat_nothing(
    settings: Settings, dataset: Path
) -> None:
    own = load_requests(dataset)

    def entities(rows: list[Request]) -> set[str]:
        return {s.entity for r in rows if r.scene for s in r.scene.subjects}

    assert can_draw(settings)
    fresh = draw_fresh(settings, dataset, [], 5, 3, 17)
    assert len(fresh) == 5
    assert fresh == draw_fresh(settings, dataset, [], 5, 3, 17)
    assert {r.split for r in fresh} == {"evolve"}
    assert all(r.id.startswith("n003-") and r.scene and r.gold_program for r in fresh)
    assert entities(fresh) <= entities([r for r in own if r.split == "evolve"])
    assert not entities(fresh) & entities([r for r in own if r.split != "evolve"])
    more = draw_fresh(settings, dataset, fresh, 5, 4, 17)
    questions = [r.question for r in [*own, *fresh, *more]]
    assert len(questions) == len(set(questions))
    assert not {r.id for r in more} & {r.id for r in fresh}
