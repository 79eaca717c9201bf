"""Each loss term against the closed form of a softmax, and against finite differences, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genevolve.training import losses

F64 = torch.float64


@pytest.fixture
def head() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=F64, requires_grad=True) for shape in ((9, 5), (17, 5), (17,)))
    return hidden, weight, bias, torch.randint(17, (9,))


def reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float) -> Tensor:
    logits = hidden @ weight.T + (0 if bias is None else bias)
    return (logits / temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("chunk", [1, 4, 9, None])
@pytest.mark.parametrize("with_bias", [True, False])
def test_token_logprobs_equal_log_softmax_with_gradients(
    head: tuple[Tensor, ...], chunk: int | None, with_bias: bool
) -> None:
    hidden, weight, bias, targets = head
    inputs = [hidden, weight, bias] if with_bias else [hidden, weight]
    outer = torch.randn(9, dtype=F64)
    outer[[2, 5]] = 0  # tokens without gradient are skipped in the backward pass
    ours, spread = losses.token_logprobs(
        hidden, weight, bias if with_bias else None, targets, 0.7, chunk, with_entropy=True
    )
    truth = reference(hidden, weight, bias if with_bias else None, targets, 0.7)
    assert torch.allclose(ours, truth, rtol=0, atol=1e-12)
    logits = hidden @ weight.T + (bias if with_bias else 0)
    assert spread is not None
    assert torch.allclose(spread, losses.entropy(logits / 0.7), rtol=0, atol=1e-12)
    assert not spread.requires_grad
    for a, b in zip(torch.autograd.grad(ours, inputs, outer), torch.autograd.grad(truth, inputs, outer), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_token_logprobs_against_finite_differences(head: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets = head
    assert torch.autograd.gradcheck(
        lambda h, w, b: losses.token_logprobs(h, w, b, targets, 0.7, 4)[0], (hidden, weight, bias)
    )


def test_token_logprobs_with_nothing_to_score(head: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets = head
    logp, _ = losses.token_logprobs(hidden[:0], weight, bias, targets[:0])
    logp.sum().backward()
    assert logp.shape == (0,)
    assert weight.grad is not None
    assert not weight.grad.any()


def test_frozen_head_gets_no_gradient(head: tuple[Tensor, ...]) -> None:
    hidden, weight, _, targets = head
    frozen = weight.detach()
    losses.token_logprobs(hidden, frozen, None, targets)[0].sum().backward()
    assert frozen.grad is None
    assert hidden.grad is not None


def test_entropy_of_uniform_is_log_v() -> None:
    assert losses.entropy(torch.zeros(8)).item() == pytest.approx(torch.tensor(8.0).log().item())


# --- expected gradients: a categorical policy small enough to sum over every outcome ---


def expected_gradient(estimator: str, old_shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """E over the sampling policy of grad sdl_term, and the exact reverse- and forward-KL gradients."""
    torch.manual_seed(3)
    logits = torch.randn(7, dtype=F64, requires_grad=True)
    teacher = torch.randn(7, dtype=F64).log_softmax(-1)
    student = logits.log_softmax(-1)
    old = (logits.detach() + old_shift * torch.randn(7, dtype=F64)).log_softmax(-1)
    value = losses.sdl_term(student, teacher, old, estimator, rho_max=1e9, clamp=50.0)  # type: ignore[arg-type]
    got = torch.autograd.grad((old.exp() * value).sum(), logits, retain_graph=True)[0]
    reverse = torch.autograd.grad((student.exp() * (student - teacher)).sum(), logits, retain_graph=True)[0]
    forward = torch.autograd.grad((teacher.exp() * (teacher - student)).sum(), logits)[0]
    return got, reverse, forward


@pytest.mark.parametrize("old_shift", [0.0, 0.5])
@pytest.mark.parametrize("estimator", ["bounded", "k3", "k3_value_clamp"])
def test_live_ratio_gives_the_reverse_kl_gradient(estimator: str, old_shift: float) -> None:
    got, reverse, forward = expected_gradient(estimator, old_shift)
    assert torch.allclose(got, reverse, rtol=0, atol=1e-12)
    assert not torch.allclose(got, forward, atol=1e-2)


@pytest.mark.parametrize("old_shift", [0.0, 0.5])
def test_detached_ratio_gives_the_forward_kl_gradient(old_shift: float) -> None:
    got, reverse, forward = expected_gradient("k3_detached", old_shift)
    assert torch.allclose(got, forward, rtol=0, atol=1e-12)
    assert not torch.allclose(got, reverse, atol=1e-2)


def slope(estimator: str, gap: float, **options: float) -> float:
    """dL / d log pS of one on-policy token whose teacher is `gap` nats above the student."""
    student = torch.tensor([-6.0], dtype=F64, requires_grad=True)
    value = losses.sdl_term(student, student.detach() + gap, student.detach(), estimator, **options)  # type: ignore[arg-type]
    return float(torch.autograd.grad(value.sum(), student)[0])


def test_value_clamp_flips_the_sign_beyond_2_6_nats_and_bounded_does_not() -> None:
    for gap in (-1.0, 1.0, 2.5):
        assert slope("k3_value_clamp", gap) == pytest.approx(-gap)
    for gap in (2.7, 5.0, 100.0):
        assert slope("k3_value_clamp", gap) == pytest.approx(10.0)  # pushed down, though the teacher wants it up
        assert slope("bounded", gap) == pytest.approx(-min(gap, 10.0))
    assert pytest.approx(2.61, abs=0.02) == losses.FLIP_NATS


def test_ratio_is_capped_and_an_extreme_ratio_leaves_finite_gradients() -> None:
    student = torch.tensor([-1.0, -1.0], dtype=F64, requires_grad=True)
    old = torch.tensor([-1.5, -2000.0], dtype=F64)
    teacher = torch.tensor([-0.5, -0.5], dtype=F64)
    losses.sdl_term(student, teacher, old, "bounded").sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == pytest.approx([-0.5 * 2.718281828**0.5, -0.5 * 2.0])
    for term in (
        losses.grpo_term(student, old, torch.ones(2, dtype=F64)),
        losses.sdl_term(student, teacher, old, "k3"),
    ):
        assert torch.autograd.grad(term.sum(), student)[0].isfinite().all()


def test_token_cap() -> None:
    assert slope("bounded", 8.0, cap=3.0) == pytest.approx(-3.0)
    one = torch.zeros(1)
    assert losses.sdl_term(one, one + 3, one, "k3", cap=2.0).item() == 2.0
    assert losses.sdl_term(one, one + 1, one, "k3", cap=2.0).item() == pytest.approx(2.718281828 - 2)


@pytest.mark.parametrize("estimator", ["k3", "k3_value_clamp"])
def test_k3_against_finite_differences(estimator: str) -> None:
    torch.manual_seed(1)
    student, teacher, old = (-3 * torch.rand(12, dtype=F64) for _ in range(3))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: losses.sdl_term(s, teacher, old, estimator), (student,))  # type: ignore[arg-type]


def test_grpo_and_kl_against_finite_differences() -> None:
    torch.manual_seed(2)
    student, old, reference_ = (-2 * torch.rand(20, dtype=F64) for _ in range(3))
    student.requires_grad_()
    advantage = torch.randn(20, dtype=F64)
    assert torch.autograd.gradcheck(lambda s: losses.grpo_term(s, old, advantage), (student,))
    assert torch.autograd.gradcheck(lambda s: losses.k3_kl(s, reference_), (student,))


def test_grpo_clips_each_side_only_where_it_should() -> None:
    ratio = torch.tensor([0.5, 0.9, 1.2, 1.5] * 2, dtype=F64)
    advantage = torch.tensor([1.0] * 4 + [-1.0] * 4, dtype=F64)
    logp = ratio.log().requires_grad_()
    term = losses.grpo_term(logp, torch.zeros(8, dtype=F64), advantage)
    assert term.tolist() == pytest.approx([-0.5, -0.9, -1.2, -1.28, 0.8, 0.9, 1.2, 1.5])
    term.sum().backward()
    assert logp.grad is not None
    assert (logp.grad == 0).tolist() == [False, False, False, True, True, False, False, False]
    low, high = losses.clipped(logp, torch.zeros(8, dtype=F64), advantage)
    assert ((low | high) == (logp.grad == 0)).all()
    assert (int(low.sum()), int(high.sum())) == (1, 1)


def test_k3_kl_is_unbiased_for_the_kl() -> None:
    torch.manual_seed(4)
    policy, reference_ = (torch.randn(9, dtype=F64).log_softmax(-1) for _ in range(2))
    exact = (policy.exp() * (policy - reference_)).sum()
    assert torch.allclose((policy.exp() * losses.k3_kl(policy, reference_)).sum(), exact)


@pytest.mark.parametrize("corrected", [True, False])
def test_only_the_corrected_kl_has_the_reverse_kl_gradient(corrected: bool) -> None:
    torch.manual_seed(5)
    logits, reference_ = torch.randn(9, dtype=F64, requires_grad=True), torch.randn(9, dtype=F64).log_softmax(-1)
    policy = logits.log_softmax(-1)
    old = policy.detach()
    value = losses.k3_kl(policy, reference_, old if corrected else None)
    got = torch.autograd.grad((old.exp() * value).sum(), logits, retain_graph=True)[0]
    reverse = torch.autograd.grad((policy.exp() * (policy - reference_)).sum(), logits, retain_graph=True)[0]
    forward = torch.autograd.grad((reference_.exp() * (reference_ - policy)).sum(), logits)[0]
    assert torch.allclose(got, reverse if corrected else forward, rtol=0, atol=1e-12)


# --- advantages, selection, normalisers ---


def test_advantages_leave_missing_rewards_out() -> None:
    got = losses.group_advantages([1.0, None, 0.0, 0.5, 0.7, None], ["a", "a", "a", "b", "c", "c"], eps=0.0 + 1e-9)
    assert got[1] is None
    assert got[5] is None
    assert [got[0], got[2]] == pytest.approx([0.5**0.5, -(0.5**0.5)])  # sample std of (0, 1) is 1/sqrt 2
    assert (got[3], got[4]) == (0.0, 0.0)


def test_advantages_of_equal_rewards_are_zero() -> None:
    assert losses.group_advantages([0.4] * 6, ["a"] * 6) == pytest.approx([0.0] * 6, abs=1e-9)


def test_top_fraction_per_sequence_and_per_step() -> None:
    row = torch.tensor([0] * 20 + [1] * 10 + [2] * 5)
    eligible = row != 1
    score = torch.arange(35.0)
    mask = losses.top_fraction_mask(score, row, eligible, 0.1, "sequence")
    assert mask.nonzero()[:, 0].tolist() == [18, 19, 34]  # 2 of 20, none of the row without a bundle, 1 of 5
    mask = losses.top_fraction_mask(score, row, eligible, 0.1, "step")
    assert mask.nonzero()[:, 0].tolist() == [32, 33, 34]  # 10% of 25, rounded half up
    assert not losses.top_fraction_mask(score, row, torch.zeros_like(eligible), 0.1).any()
    assert [losses.selected_count(n, 0.1) for n in (0, 1, 14, 15, 100)] == [0, 1, 1, 2, 10]


def test_aggregation_weights() -> None:
    lengths = torch.tensor([1, 3])
    row = torch.tensor([0, 1, 1, 1])
    assert losses.aggregation_weights(lengths, row, "seq-mean-token-sum").tolist() == [0.5] * 4
    assert losses.aggregation_weights(lengths, row, "token-mean").tolist() == [0.25] * 4
    assert losses.aggregation_weights(lengths, row, "seq-mean-token-mean").tolist() == pytest.approx(
        [0.5] + [1 / 6] * 3
    )
