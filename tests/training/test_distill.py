"""The distillation step on a real tiny Qwen3: against a slow loop, in any micro-batches, with LoRA, after a resume."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genevolve.training.batch import StepBatch, micro_batches
from genevolve.training.checkpoint import CheckpointError
from genevolve.training.distill import DistillTrainer, TrainingError
from genevolve.training.distill_config import DistillConfig
from genevolve.training.distill_forward import UnsupportedModelError, score
from tests.training.parts import gradient, make_rows, plain_logprobs, tiny_model

Make = Callable[..., DistillConfig]


def naive_loss(model: Any, reference: Any, rows: list[Any], config: DistillConfig) -> torch.Tensor:
    """The step's loss straight from method.md: one unpadded sequence at a time, full logits, plain sums."""
    rewards = {g: [r.reward for r in rows if r.request_id == g] for g in {r.request_id for r in rows}}
    grpo, distilled, quota = torch.zeros(()), torch.zeros(()), 0
    for row in rows:
        group = torch.tensor(rewards[row.request_id])
        advantage = (row.reward - group.mean()) / (group.std() + config.advantage_eps)
        keep = torch.tensor(row.assistant_mask).bool()
        old = torch.tensor(row.logprobs)[keep]
        new = plain_logprobs(model, row.prompt_ids, row.completion_ids, config.temperature)[keep]
        with torch.no_grad():
            base = plain_logprobs(reference, row.prompt_ids, row.completion_ids, config.temperature)[keep]
        ratio = (new - old).exp()
        policy = -torch.min(ratio * advantage, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * advantage)
        gap = base - new
        grpo = grpo + (policy + config.kl_coef * (gap.exp() - 1 - gap)).sum() / len(rows)
        if row.teacher_prompt_ids is None:
            continue
        with torch.no_grad():
            teacher = plain_logprobs(model, row.teacher_prompt_ids, row.completion_ids, config.temperature)[keep]
        count = max(1, int(len(old) * config.top_fraction + 0.5))
        best = (teacher - new).abs().topk(count).indices
        lead = (teacher - new)[best]
        rho = ratio[best].clamp(max=config.rho_max)
        value = rho * (lead.exp() - 1 - lead)
        if config.sdl_tokens == "uncontradicted":
            value = value[~((lead > 0) & (advantage < 0)) & ~((lead < 0) & (advantage > 0))]
        distilled = distilled + value.sum()
        quota += count
    return grpo + config.lambda_sdl * distilled / quota


def trainer_with(config: DistillConfig, seed: int = 0) -> DistillTrainer:
    return DistillTrainer(tiny_model(seed), config, tiny_model(7))


@pytest.mark.parametrize("tokens", ["all", "uncontradicted"])
def test_step_equals_the_slow_loop_in_loss_and_gradient(config: Make, tokens: str) -> None:
    settings = config(estimator="k3", kl_coef=0.05, sdl_tokens=tokens)
    model, reference = tiny_model(), tiny_model(7)
    rows = make_rows(model)
    loss = naive_loss(model, reference, rows, settings)
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    trainer = DistillTrainer(model, settings, reference)
    ours = gradient(trainer, rows)
    assert float((ours - truth).norm() / truth.norm()) < 1e-5
    assert trainer.step(rows)["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("scope", ["sequence", "step"])
@pytest.mark.parametrize("aggregation", ["seq-mean-token-sum", "token-mean", "seq-mean-token-mean"])
def test_micro_batching_changes_nothing(config: Make, scope: str, aggregation: str) -> None:
    rows = make_rows(tiny_model(), count=9)
    found = []
    for budget in (1, 90, 100_000):
        trainer = trainer_with(config(micro_batch_tokens=budget, top_scope=scope, aggregation=aggregation))
        found.append((gradient(trainer, rows), trainer.step(rows)))
    for other, metrics in found[1:]:
        assert float((other - found[0][0]).norm() / found[0][0].norm()) < 1e-5
        assert metrics == pytest.approx(found[0][1], rel=1e-4, abs=1e-6)


def test_observation_and_prompt_tokens_get_exactly_no_gradient(config: Make) -> None:
    model = tiny_model()
    step = StepBatch.build(make_rows(model), 1e-4, torch.device("cpu"))
    trainer = trainer_with(config())
    hidden: list[torch.Tensor] = []

    def watch(_module: Any, _inputs: Any, output: Any) -> None:
        if output.requires_grad:
            output.retain_grad()
            hidden.append(output)

    hook = trainer.model.model.norm.register_forward_hook(watch)
    trainer.backward(step)
    hook.remove()
    batches = micro_batches(step, trainer.config.micro_batch_tokens)
    assert len(hidden) == len(batches)
    for output, micro in zip(hidden, batches, strict=True):
        assert output.grad is not None
        size = output.grad.flatten(0, 1).abs().sum(-1)
        scored = torch.zeros(len(size), dtype=torch.bool)
        scored[micro.at] = True
        assert float(size[~scored].max()) == 0.0
        assert float(size[scored].max()) > 0.0


def test_teacher_scores_the_same_tokens_behind_its_own_prompt(config: Make) -> None:
    model = tiny_model()
    rows = make_rows(model)
    step = StepBatch.build(rows, 1e-4, torch.device("cpu"))
    scored = torch.zeros(len(step.row))
    with torch.no_grad():
        for micro in micro_batches(step, 100, teacher=True):
            scored[micro.tokens] = score(model, micro, config())[0]
    for i, row in enumerate(rows):
        if row.teacher_prompt_ids is None:
            assert not scored[step.row == i].any()
        else:
            keep = torch.tensor(row.assistant_mask).bool()
            truth = plain_logprobs(model, row.teacher_prompt_ids, row.completion_ids, 0.7)[keep]
            assert torch.allclose(scored[step.row == i], truth, atol=2e-5)


def test_a_teacher_without_a_guide_teaches_nothing(config: Make) -> None:
    model = tiny_model()
    rows = [dataclasses.replace(r, teacher_prompt_ids=list(r.prompt_ids)) for r in make_rows(model, drift=0.0)]
    metrics = DistillTrainer(model, config(kl_coef=0.0)).step(rows)
    assert metrics["sdl/hit_rate"] == 1.0
    assert metrics["teacher_advantage"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["loss/sdl"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["old_gap"] == pytest.approx(0.0, abs=1e-5)


def test_distillation_alone_moves_the_student_to_its_guided_self(config: Make) -> None:
    model = tiny_model()
    rows = [dataclasses.replace(r, reward=0.5) for r in make_rows(model, drift=0.0)]  # equal rewards: GRPO is silent
    trainer = DistillTrainer(model, config(kl_coef=0.0, lr=1e-3, top_fraction=1.0, lr_schedule="constant"))
    first = trainer.step(rows)
    for _ in range(3):
        last = trainer.step(rows)
    assert first["loss/grpo"] == pytest.approx(0.0, abs=1e-5)
    assert first["advantage/zero_rows"] == 1.0
    assert last["sdl/k3"] < 0.8 * first["sdl/k3"]


def test_grpo_alone_raises_the_better_and_lowers_the_worse(config: Make) -> None:
    model = tiny_model()
    rows = make_rows(model, drift=0.0)
    trainer = DistillTrainer(model, config(kl_coef=0.0, lambda_sdl=0.0, lr=1e-4))
    metrics = trainer.step(rows)
    step = StepBatch.build(rows, 1e-4, torch.device("cpu"))
    after = torch.cat(
        [
            plain_logprobs(model, r.prompt_ids, r.completion_ids, 0.7)[torch.tensor(r.assistant_mask).bool()]
            for r in rows
        ]
    ).detach()
    assert float(((after - step.old) * step.advantage[step.row]).sum()) > 0
    assert "teacher_advantage" not in metrics


def test_metrics_are_complete_and_mean_what_they_say(config: Make) -> None:
    model = tiny_model()
    rows = make_rows(model, count=9)
    metrics = trainer_with(config()).step(rows)
    tokens = [sum(r.assistant_mask) for r in rows]
    assert (metrics["rows"], metrics["tokens"]) == (9, sum(tokens))
    assert metrics["sdl/hit_rate"] == pytest.approx(6 / 9)
    taught = [n for n, r in zip(tokens, rows, strict=True) if r.teacher_prompt_ids]
    assert metrics["sdl/selected_tokens"] == sum(max(1, int(0.1 * n + 0.5)) for n in taught)
    assert metrics["reward/mean"] == pytest.approx(sum(r.reward for r in rows) / 9)
    assert metrics["loss"] == pytest.approx(metrics["loss/grpo"] + metrics["loss/kl"] + 2 * metrics["loss/sdl"])
    for name in (
        "teacher_advantage_best",
        "teacher_advantage_worst",
        "sdl/beyond_flip",
        "clip/low",
        "clip/high",
        "entropy",
    ):
        assert name in metrics
    assert all(isinstance(v, float) and v == v for v in metrics.values())
    assert metrics["grad_norm"] > 0


def test_the_reward_may_keep_tokens_from_being_distilled(config: Make) -> None:
    rows = make_rows(tiny_model(), count=9)
    settings = {"grpo_weight": 0.0, "kl_coef": 0.0}
    every = trainer_with(config(**settings)).step(rows)
    some = trainer_with(config(**settings, sdl_tokens="uncontradicted")).step(rows)
    assert 0 < some["sdl/selected_tokens"] < every["sdl/selected_tokens"]
    equal = [dataclasses.replace(r, reward=0.1) for r in rows]  # no reward is better than another: nothing contradicts
    alike = [trainer_with(config(**settings, sdl_tokens=t)).step(equal)["loss"] for t in ("all", "uncontradicted")]
    assert alike[0] == alike[1] != 0


def test_schedule(config: Make) -> None:
    cosine = config(lr=1.0, steps=2, epochs_per_step=2)
    assert [cosine.learning_rate_at(i) for i in range(5)] == pytest.approx(
        [1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6
    )
    assert config(lr=0.5, lr_schedule="constant").learning_rate_at(99) == 0.5
    assert len(trainer_with(config(epochs_per_step=2)).train(make_rows(tiny_model()))) == 2


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}, {"epochs_per_step": 2, "precision": "bfloat16"}])
def test_resumed_training_ends_with_the_same_bytes(config: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    settings = config(**options)
    batches = [make_rows(tiny_model(), seed=s) for s in range(4)]

    def fresh() -> DistillTrainer:
        return DistillTrainer(tiny_model(), settings, tiny_model(7), policy_hash="p")

    whole = fresh()
    undisturbed = [whole.train(rows) for rows in batches]
    first = fresh()
    [first.train(rows) for rows in batches[:2]]
    first.save(tmp_path / "checkpoint")
    second = fresh()
    second.resume(tmp_path / "checkpoint")
    assert [second.train(rows) for rows in batches[2:]] == undisturbed[2:]
    whole.save(tmp_path / "a")
    second.save(tmp_path / "b")
    for name in ("state.safetensors", "state.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "checkpoint"]


def test_a_foreign_or_broken_checkpoint_is_refused(config: Make, tmp_path: Path) -> None:
    trainer = DistillTrainer(tiny_model(), config(kl_coef=0.0), policy_hash="p")
    trainer.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="another start policy"):
        DistillTrainer(tiny_model(), config(kl_coef=0.0), policy_hash="q").resume(tmp_path / "c")
    with pytest.raises(CheckpointError, match="another config"):
        DistillTrainer(tiny_model(), config(kl_coef=0.0, lr=0.5), policy_hash="p").resume(tmp_path / "c")
    state = tmp_path / "c" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        trainer.resume(tmp_path / "c")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        trainer.resume(tmp_path / "nothing")


def test_lora_trains_adapters_only_and_merges(config: Make) -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    trainer = DistillTrainer(model, config(lora_rank=4, kl_coef=0.1))  # the base without adapters is the reference
    assert all("lora_" in name for name in trainer.trained)
    rows = make_rows(tiny_model(), drift=0.0)
    assert trainer.step(rows)["kl"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.step(rows)["kl"] > 1e-6
    base = {k.replace(".base_layer", ""): v for k, v in model.state_dict().items() if "lora_" not in k}
    assert all(torch.equal(base[k], v) for k, v in before.items())
    micro = micro_batches(StepBatch.build(rows, 1e-4, trainer.device), 10_000)[0]
    with torch.no_grad():
        adapted = score(trainer.model, micro, trainer.config)[0]
        merged = trainer.finish()
        assert torch.allclose(score(merged, micro, trainer.config)[0], adapted, atol=1e-4)
    assert set(merged.state_dict()) == set(before)


def test_gradient_checkpointing_changes_no_gradient(config: Make) -> None:
    rows = make_rows(tiny_model())
    plain, saved = (gradient(trainer_with(config(gradient_checkpointing=g)), rows) for g in (False, True))
    assert torch.allclose(plain, saved, rtol=1e-5, atol=1e-7)


def test_bfloat16_stays_near_float32(config: Make) -> None:
    rows = make_rows(tiny_model())
    exact, rough = (gradient(trainer_with(config(precision=p)), rows) for p in ("float32", "bfloat16"))
    assert float(torch.cosine_similarity(exact, rough, dim=0)) > 0.98


def test_a_step_that_would_break_the_weights_stops_before_it(config: Make) -> None:
    trainer = trainer_with(config())
    rows = make_rows(tiny_model())
    with torch.no_grad():
        trainer.reference.model.norm.weight.fill_(float("nan"))
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(TrainingError, match="gradient of step 1 is not finite"):
        trainer.step(rows)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


def test_what_cannot_be_trained_is_refused_at_the_start(config: Make) -> None:
    with pytest.raises(TrainingError, match="reference policy is needed"):
        DistillTrainer(tiny_model(), config())
    capped = tiny_model()
    capped.config.final_logit_softcapping = 30.0
    with pytest.raises(UnsupportedModelError, match="final_logit_softcapping"):
        DistillTrainer(capped, config(kl_coef=0.0))
