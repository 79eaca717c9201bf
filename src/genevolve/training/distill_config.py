"""The settings of one distillation run. This file is the manual: every field says its unit and where the default
comes from.

[P] = the paper, [R] = its release, ours = we chose. Imports no torch, so that profiles can be checked in
milliseconds.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DistillConfig(BaseModel):
    """GRPO + Visual Experience Distillation on stored trajectories; the defaults are the paper's where it gives a
    value."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW. [P] 1e-6 for 8B; a 2-5M policy needs about 1e-4."""
    steps: int = Field(default=200, ge=1)
    """Calls of `train` (sampled batches) the run will make; with `epochs_per_step` it sets the length of the
    schedule. [P] about 200."""
    epochs_per_step: int = Field(default=1, ge=1)
    """Optimiser steps on each sampled batch; above 1 the clip range starts to matter. Ours."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """Cosine to zero without warm-up [P], or constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW. Ours (the paper gives none for this phase)."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient of the whole step is scaled down to this L2 norm. Ours."""

    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature of the trajectories; log-probabilities are scored at the same one. [P]"""
    clip_low: float = Field(default=0.20, ge=0, lt=1)
    """Probability ratios below 1 - clip_low get no gradient when the advantage is negative. [P]"""
    clip_high: float = Field(default=0.28, ge=0)
    """Probability ratios above 1 + clip_high get no gradient when the advantage is positive. [P]"""
    kl_coef: float = Field(default=1e-3, ge=0)
    """Weight of the k3 KL to the reference policy. [P] 0 switches it off and needs no reference."""
    kl_correction: bool = False
    """Multiply the KL by the live probability ratio, which makes its gradient the reverse KL's. [P] plain k3; TRL
    corrects."""
    aggregation: Literal["seq-mean-token-sum", "token-mean", "seq-mean-token-mean"] = "seq-mean-token-sum"
    """How per-token GRPO and KL losses become one number, over the whole step. [P] seq-mean-token-sum."""
    advantage_eps: float = Field(default=1e-4, gt=0)
    """Added to the group's reward std. TRL's value; the paper gives none. Beside rewards in 0..1 a tenth or more takes weight
    from groups that hardly differ, which 1e-4 blows up to the size of the others (docs/results.md)."""

    grpo_weight: float = Field(default=1.0, ge=0)
    """Weight of the GRPO loss; 0 leaves KL and distillation alone (an arm of the ablation). Ours: the paper has 1."""
    lambda_sdl: float = Field(default=2.0, ge=0)
    """Weight of the distillation loss beside GRPO. [P] 2.0; to be swept, as its scale depends on `aggregation`. 0 =
    GRPO alone."""
    lambda_schedule: Literal["constant", "cosine"] = "constant"
    """lambda over the run: the same in every step [P], or cosine to zero, which leaves the last word to the reward. Ours."""
    sdl_tokens: Literal["all", "uncontradicted"] = "all"
    """Which of the selected tokens are distilled: all [P], or those that the reward does not contradict, i.e. not a token
    that the guide wants more likely in a trajectory below its group's mean, nor one it wants less likely above it; a group
    of equal rewards contradicts nothing. Ours."""
    estimator: Literal["bounded", "k3", "k3_value_clamp", "k3_detached"] = "bounded"
    """Distillation loss per token, see `losses.sdl_term`. Ours: bounded; the paper's text allows k3 and
    k3_value_clamp."""
    teacher: Literal["current", "frozen"] = "current"
    """Whose weights re-score the tokens behind the guide: those in training [P], or the reference policy's, which in a
    cycle are those it started from (an arm of the ablation)."""
    rho_max: float = Field(default=2.0, gt=0)
    """Cap of the ratio pS / pS_old in the distillation loss. [P]"""
    log_ratio_clamp: float = Field(default=10.0, gt=0)
    """Clamp of log pE - log pS in nats (of k3 itself under k3_value_clamp). [P] 10."""
    token_cap: float | None = Field(default=None, gt=0)
    """c_tok, the cap of one token's distillation loss; None: no cap. The paper names it without a value."""
    top_fraction: float = Field(default=0.10, gt=0, le=1)
    """Share of a taught row's assistant tokens that is distilled: those with the largest |log pE - log pS|. [P]"""
    top_scope: Literal["sequence", "step"] = "sequence"
    """Whether the share is taken of each sequence [P] or of the whole step (ranked by the stored log-probs, so one
    forward is enough)."""

    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens of one micro-batch. Changes memory and speed only, never the gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the forward under autocast; log-softmax and losses stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations layer by layer in the backward pass: less memory, about a third slower."""
    lora_rank: int | None = Field(default=None, ge=1)
    """None trains all weights; a rank trains LoRA adapters on every linear layer but the head. The paper trains all
    weights."""
    lora_alpha: int = Field(default=32, ge=1)
    """LoRA scale: the update is multiplied by lora_alpha / lora_rank."""
    saved: Literal["merged", "adapters"] = "merged"
    """What LoRA leaves of a policy: whole weights with the adapters added, or the adapters alone beside their base's
    name."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the policy is trained: the CPU, or a GPU for each process."""
    processes: int = Field(default=1, ge=1)
    """Processes that make a step together, on one machine, a GPU each: above 1 every step is made by
    `accelerate launch`. Changes speed and memory, the gradient by rounding alone."""
    accelerate: str = "configs/accelerate/eight_gpu_fsdp.yaml"
    """The launcher's configuration. `distributed_type: FSDP` in it splits weights and optimiser over the processes, MULTI_GPU
    leaves each of them a whole copy; its num_processes and mixed_precision are overruled by `processes` and `precision`."""
    seed: int = 0
    """Seed of the LoRA initialisation; nothing else in training is random."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> DistillConfig:
        if self.grpo_weight == 0 and self.lambda_sdl == 0:
            raise ValueError("grpo_weight and lambda_sdl are both 0: nothing would be learnt")
        return self

    def learning_rate_at(self, done: int) -> float:
        """Return the learning rate of the optimiser step after `done` steps."""
        return self.lr * (1.0 if self.lr_schedule == "constant" else self._cosine(done))

    def lambda_at(self, done: int) -> float:
        """Return the weight of the distillation loss in the optimiser step after `done` steps."""
        return self.lambda_sdl * (1.0 if self.lambda_schedule == "constant" else self._cosine(done))

    def _cosine(self, done: int) -> float:
        import math

        total = self.steps * self.epochs_per_step
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done / total)))
