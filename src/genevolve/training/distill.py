"""Visual Experience Distillation: GRPO and the guide-taught term on stored trajectories, one optimiser step at a
time.

A plain loop rather than `transformers.Trainer`: a step's rows, normalisers and token selection are all known before
its first forward pass, so the whole of it is "score, weigh, backward" per micro-batch, and Trainer's samplers,
collators and loss rescaling would only be in the way. It is also why data parallelism needs so little: tokens are
selected per sequence, in the process that scores the sequence, and the normalisers are counts over the whole step, so
processes that share the micro-batches (`parallel.Ranks`) have to do no more than sum their gradients. The teacher's
log-probs are summed too, a vector [N]: selection over the whole step (`top_scope`) then is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genevolve.errors import GenEvolveError
from genevolve.training.batch import MicroBatch, StepBatch, TrainRow, micro_batches
from genevolve.training.distill_config import DistillConfig
from genevolve.training.distill_forward import Look, check_model
from genevolve.training.distill_metrics import FLAT, StepScores, step_metrics
from genevolve.training.lora import merge_adapters
from genevolve.training.losses import aggregation_weights, grpo_term, k3_kl, sdl_term, selected_count, top_fraction_mask
from genevolve.training.parallel import ALONE, Ranks
from genevolve.training.weights import Weights, let_go, placed


class TrainingError(GenEvolveError):
    """Training cannot go on; the weights are those of the last good step."""


class DistillTrainer:
    """Trains a causal language or image-text model, in place, on rows of stored trajectories.

    `reference` is the frozen policy of the KL term and must be given when `kl_coef` is above 0, except with LoRA,
    where the base without adapters serves. The teacher is the current weights behind the row's teacher prompt; with
    `teacher="frozen"` it is the reference, which then is needed whatever `kl_coef` is.
    `policy_hash` names the policy training starts from, so that a checkpoint cannot be resumed on another one.
    `ranks` shares the work with other processes, which all call the same methods with the same rows; `look` makes pixels
    of the pictures that a policy with eyes was shown.
    """

    def __init__(
        self,
        model: Any,
        config: DistillConfig,
        reference: Any = None,
        policy_hash: str = "",
        ranks: Ranks = ALONE,
        look: Look | None = None,
    ) -> None:
        if config.lora_rank is None and reference is None:
            if config.kl_coef > 0:
                raise TrainingError(
                    "kl_coef is above 0, so a reference policy is needed; pass one or set kl_coef to 0."
                )
            if config.teacher == "frozen" and config.lambda_sdl > 0:
                raise TrainingError("A frozen teacher is the reference policy: pass one, or set teacher to current.")
        self.config, self.policy_hash, self.ranks, self.done = config, policy_hash, ranks, 0
        self.weights = Weights(model, config, ranks, look)
        self.model, self.trained, self.device = self.weights.model, self.weights.trained, self.weights.device
        self.optimizer = self.weights.optimizer
        self.reference = reference
        if reference is not None:
            check_model(reference)
            reference.requires_grad_(False).eval()
            self._frozen = placed(reference, config, ranks)

    def train(self, rows: Sequence[TrainRow]) -> list[dict[str, float]]:
        """Make `epochs_per_step` optimiser steps on one sampled batch; return the metrics of each."""
        return [self.step(rows) for _ in range(self.config.epochs_per_step)]

    def step(self, rows: Sequence[TrainRow]) -> dict[str, float]:
        """Make one optimiser step on `rows` (whole groups of rollouts) and return its metrics.

        Raises TrainingDataError for rows that cannot be trained on, TrainingError before the weights would become
        infinite.
        """
        config = self.config
        step = StepBatch.build(rows, config.advantage_eps, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        scores = self.backward(step)
        norm = self.weights.norm()
        if norm != norm or norm == float("inf"):
            raise TrainingError(
                f"The gradient of step {self.done + 1} is not finite; lower lr ({config.lr:g}) or raise kl_coef."
            )
        rate = config.learning_rate_at(self.done)
        self.weights.update(rate)
        self.done += 1
        return {**step_metrics(step, scores, config), "grad_norm": norm, "lr": rate, "step": float(self.done)}

    def backward(self, step: StepBatch) -> StepScores:
        """Add the gradient of the step's loss to the parameters' `.grad` and return the scores behind it.

        One student forward with gradient serves GRPO, KL and distillation; the teacher runs on taught rows only,
        without gradient. With other processes the gradient is this one's share (`Weights.norm` adds them up), unless
        weights are split; the scores are whole everywhere.
        """
        config, count = self.config, len(step.row)
        weight = config.lambda_at(self.done)
        teacher = self._taught(step) if weight else None
        reference = None
        if config.kl_coef:
            reference = self._scored_without_gradient(step, frozen=True, taught=False)
        scores = StepScores(
            student=torch.zeros(count, device=self.device),
            entropy=torch.zeros(count, device=self.device),
            teacher=teacher,
            reference=reference,
            selected=self._selected_in_step(step, teacher),
            weight=aggregation_weights(step.lengths, step.row, config.aggregation),
            quota=self._quota(step) if teacher is not None else 0,
            lambda_sdl=weight,
        )
        for micro in self._share(micro_batches(step, config.micro_batch_tokens)):
            logp, entropy = self.weights.score(micro, with_entropy=True)
            assert entropy is not None
            scores.student[micro.tokens] = logp.detach().to(scores.student)
            scores.entropy[micro.tokens] = entropy.to(scores.entropy)
            self._loss(step, scores, micro, logp).backward()
        own_selection = scores.selected if config.top_scope == "sequence" else None
        self.ranks.add_up(scores.student, scores.entropy, own_selection)
        return scores

    def _loss(self, step: StepBatch, scores: StepScores, micro: MicroBatch, logp: Tensor) -> Tensor:
        """Return this micro-batch's part of L = grpo_weight L_GRPO + kl_coef KL + lambda L_SDL (method.md, section 6)."""
        config, at = self.config, micro.tokens
        row, old = step.row[at], step.old[at]
        per_token = config.grpo_weight * grpo_term(logp, old, step.advantage[row], config.clip_low, config.clip_high)
        if scores.reference is not None:
            corrected = old if config.kl_correction else None
            per_token = per_token + config.kl_coef * k3_kl(logp, scores.reference[at], corrected)
        loss = (scores.weight[at] * per_token).sum()
        if scores.teacher is None:
            return loss
        teacher = scores.teacher[at]
        if config.top_scope == "sequence":
            distance = (teacher - logp.detach()).abs()
            scores.selected[at] = top_fraction_mask(distance, row, step.taught[row], config.top_fraction)
        if config.sdl_tokens == "uncontradicted":  # the normaliser stays: it is known before any forward pass
            advantage = step.advantage[row]
            scores.selected[at] &= ((teacher - logp.detach()) * advantage >= 0) | (advantage.abs() < FLAT)
        chosen = scores.selected[at]
        value = sdl_term(
            logp[chosen],
            teacher[chosen],
            old[chosen],
            config.estimator,
            config.rho_max,
            config.log_ratio_clamp,
            config.token_cap,
        )
        return loss + scores.lambda_sdl * value.sum() / max(1, scores.quota)

    def _taught(self, step: StepBatch) -> Tensor | None:
        """Return the teacher's log-probs [N], or None when no row is taught."""
        return self._scored_without_gradient(step, frozen=self.config.teacher == "frozen", taught=True)

    @torch.no_grad()
    def _scored_without_gradient(self, step: StepBatch, *, frozen: bool, taught: bool) -> Tensor | None:
        """Return log-probs [N] under the weights in training, or with `frozen` under the reference; with `taught`, of
        taught rows behind their teacher prompt, or None if there is none."""
        if taught and not bool(step.taught.any()):
            return None
        logps = torch.zeros(len(step.row), device=self.device)
        batches = self._share(micro_batches(step, self.config.micro_batch_tokens, teacher=taught))
        with self.weights.without_adapters() if frozen else nullcontext():
            for micro in batches:
                if frozen and self.reference is not None:
                    found = self._frozen(micro, self.config, look=self.weights.look)[0]
                else:
                    found = self.weights.score(micro)[0]
                logps[micro.tokens] = found.to(logps)
        if frozen and self.reference is not None:
            let_go(self._frozen)
        self.ranks.add_up(logps)
        return logps

    def _share(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        return self.ranks.share(batches, lambda: MicroBatch.idle(self.device))

    def _selected_in_step(self, step: StepBatch, teacher: Tensor | None) -> Tensor:
        """Return the selection over the whole step; per sequence it is made later, in the sequence's own forward
        pass."""
        if teacher is None or self.config.top_scope == "sequence":
            return torch.zeros_like(step.row, dtype=torch.bool)
        distance = (teacher - step.old).abs()
        return top_fraction_mask(distance, step.row, step.taught[step.row], self.config.top_fraction, "step")

    def _quota(self, step: StepBatch) -> int:
        taught: list[int] = step.lengths[step.taught].tolist()
        if self.config.top_scope == "step":
            return selected_count(sum(taught), self.config.top_fraction)
        return sum(selected_count(n, self.config.top_fraction) for n in taught)

    def finish(self) -> Any:
        """Return the trained policy as a plain model (adapters merged); the trainer makes no step after this."""
        self.trained = {}
        return merge_adapters(self.model)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint (trained weights, optimiser, RNG, step, config) to `folder`, whole or not at all."""
        self.weights.save(folder, {"step": self.done, "start_policy": self.policy_hash})

    def resume(self, folder: str | Path) -> None:
        """Load a checkpoint written by `save`; training goes on to the same bytes as without the break.

        Raises CheckpointError when it is unreadable or belongs to another start policy or config.
        """
        self.done = int(self.weights.resume(folder, {"start policy": self.policy_hash})["step"])
