"""What the ablation's switches do to a step: no GRPO, a frozen teacher; and that their defaults do nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from genevolve.training.batch import StepBatch
from genevolve.training.distill import DistillTrainer, TrainingError
from genevolve.training.distill_config import DistillConfig
from tests.training.parts import gradient, make_rows, plain_logprobs, tiny_model

Make = Callable[..., DistillConfig]


def trained_gradient(config: DistillConfig, rows: list[Any]) -> torch.Tensor:
    return gradient(DistillTrainer(tiny_model(), config, tiny_model(7)), rows)


@pytest.mark.parametrize("kl", [0.0, 0.05])
def test_without_grpo_what_is_left_is_exactly_kl_and_distillation(config: Make, kl: float) -> None:
    rows = make_rows(tiny_model())
    parts = {
        "full": trained_gradient(config(kl_coef=kl), rows),
        "grpo": trained_gradient(config(kl_coef=kl, lambda_sdl=0.0), rows),
        "sdl": trained_gradient(config(kl_coef=kl, grpo_weight=0.0), rows),
        "kl": torch.zeros(())
        if kl == 0
        else trained_gradient(config(kl_coef=kl, grpo_weight=0, lambda_sdl=1e-9), rows),
    }
    rest = parts["full"] - parts["grpo"] + parts["kl"]
    assert float((parts["sdl"] - rest).norm() / parts["sdl"].norm()) < 1e-4
    assert float((parts["sdl"] - parts["full"]).norm() / parts["full"].norm()) > 0.01


def test_without_grpo_the_reward_teaches_nothing(config: Make) -> None:
    rows = make_rows(tiny_model())
    other = [dataclasses.replace(row, reward=1 - row.reward) for row in rows]
    alone, full = config(grpo_weight=0.0), config()
    assert torch.equal(trained_gradient(alone, rows), trained_gradient(alone, other))
    assert not torch.equal(trained_gradient(full, rows), trained_gradient(full, other))
    plain = [dataclasses.replace(row, teacher_prompt_ids=None) for row in rows]
    assert float(trained_gradient(config(grpo_weight=0.0, kl_coef=0.0), plain).abs().max()) == 0.0


def test_the_reported_loss_is_the_weighted_sum(config: Make) -> None:
    trainer = DistillTrainer(tiny_model(), config(grpo_weight=0.25, kl_coef=0.05), tiny_model(7))
    m = trainer.step(make_rows(tiny_model()))
    assert m["loss"] == pytest.approx(0.25 * m["loss/grpo"] + m["loss/kl"] + 2.0 * m["loss/sdl"], abs=1e-6)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing would be learnt"):
        DistillConfig(grpo_weight=0, lambda_sdl=0)


def test_a_frozen_teacher_is_the_reference_behind_the_guide(config: Make) -> None:
    reference = tiny_model(7)
    rows = make_rows(tiny_model())
    trainer = DistillTrainer(tiny_model(), config(teacher="frozen"), reference)
    step = StepBatch.build(rows, 1e-4, torch.device("cpu"))
    scores = trainer.backward(step)
    assert scores.teacher is not None
    for i, row in enumerate(rows):
        if row.teacher_prompt_ids is not None:
            keep = torch.tensor(row.assistant_mask).bool()
            with torch.no_grad():
                truth = plain_logprobs(reference, row.teacher_prompt_ids, row.completion_ids, 0.7)[keep]
            assert torch.allclose(scores.teacher[step.row == i], truth, atol=2e-5)


@pytest.mark.parametrize("lora", [None, 4])
def test_a_frozen_teacher_stays_as_it_was_while_the_current_one_learns(config: Make, lora: int | None) -> None:
    rows = make_rows(tiny_model())
    step = StepBatch.build(rows, 1e-4, torch.device("cpu"))
    moved = {}
    for teacher in ("frozen", "current"):
        settings = config(teacher=teacher, lora_rank=lora, kl_coef=0.0)
        trainer = DistillTrainer(tiny_model(), settings, None if lora else tiny_model())
        before = trainer.backward(step).teacher
        trainer.step(rows)
        trainer.step(rows)
        after = trainer.backward(step).teacher
        assert before is not None
        assert after is not None
        moved[teacher] = float((after - before).abs().max())
    assert moved["frozen"] == 0.0
    assert moved["current"] > 1e-3


def test_a_frozen_teacher_without_a_reference_is_one_sentence(config: Make) -> None:
    with pytest.raises(TrainingError, match="A frozen teacher is the reference policy"):
        DistillTrainer(tiny_model(), config(teacher="frozen", kl_coef=0.0))
    DistillTrainer(tiny_model(), config(teacher="frozen", kl_coef=0.0, lambda_sdl=0.0))  # nobody asks the teacher


def test_a_falling_lambda_starts_as_a_constant_one_and_ends_as_none(config: Make) -> None:
    rows, falling = make_rows(tiny_model()), {"lambda_schedule": "cosine", "steps": 4}
    assert [config(lambda_sdl=2.0, **falling).lambda_at(i) for i in (0, 2, 4, 9)] == pytest.approx([2, 1, 0, 0])
    constant, none = config(steps=4), config(steps=4, lambda_sdl=0.0)
    assert constant.lambda_at(3) == constant.lambda_sdl
    for done, same in ((0, constant), (4, none)):
        trainer, other = (DistillTrainer(tiny_model(), c, tiny_model(7)) for c in (config(**falling), same))
        trainer.done = other.done = done
        torch.testing.assert_close(gradient(trainer, rows), gradient(other, rows), rtol=0, atol=0)
