"""Our GRPO and KL terms equal those of TRL's GRPOTrainer on the same batch, gradients included."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from genevolve.training.batch import StepBatch, TrainRow
from genevolve.training.distill import DistillTrainer
from genevolve.training.distill_config import DistillConfig
from tests.training.parts import gradient, make_rows, plain_logprobs, tiny_model
from tests.training.test_checkpoint import tokenizer

# TRL's names for the three ways to aggregate.
NAMES: dict[str, Any] = {"luspo": "seq-mean-token-sum", "dapo": "token-mean", "grpo": "seq-mean-token-mean"}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    folder: Path = tmp_path_factory.mktemp("trl")
    settings = GRPOConfig(
        str(folder / "out"),
        temperature=0.7,
        epsilon=0.20,
        epsilon_high=0.28,
        beta=0.0,
        num_generations=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    trainer = GRPOTrainer(
        tiny_model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "w1"}] * 2),
        processing_class=tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_inputs(rows: list[TrainRow], reference: Any) -> dict[str, torch.Tensor]:
    """The batch as TRL wants it: prompts padded left, completions right, observations in `tool_mask`."""
    step = StepBatch.build(rows, 1e-4, torch.device("cpu"))
    width = max(len(r.prompt_ids) for r in rows), max(len(r.completion_ids) for r in rows)
    shapes = {"prompt_ids": 0, "prompt_mask": 0, "completion_ids": 1, "completion_mask": 1, "tool_mask": 1}
    batch = {name: torch.zeros(len(rows), width[side], dtype=torch.long) for name, side in shapes.items()}
    batch |= {name: torch.zeros(len(rows), width[1]) for name in ("old_per_token_logps", "ref_per_token_logps")}
    for i, r in enumerate(rows):
        p, c = len(r.prompt_ids), len(r.completion_ids)
        batch["prompt_ids"][i, width[0] - p :] = torch.tensor(r.prompt_ids)
        batch["prompt_mask"][i, width[0] - p :] = 1
        batch["completion_ids"][i, :c] = torch.tensor(r.completion_ids)
        batch["completion_mask"][i, :c] = 1
        batch["tool_mask"][i, :c] = torch.tensor(r.assistant_mask)
        batch["old_per_token_logps"][i, :c] = torch.tensor(r.logprobs)
        with torch.no_grad():
            batch["ref_per_token_logps"][i, :c] = plain_logprobs(reference, r.prompt_ids, r.completion_ids, 0.7)
    return {**batch, "advantages": step.advantage, "num_items_in_batch": torch.tensor(float(len(step.row)))}


@pytest.mark.parametrize(("beta", "corrected"), [(0.0, False), (0.05, False), (0.05, True)])
@pytest.mark.parametrize("name", NAMES)
def test_grpo_equals_trl_to_1e_5_in_loss_and_gradient(oracle: Any, name: str, beta: float, corrected: bool) -> None:
    reference = tiny_model(7)
    rows = make_rows(tiny_model(), drift=0.3)
    oracle.loss_type, oracle.beta = name, beta
    oracle.args.steps_per_generation, oracle.args.use_bias_correction_kl = 1, corrected
    oracle.model.train()
    oracle.model.zero_grad()
    theirs = oracle._compute_loss(oracle.model, trl_inputs(rows, reference))
    theirs.backward()
    truth = torch.cat([p.grad.flatten() for p in oracle.model.parameters()])

    settings = DistillConfig(
        lambda_sdl=0.0, kl_coef=beta, kl_correction=corrected, aggregation=NAMES[name], micro_batch_tokens=100
    )
    model = tiny_model()
    model.load_state_dict(copy.deepcopy(oracle.model.state_dict()))
    trainer = DistillTrainer(model, settings, reference)
    ours = gradient(trainer, rows)
    assert float((ours - truth).norm() / truth.norm()) < 1e-5
    metrics = trainer.step(rows)
    assert metrics["loss"] == pytest.approx(theirs.item(), rel=1e-5)
    theirs_low, theirs_high = (oracle._metrics["train"][f"clip_ratio/{side}_mean"][-1] for side in ("low", "high"))
    assert (metrics["clip/low"], metrics["clip/high"]) == pytest.approx((theirs_low, theirs_high))
    assert metrics["clip/low"] > 0
    assert metrics["clip/high"] > 0
    assert metrics["entropy"] == pytest.approx(oracle._metrics["train"]["entropy"][-1], rel=1e-5)


def test_advantages_equal_trls_formula() -> None:
    rewards = torch.tensor([0.1, 0.4, 0.9, 0.3, 0.3, 0.5])
    rows = [TrainRow(str(i), f"r{i // 3}", [1], [2], [1], [-1.0], float(r)) for i, r in enumerate(rewards)]
    grouped = rewards.view(-1, 3)
    truth = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(StepBatch.build(rows, 1e-4, torch.device("cpu")).advantage, truth.flatten(), atol=1e-6)
