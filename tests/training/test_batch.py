"""Trajectory records become rows; what cannot be trained on is refused in a sentence or counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from genevolve.records import Reward, Trajectory
from genevolve.training.batch import (
    HashMismatchError,
    StepBatch,
    TrainingDataError,
    TrainRow,
    build_rows,
    micro_batches,
)

POLICY, TOKENIZER = "a" * 64, "b" * 64


def trajectory(name: str = "t0", **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "id": name,
        "request_id": "r0",
        "rollout": 0,
        "question": "a flag",
        "messages": (),
        "prompt_ids": (1, 2),
        "completion_ids": (3, 4, 5),
        "assistant_mask": (1, 0, 1),
        "logprobs": (-0.5, 0.0, -0.25),
        "temperature": 0.7,
        "policy_hash": POLICY,
        "tokenizer_hash": TOKENIZER,
        "reward": Reward(total=0.5),
    }
    return Trajectory(**{**fields, **changes})


def rows_of(*trajectories: Trajectory, **options: Any) -> Any:
    known = {"policy_hash": POLICY, "tokenizer_hash": TOKENIZER, "temperature": 0.7}
    return build_rows(trajectories, **{**known, **options})


def test_rows_keep_tokens_and_get_their_teacher_prompt() -> None:
    result = rows_of(trajectory(), trajectory("t1", request_id="r1"), teacher_prompts={"r1": (1, 9, 9, 2)})
    assert [r.teacher_prompt_ids for r in result.rows] == [None, (1, 9, 9, 2)]
    assert (result.rows[0].completion_ids, result.rows[0].logprobs) == ((3, 4, 5), (-0.5, 0.0, -0.25))


def test_missing_rewards_and_empty_rollouts_are_counted_not_zeroed() -> None:
    empty = trajectory("t3", completion_ids=(), assistant_mask=(), logprobs=(), reward=Reward(total=0.0))
    result = rows_of(trajectory(), trajectory("t1", reward=None), trajectory("t2", reward=Reward()), empty)
    assert [r.id for r in result.rows] == ["t0"]
    assert (result.missing_reward, result.no_tokens) == (2, 1)


@pytest.mark.parametrize(("field", "word"), [("policy_hash", "policy"), ("tokenizer_hash", "tokenizer")])
def test_a_foreign_hash_is_refused_in_a_sentence(field: str, word: str) -> None:
    with pytest.raises(
        HashMismatchError, match=f"Trajectory t1 was sampled with {word} cccccccccccc, but training uses"
    ):
        rows_of(trajectory(), trajectory("t1", **{field: "c" * 64}))
    with pytest.raises(HashMismatchError, match=r"\(none\)"):
        rows_of(trajectory(**{field: ""}))


def test_another_temperature_and_a_missing_prompt_are_refused() -> None:
    with pytest.raises(TrainingDataError, match=r"temperature 1, but training is set to 0\.7"):
        rows_of(trajectory(temperature=1.0))
    with pytest.raises(TrainingDataError, match="no prompt tokens"):
        rows_of(trajectory(prompt_ids=()))


def row(i: int, prompt: int, mask: str, teacher: int = 0) -> TrainRow:
    kinds = [int(m) for m in mask]
    ids = [10 * i + j for j in range(len(kinds))]
    return TrainRow(
        f"t{i}", "r", [99] * prompt, ids, kinds, [-0.1 * m for m in kinds], 0.5, [98] * teacher if teacher else None
    )


ROWS = [row(1, 3, "1101"), row(2, 5, "0110011"), row(3, 2, "1", teacher=6), row(4, 4, "11", teacher=3)]


def test_micro_batches_score_exactly_the_assistant_tokens() -> None:
    step = StepBatch.build(ROWS, 1e-4, torch.device("cpu"))
    truth = [t for r in ROWS for t, m in zip(r.completion_ids, r.assistant_mask, strict=True) if m]
    for budget in (1, 14, 1000):
        found = torch.zeros(len(truth), dtype=torch.long)
        for micro in micro_batches(step, budget):
            assert micro.ids.numel() <= max(budget, micro.ids.shape[1])
            assert (micro.ids.flatten()[micro.at + 1] == micro.targets).all()
            found[micro.tokens] += micro.targets
        assert found.tolist() == truth


def test_teacher_micro_batches_hold_taught_rows_behind_their_own_prompt() -> None:
    step = StepBatch.build(ROWS, 1e-4, torch.device("cpu"))
    (micro,) = micro_batches(step, 1000, teacher=True)
    assert micro.ids.tolist() == [[98] * 6 + [30], [98] * 3 + [40, 41] + [0, 0]]
    assert micro.at.tolist() == [5, 7 + 2, 7 + 3]
    assert micro.tokens.tolist() == [7, 8, 9]


def test_sorting_leaves_little_padding() -> None:
    rows = [row(i, 1, "1" * (1 + 7 * i % 40)) for i in range(40)]
    step = StepBatch.build(rows, 1e-4, torch.device("cpu"))
    padded = sum(m.ids.numel() for m in micro_batches(step, 160))
    assert padded <= 1.15 * sum(1 + len(r.completion_ids) for r in rows)  # one rectangle of all rows: 1.9


def test_corrupt_steps_are_refused() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(TrainingDataError, match="got no trajectory"):
        StepBatch.build([], 1e-4, cpu)
    with pytest.raises(TrainingDataError, match="t1 has an empty"):
        StepBatch.build([row(1, 2, "00")], 1e-4, cpu)
    for bad in (0.5, float("nan")):
        with pytest.raises(TrainingDataError, match="log-probability"):
            StepBatch.build([TrainRow("t", "r", [1], [2], [1], [bad], 0.5)], 1e-4, cpu)
