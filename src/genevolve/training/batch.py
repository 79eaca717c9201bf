"""From Trajectory records to padded micro-batches: token-exact, never re-tokenised, right-padded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genevolve.errors import GenEvolveError
from genevolve.records import Picture, Trajectory
from genevolve.training.losses import group_advantages


class TrainingDataError(GenEvolveError):
    """A trajectory cannot be trained on; the message says which, why and what to do."""


class HashMismatchError(TrainingDataError):
    """A trajectory was sampled by another policy or written by another tokenizer than the ones in training."""


@dataclass(frozen=True)
class TrainRow:
    """One trajectory as the trainer needs it. Arrays over the completion have length C, as in `Trajectory`."""

    id: str
    request_id: str
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    assistant_mask: Sequence[int]
    logprobs: Sequence[float]
    reward: float
    teacher_prompt_ids: Sequence[int] | None = None
    """The prompt with the bundle's guide in its system message; None: no bundle, the row takes no part in
    distillation."""
    pictures: Sequence[Picture] = ()
    """What the policy was shown among the completion's tokens, in their order; prompts show none."""


@dataclass(frozen=True)
class RowSet:
    """The rows that can be trained on, and how many trajectories could not."""

    rows: list[TrainRow]
    missing_reward: int
    """Trajectories whose judge failed: left out, never counted as 0."""
    no_tokens: int
    """Trajectories in which the policy sampled nothing."""


def build_rows(
    trajectories: Iterable[Trajectory],
    *,
    policy_hash: str,
    tokenizer_hash: str,
    temperature: float,
    teacher_prompts: Mapping[str, Sequence[int]] | None = None,
) -> RowSet:
    """Return the trainable rows; `teacher_prompts` maps request ids to the prompt tokens that hold a bundle's guide.

    Raises HashMismatchError if a trajectory comes from another policy or tokenizer, TrainingDataError if it was
    sampled at another temperature (its log-probs would not be the policy's) or has no prompt.
    """
    prompts = teacher_prompts or {}
    rows: list[TrainRow] = []
    missing = empty = 0
    for trajectory in trajectories:
        _check(trajectory, policy_hash, tokenizer_hash, temperature)
        reward = trajectory.reward.total if trajectory.reward else None
        if reward is None:
            missing += 1
        elif not any(trajectory.assistant_mask):
            empty += 1
        else:
            rows.append(
                TrainRow(
                    id=trajectory.id,
                    request_id=trajectory.request_id,
                    prompt_ids=trajectory.prompt_ids,
                    completion_ids=trajectory.completion_ids,
                    assistant_mask=trajectory.assistant_mask,
                    logprobs=trajectory.logprobs,
                    reward=reward,
                    teacher_prompt_ids=prompts.get(trajectory.request_id),
                    pictures=trajectory.pictures,
                )
            )
    return RowSet(rows, missing, empty)


def _check(trajectory: Trajectory, policy_hash: str, tokenizer_hash: str, temperature: float) -> None:
    pairs = (("policy", trajectory.policy_hash, policy_hash), ("tokenizer", trajectory.tokenizer_hash, tokenizer_hash))
    for what, found, expected in pairs:
        if found != expected:
            raise HashMismatchError(
                f"Trajectory {trajectory.id} was sampled with {what} {found[:12] or '(none)'}, but training uses {what} "
                f"{expected[:12] or '(none)'}; sample again with the policy in training."
            )
    if trajectory.temperature != temperature:
        raise TrainingDataError(
            f"Trajectory {trajectory.id} was sampled at temperature {trajectory.temperature:g}, but training is set to "
            f"{temperature:g}; its stored log-probabilities hold for its own temperature only."
        )
    if not trajectory.prompt_ids:
        raise TrainingDataError(
            f"Trajectory {trajectory.id} has no prompt tokens; sample it again with a local policy."
        )


@dataclass(frozen=True)
class StepBatch:
    """All rows of one optimiser step. B rows; N assistant tokens of all rows, row after row, in time order."""

    rows: list[TrainRow]
    lengths: Tensor
    """[B] assistant tokens per row."""
    row: Tensor
    """[N] the row of each token."""
    old: Tensor
    """[N] stored log-probs under the sampling policy."""
    advantage: Tensor
    """[B] group-relative advantage."""
    taught: Tensor
    """[B] bool: the row has a teacher prompt."""

    @classmethod
    def build(cls, rows: Sequence[TrainRow], eps: float, device: torch.device) -> StepBatch:
        """Gather the step's rows; raises TrainingDataError for an empty step, a row without tokens, or a log-prob
        above 0."""
        if not rows:
            raise TrainingDataError(
                "A training step got no trajectory: every reward is missing, or nothing was sampled."
            )
        old = [p for r in rows for p, m in zip(r.logprobs, r.assistant_mask, strict=True) if m]
        lengths = [sum(1 for m in r.assistant_mask if m) for r in rows]
        for r, length in zip(rows, lengths, strict=True):
            if not length or not r.prompt_ids or (r.teacher_prompt_ids is not None and not r.teacher_prompt_ids):
                raise TrainingDataError(f"Trajectory {r.id} has an empty prompt, teacher prompt or completion.")
        old_tensor = torch.tensor(old, dtype=torch.float32)
        if not bool((old_tensor <= 1e-4).all()):  # also catches NaN
            raise TrainingDataError(
                "A stored log-probability is above 0 or not a number: the trajectories are corrupt."
            )
        advantages = group_advantages([r.reward for r in rows], [r.request_id for r in rows], eps)
        size = torch.tensor(lengths)
        return cls(
            rows=list(rows),
            lengths=size.to(device),
            row=torch.repeat_interleave(torch.arange(len(rows)), size).to(device),
            old=old_tensor.to(device),
            advantage=torch.tensor([a or 0.0 for a in advantages]).to(device),
            taught=torch.tensor([r.teacher_prompt_ids is not None for r in rows]).to(device),
        )


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a step, right-padded to [b, T], and which of their positions are scored.

    Right padding under causal attention needs neither an attention mask nor position ids: a pad stands after every
    real token of its row, so no scored position sees one, and real tokens keep positions 0, 1, 2, ...
    """

    ids: Tensor
    """[b, T] prompt + completion, padded with token 0."""
    at: Tensor
    """[M] flat positions (row * T + column) whose next token is scored: the column before each assistant token."""
    targets: Tensor
    """[M] the assistant tokens."""
    tokens: Tensor
    """[M] where each of them stands among the step's N."""
    pictures: tuple[Picture, ...] = ()
    """Those among the rows' tokens, row after row."""

    @classmethod
    def idle(cls, device: torch.device) -> MicroBatch:
        """Return a micro-batch of one token of which none is scored, for a process that only keeps others company."""
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        return cls(torch.zeros(1, 1, dtype=torch.long, device=device), nothing, nothing, nothing)


def micro_batches(step: StepBatch, budget: int, *, teacher: bool = False) -> list[MicroBatch]:
    """Split a step into micro-batches of at most `budget` padded tokens (a longer row gets its own), longest first.

    Rows of like length go together, so little is padding. `teacher=True` takes only rows with a teacher prompt,
    behind that prompt.
    """
    starts = (step.lengths.cumsum(0) - step.lengths).tolist()
    prompts = [r.teacher_prompt_ids if teacher else r.prompt_ids for r in step.rows]
    length = {i: len(p) + len(step.rows[i].completion_ids) for i, p in enumerate(prompts) if p is not None}
    groups: list[list[int]] = []
    for i in sorted(length, key=lambda i: (-length[i], i)):
        if groups and length[groups[-1][0]] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [_pad([(step.rows[i], prompts[i] or (), starts[i]) for i in group], step.row.device) for group in groups]


def _pad(rows: list[tuple[TrainRow, Sequence[int], int]], device: torch.device) -> MicroBatch:
    width = max(len(prompt) + len(row.completion_ids) for row, prompt, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    at: list[int] = []
    targets: list[int] = []
    tokens: list[int] = []
    for b, (row, prompt, start) in enumerate(rows):
        whole = [*prompt, *row.completion_ids]
        ids[b, : len(whole)] = torch.tensor(whole)
        scored = [t for t, m in enumerate(row.assistant_mask) if m]
        at += [b * width + len(prompt) + t - 1 for t in scored]
        targets += [row.completion_ids[t] for t in scored]
        tokens += range(start, start + len(scored))
    pictures = tuple(p for row, _, _ in rows for p in row.pictures)
    columns, wanted, places = (torch.tensor(x, device=device) for x in (at, targets, tokens))
    return MicroBatch(ids.to(device), columns, wanted, places, pictures)
