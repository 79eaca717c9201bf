"""The losses of GRPO and Visual Experience Distillation as pure tensor functions (method.md, sections 4 and 6).

Everything works on flat vectors of scored tokens: `[N]` holds the assistant tokens of all sequences of an optimiser
step, one sequence after the other, and `row` `[N]` says which sequence a token belongs to. Log-probabilities are
natural logs at the sampling temperature over the full vocabulary. Nothing here knows a model, a record or a device.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Aggregation = Literal["seq-mean-token-sum", "token-mean", "seq-mean-token-mean"]
Estimator = Literal["bounded", "k3", "k3_value_clamp", "k3_detached"]
Scope = Literal["sequence", "step"]

CHUNK_LOGITS = 2**24
"""Logits alive at a time in `token_logprobs`: 64 MiB in float32, whatever the vocabulary."""

FLIP_NATS = 2.6
"""Above this log pE - log pS, the value-clamped k3 pushes a token the wrong way (e^d - 1 - d passes 10 at d =
2.61)."""


class _TokenLogProbs(torch.autograd.Function):
    """log p(target) from hidden states, a chunk of tokens at a time; the backward pass recomputes each chunk's
    logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        exact = torch.promote_types(dtype, torch.float32)
        logp = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        log_z = torch.empty_like(logp)
        entropy = torch.empty_like(logp) if with_entropy else None
        cast = weight.to(dtype)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], cast, bias, temperature, exact)
            top = logits.amax(-1)
            weights = (logits - top[:, None]).exp_()
            total = weights.sum(-1)
            log_z[part] = top + total.log()
            logp[part] = logits.gather(1, targets[part, None])[:, 0] - log_z[part]
            if entropy is not None:  # H = log Z - E[logit]
                entropy[part] = log_z[part] - weights.mul_(logits).sum(-1) / total
        ctx.save_for_backward(hidden, weight, bias, targets, log_z)
        ctx.temperature, ctx.chunk, ctx.dtype = temperature, chunk, dtype
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_z = ctx.saved_tensors
        exact = log_z.dtype
        cast = weight.to(ctx.dtype)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros(hidden.shape, dtype=exact, device=hidden.device) if needs_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs_weight else None
        grad_bias = torch.zeros(bias.shape, dtype=exact, device=bias.device) if needs_bias else None
        # Clipped tokens and tokens of zero advantage have no gradient: their logits are not computed again.
        for index in grad.nonzero()[:, 0].split(ctx.chunk):
            part = hidden[index]
            delta = _logits(part, cast, bias, ctx.temperature, exact).sub_(log_z[index, None]).exp_()
            scale = grad[index] / ctx.temperature
            delta.mul_(-scale[:, None])  # d logp / d logit = (1[target] - p) / temperature
            delta[torch.arange(len(index), device=index.device), targets[index]] += scale
            if grad_bias is not None:
                grad_bias += delta.sum(0)
            delta = delta.to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[index] = (delta @ cast).to(exact)
            if grad_weight is not None:
                _accumulate(grad_weight, delta, part.to(ctx.dtype))
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 4,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, exact: torch.dtype) -> Tensor:
    logits = hidden.to(weight.dtype) @ weight.T
    if bias is not None:
        logits += bias.to(weight.dtype)
    return logits.to(exact).div_(temperature)


def _accumulate(total: Tensor, delta: Tensor, hidden: Tensor) -> None:
    """total += delta^T hidden, in place where the types allow it (a [V, H] temporary is the largest tensor
    around)."""
    if delta.dtype == total.dtype:
        total.addmm_(delta.T, hidden)
    else:
        total += delta.T @ hidden


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return log p(targets) `[N]` and, if asked for, the entropy `[N]` (nats, without gradient) of each distribution.

    `hidden` `[N, H]` are the last hidden states at the positions that predict `targets` `[N]`; `weight` `[V, H]` and
    `bias` `[V]` are the language-model head. Only `[chunk, V]` logits exist at a time, in the forward and in the
    backward pass; the gradient reaches hidden, weight and bias and is exact. Reduced-precision heads are normalised
    in float32. Source: ours; the value is `log_softmax(head(hidden) / temperature)`.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0 to score tokens, not {temperature}")
    size = chunk or max(1, CHUNK_LOGITS // weight.shape[0])
    logp, spread = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, temperature, size, with_entropy
    )
    return logp, spread


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats `[...]` of softmax over the last axis of `logits` `[..., V]` (small vocabularies and
    tests)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def group_advantages(rewards: list[float | None], groups: list[str], eps: float = 1e-4) -> list[float | None]:
    """Return (R - mean) / (std + eps) within each group; None where the reward is missing (method.md, section 4).

    Missing rewards move neither mean nor std. The std is the sample std (n - 1), as in TRL. A group with a single
    present reward has no baseline: its advantage is 0.
    """
    present: dict[str, list[float]] = {}
    for reward, group in zip(rewards, groups, strict=True):
        if reward is not None:
            present.setdefault(group, []).append(reward)
    statistics = {}
    for group, values in present.items():
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
        statistics[group] = (mean, variance**0.5)
    return [
        None if reward is None else (reward - statistics[group][0]) / (statistics[group][1] + eps)
        for reward, group in zip(rewards, groups, strict=True)
    ]


def aggregation_weights(lengths: Tensor, row: Tensor, how: Aggregation) -> Tensor:
    """Return the weight `[N]` of each token in the step's loss, from the assistant tokens per sequence `lengths`
    `[B]`.

    Counted over the whole optimiser step, so that the sum over any split into micro-batches is the same loss.
    `seq-mean-token-sum` (paper): 1/B; `token-mean`: 1/N; `seq-mean-token-mean`: 1/(B * length).
    """
    count = len(lengths)
    if how == "seq-mean-token-sum":
        weight = torch.full((count,), 1.0 / count, device=lengths.device)
    elif how == "token-mean":
        weight = torch.full((count,), 1.0 / max(1, int(lengths.sum())), device=lengths.device)
    else:
        weight = 1.0 / (count * lengths.clamp(min=1))
    return weight[row]


def grpo_term(logp: Tensor, old: Tensor, advantage: Tensor, low: float = 0.20, high: float = 0.28) -> Tensor:
    """Return the clipped policy loss per token `[N]`: -min(u A, clip(u, 1 - low, 1 + high) A), u = exp(logp - old).

    `old` are the log-probs under the sampling policy, `advantage` the token's sequence advantage. Source: method.md,
    section 4.
    """
    ratio = _ratio(logp, old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def _ratio(logp: Tensor, old: Tensor) -> Tensor:
    """exp(logp - old), kept finite: an infinite ratio that a clip then cuts off would leave 0 * inf in the
    gradient."""
    return (logp - old).clamp(max=20.0).exp()


def clipped(
    logp: Tensor, old: Tensor, advantage: Tensor, low: float = 0.20, high: float = 0.28
) -> tuple[Tensor, Tensor]:
    """Return two masks `[N]`, low and high: tokens whose ratio left the range below (A < 0) or above (A > 0)."""
    ratio = _ratio(logp, old)
    return (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)


def k3_kl(logp: Tensor, reference: Tensor, old: Tensor | None = None) -> Tensor:
    """Return the low-variance estimate `[N]` of KL(policy || reference): exp(r) - r - 1, r = reference - logp.

    Its value is unbiased on-policy, its gradient is not that of the KL (it is the forward KL's). With `old` it is
    multiplied by the live ratio exp(logp - old), which makes the expected gradient exactly the reverse KL's: TRL
    1.16's default, after DeepSeek-V3.2 (arXiv 2512.02556). The paper (section 4) says low-variance k3 and no more.
    """
    gap = reference - logp
    k3 = gap.exp() - gap - 1
    return k3 if old is None else _ratio(logp, old) * k3


def sdl_term(
    logp: Tensor,
    teacher: Tensor,
    old: Tensor,
    estimator: Estimator = "bounded",
    rho_max: float = 2.0,
    clamp: float = 10.0,
    cap: float | None = None,
) -> Tensor:
    """Return the distillation loss per token `[N]` of the student's `logp` against a constant `teacher` (section 6).

    With d = log pE - log pS and rho = min(pS / pS_old, rho_max):

    - `bounded` (ours, the default): -sg[rho * clamp(d)] * log pS. Its expected gradient over the sampling policy is
      the reverse-KL gradient, its size per token is at most rho_max * clamp. The *value* is a surrogate: only the
      gradient means something.
    - `k3` (the paper's formula, clamp on l = -d): rho * (e^d - 1 - d) with rho live. Same expected gradient, but
      e^clamp large.
    - `k3_value_clamp` (the other reading of the paper): the clamp is on k3. Beyond d = 2.6 nats only rho's gradient
      is left, and that pushes a token down which the teacher wants up.
    - `k3_detached`: rho without gradient; its expected gradient is the *forward*-KL one. For the comparison, not for
      use.

    `cap` is c_tok (the paper gives no value): min(rho * k3, cap); under `bounded` it limits the size of the
    coefficient.
    """
    gap = teacher.detach() - logp
    rho = (logp - old).clamp(max=math.log(rho_max)).exp()
    if estimator == "bounded":
        coefficient = (rho * gap.clamp(-clamp, clamp)).detach()
        if cap is not None:
            coefficient = coefficient.clamp(-cap, cap)
        return -coefficient * logp
    if estimator == "k3_value_clamp":
        k3 = (gap.clamp(max=20.0).exp() - 1 - gap).clamp(-clamp, clamp)  # the inner clamp keeps exp finite
    else:
        gap = gap.clamp(-clamp, clamp)
        k3 = gap.exp() - 1 - gap
    value = (rho.detach() if estimator == "k3_detached" else rho) * k3
    return value if cap is None else value.clamp(max=cap)


def selected_count(tokens: int, fraction: float) -> int:
    """Return how many of `tokens` the top fraction holds: rounded to the nearest, at least one of any."""
    return min(tokens, max(1, int(fraction * tokens + 0.5))) if tokens else 0


def top_fraction_mask(
    score: Tensor, row: Tensor, eligible: Tensor, fraction: float, scope: Scope = "sequence"
) -> Tensor:
    """Return the mask `[N]` of the eligible tokens with the largest `score` (|log pE - log pS|), method.md section 6.

    `scope="sequence"` (paper) takes the top fraction of each sequence's own eligible tokens, `"step"` of all of them
    together. How many are taken depends only on the counts (`selected_count`), so the normaliser is known before any
    forward pass.
    """
    mask = torch.zeros_like(eligible)
    groups = [eligible] if scope == "step" else [eligible & (row == r) for r in row[eligible].unique().tolist()]
    for group in groups:
        index = group.nonzero()[:, 0]
        if len(index):
            best = score[index].topk(selected_count(len(index), fraction)).indices
            mask[index[best]] = True
    return mask
