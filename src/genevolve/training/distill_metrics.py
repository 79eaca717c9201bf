"""What one optimiser step did, computed once from the step's flat vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genevolve.training.batch import StepBatch
from genevolve.training.distill_config import DistillConfig
from genevolve.training.losses import FLIP_NATS, clipped, grpo_term, k3_kl, sdl_term

FLAT = 1e-6
"""Advantages smaller than this are the rounding error of a group with equal rewards."""


@dataclass(frozen=True)
class StepScores:
    """Flat vectors [N] over the step's assistant tokens, in `StepBatch` order, without gradient."""

    student: Tensor
    entropy: Tensor
    teacher: Tensor | None
    """Log-probs under the guide; 0 on rows without one. None: no row has one, or distillation is off."""
    reference: Tensor | None
    selected: Tensor
    """Bool: the token is distilled."""
    weight: Tensor
    """The token's share of the GRPO and KL losses."""
    quota: int
    """Tokens of the whole step that the top fraction takes: the normaliser of the distillation loss."""
    lambda_sdl: float
    """Weight of the distillation loss in this step."""


def step_metrics(step: StepBatch, scores: StepScores, config: DistillConfig) -> dict[str, float]:
    """Return the step's metrics by name; log-probs, entropy and KL in nats, shares between 0 and 1."""
    advantage = step.advantage[step.row]
    low, high = clipped(scores.student, step.old, advantage, config.clip_low, config.clip_high)
    policy = grpo_term(scores.student, step.old, advantage, config.clip_low, config.clip_high)
    rewards = torch.tensor([r.reward for r in step.rows])
    spread = torch.zeros(len(rewards)) if len(rewards) < 2 else rewards
    metrics = {
        "loss/grpo": _sum(scores.weight * policy),
        "reward/mean": _mean(rewards),
        "reward/std": float(spread.std()),
        "advantage/zero_rows": _mean((step.advantage.abs() < FLAT).float()),
        "clip/low": _mean(low.float()),
        "clip/high": _mean(high.float()),
        "entropy": _mean(scores.entropy),
        "old_gap": _mean((scores.student - step.old).abs()),
        "rows": float(len(step.rows)),
        "tokens": float(len(step.row)),
        "sdl/hit_rate": _mean(step.taught.float()),
        "sdl/selected_tokens": _sum(scores.selected.float()),
    }
    total = config.grpo_weight * metrics["loss/grpo"]
    if scores.reference is not None:
        metrics["kl"] = _mean(k3_kl(scores.student, scores.reference))
        per_token = k3_kl(scores.student, scores.reference, step.old if config.kl_correction else None)
        metrics["loss/kl"] = config.kl_coef * _sum(scores.weight * per_token)
        total += metrics["loss/kl"]
    if scores.teacher is not None:
        metrics |= _distillation(step, scores, scores.teacher, advantage, config)
        total += scores.lambda_sdl * metrics["loss/sdl"]
    return {"loss": total, **metrics}


def _distillation(
    step: StepBatch, scores: StepScores, teacher: Tensor, advantage: Tensor, config: DistillConfig
) -> dict[str, float]:
    taught, chosen = step.taught[step.row], scores.selected
    gap = teacher - scores.student
    value = sdl_term(
        scores.student, teacher, step.old, config.estimator, config.rho_max, config.log_ratio_clamp, config.token_cap
    )
    bounded = gap.clamp(-config.log_ratio_clamp, config.log_ratio_clamp)
    metrics = {
        "loss/sdl": _sum(value[chosen]) / max(1, scores.quota),
        "sdl/k3": _mean((bounded.exp() - 1 - bounded)[chosen]),
        "sdl/beyond_flip": _mean((gap[taught] > FLIP_NATS).float()),
        "sdl/beyond_flip_selected": _mean((gap[chosen] > FLIP_NATS).float()),
    }
    for name, mask in (("", taught), ("_best", taught & (advantage > FLAT)), ("_worst", taught & (advantage < -FLAT))):
        if bool(mask.any()):  # an absent group has no advantage, rather than one of 0
            metrics[f"teacher_advantage{name}"] = _mean(gap[mask])
    return metrics


def _mean(x: Tensor) -> float:
    return float(x.double().mean()) if x.numel() else 0.0


def _sum(x: Tensor) -> float:
    return float(x.double().sum())
