"""The supervised cold start of models too large for one process's plain loop (method.md, section 7).

The tokens are those that sampling sees: the policy's own chat template, rendered piece by piece (`policy/template.py`),
pictures among them; loss on the assistant's tokens and the token that ends its turn, and on nothing else. TRL's SFTTrainer
makes the small base's cold start (`cold_start.py`) and is the oracle of this one: same loss, same schedule, same update.
What it does not do, and this must: split the language weights of an image-text model over processes while its tower stays
whole, whether or not a process's rows show pictures; go on after a kill to the same bytes; run all of that on a CPU, so
that it can be tested.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genevolve.records import Picture, Trajectory
from genevolve.training.batch import MicroBatch, StepBatch, TrainRow, micro_batches
from genevolve.training.cold_start import ColdStartError
from genevolve.training.distill_forward import Look
from genevolve.training.parallel import ALONE, Ranks
from genevolve.training.weights import Weights, save_trained

if TYPE_CHECKING:
    from genevolve.policy.pictures import Eyes
    from genevolve.policy.template import ChatTemplate

CHECKPOINT = "checkpoint"
"""Where a run that was cut off finds its weights and optimiser, below the stage's folder."""


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """One supervised run; fields as in `settings.ColdStart`, where their defaults' sources stand."""

    lr: float
    epochs: float
    batch: int
    warmup: float
    weight_decay: float
    cutoff: int
    seed: int
    precision: str = "float32"
    gradient_checkpointing: bool = False
    lora_rank: int | None = None
    lora_alpha: int = 32
    micro_batch_tokens: int = 16384
    checkpoint_every: int = 50
    max_grad_norm: float = 1.0
    temperature: float = 1.0

    def model_dump(self) -> dict[str, Any]:
        """Return the fields, for a checkpoint's note."""
        return dataclasses.asdict(self)

    def steps(self, rows: int) -> int:
        """Return how many optimiser steps so many sequences make; an epoch's last step may be a small one."""
        return max(1, math.ceil(self.epochs * math.ceil(rows / self.batch)))

    def learning_rate_at(self, done: int, total: int) -> float:
        """Return the learning rate of the step after `done`: linear warm-up, then cosine to zero."""
        warm = math.ceil(self.warmup * total)
        if done < warm:
            return self.lr * done / max(1, warm)
        return self.lr * max(0.0, 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, total - warm))))


def encode(
    template: ChatTemplate,
    trajectory: Trajectory,
    *,
    processor: Any = None,
    eyes: Eyes | None = None,
    show: int = 0,
    image_token: int | None = None,
) -> TrainRow:
    """Return a trajectory as tokens, masked on what the assistant wrote.

    `show` pictures of each image search stand behind its observation, as in sampling. Raises ColdStartError for a
    conversation that is none.
    """
    from genevolve.policy.huggingface import observed

    messages = trajectory.messages
    roles = [m.role for m in messages]
    wanted = ["system", *["user", "assistant"] * ((len(messages) - 1) // 2)]
    if len(messages) < 3 or roles != wanted:
        raise ColdStartError(
            f"Trajectory {trajectory.id}: a conversation must begin with system and user, take turns, and end with the assistant."
        )
    results = {c.turn: c.result for c in trajectory.tool_calls if c.name == "image_search" and c.ok}
    ids: list[int] = []
    mask: list[int] = []
    pictures: list[Picture] = []
    for number, turn in enumerate(messages[2::2]):
        spoken = template.turn(turn.content)
        ids += spoken
        mask += [1] * len(spoken)
        after = 2 * number + 3
        if after < len(messages):
            shown = [(str(row["img_id"]), str(row["file"])) for row in results.get(number, [])[:show]]
            piece = observed(template, messages[after].content, shown, processor, eyes, image_token)
            pictures += [p.model_copy(update={"at": p.at + len(ids)}) for p in piece.pictures]
            ids += piece.ids
            mask += [0] * len(piece.ids)
    prompt = template.prompt(messages[0].content, messages[1].content)
    return TrainRow(trajectory.id, trajectory.id, prompt, ids, mask, [0.0] * len(ids), 0.0, None, pictures)


class SftTrainer:
    """Trains on encoded rows, one optimiser step of `batch` sequences at a time."""

    def __init__(
        self, model: Any, config: SftConfig, start: str, ranks: Ranks = ALONE, look: Look | None = None
    ) -> None:
        """`start` names the base, so that a checkpoint is not resumed on another one."""
        self.config, self.start, self.ranks = config, start, ranks
        self.weights = Weights(model, config, ranks, look)
        self.curve: list[dict[str, float]] = []
        self.before: float | None = None

    def train(self, rows: Sequence[TrainRow], heldout: Sequence[TrainRow], folder: Path) -> None:
        """Make all steps, a checkpoint in `folder` now and then; go on from the one there. Fills `curve` and `before`, the
        loss on the held-out rows at the start."""
        from tqdm import tqdm

        total = self.config.steps(len(rows))
        if folder.is_dir():
            note = self.weights.resume(folder, {"start": self.start})
            self.curve, self.before = note["curve"], note["before"]
        else:
            self.before = self.evaluate(heldout)
        bar = tqdm(total=total, initial=len(self.curve), desc="cold start", unit="step", disable=not self.ranks.first)
        while len(self.curve) < total:
            done = len(self.curve)
            loss = self.step([rows[i] for i in batch_of(done, len(rows), self.config)], done, total)
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
            if len(self.curve) % self.config.checkpoint_every == 0 and len(self.curve) < total:
                self.weights.save(folder, {"start": self.start, "curve": self.curve, "before": self.before})
        bar.close()

    def step(self, rows: Sequence[TrainRow], done: int, total: int) -> float:
        """Make one optimiser step; return its loss in nats a token."""
        self.weights.optimizer.zero_grad(set_to_none=True)
        loss = self._nll(rows, learn=True)
        norm = self.weights.norm()
        if not math.isfinite(norm):
            raise ColdStartError(
                f"The gradient of step {done + 1} is not finite; lower cold_start.learning_rate ({self.config.lr:g})."
            )
        rate = self.config.learning_rate_at(done, total)
        self.weights.update(rate)
        self.curve.append({"step": done + 1, "loss": loss, "learning_rate": rate, "grad_norm": norm})
        return loss

    @torch.no_grad()
    def evaluate(self, rows: Sequence[TrainRow]) -> float | None:
        """Return the loss in nats a token over all rows; None for no rows."""
        return self._nll(rows, learn=False) if rows else None

    def _nll(self, rows: Sequence[TrainRow], *, learn: bool) -> float:
        device = self.weights.device
        step = StepBatch.build(rows, 1.0, device)
        share = self.ranks.share(micro_batches(step, self.config.micro_batch_tokens), lambda: MicroBatch.idle(device))
        total = torch.zeros((), dtype=torch.float64, device=device)
        for micro in share:
            loss = -self.weights.score(micro)[0].sum() / len(step.row)
            if learn:
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.ranks.add_up(total)
        return float(total)


def batch_of(done: int, rows: int, config: SftConfig) -> list[int]:
    """Return which rows the step after `done` takes: a permutation of its own for every epoch."""
    each = math.ceil(rows / config.batch)
    epoch, number = divmod(done, each)
    dice = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(rows, generator=dice).tolist()
    return order[number * config.batch : (number + 1) * config.batch]


def train(
    base: Path,
    trajectories: Iterable[Trajectory],
    heldout: Iterable[Trajectory],
    out: Path,
    config: SftConfig,
    *,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    eyes: Eyes | None = None,
    show: int = 0,
) -> dict[str, Any]:
    """Fine-tune `base` on the trajectories, language weights alone, and save the policy in out/policy; return metrics
    with a `curve`. All processes call alike.

    Sequences longer than `cutoff` tokens, pictures' tokens included, are left out and counted. Killed and started again
    it goes on from its last checkpoint.
    """
    from genevolve.policy.pictures import image_processor, pixel_inputs
    from genevolve.policy.template import ChatTemplate
    from genevolve.training.checkpoint import policy_hash, tokenizer_folder
    from genevolve.training.models import device_of, load_model

    low = torch.bfloat16 if config.precision == "bfloat16" and config.lora_rank and not ranks.sharded else torch.float32
    model = load_model(base, low, device_of(device))
    template = ChatTemplate.load(tokenizer_folder(base), str(base))
    processor = image_processor(tokenizer_folder(base), base) if eyes is not None and show else None
    sight = partial(
        encode,
        template,
        processor=processor,
        eyes=eyes if processor else None,
        show=show,
        image_token=getattr(model.config, "image_token_id", None),
    )

    def fitting(found: Iterable[Trajectory]) -> tuple[list[TrainRow], int]:
        rows = [sight(t) for t in found]
        kept = [r for r in rows if len(r.prompt_ids) + len(r.completion_ids) <= config.cutoff]
        return kept, len(rows) - len(kept)

    (kept, long), (held, held_long) = fitting(trajectories), fitting(heldout)
    if not kept:
        raise ColdStartError(
            f"None of the {long} trajectories fits in {config.cutoff} tokens; raise cold_start.cutoff."
        )
    look: Look | None = None
    if processor is not None and eyes is not None:
        look = lambda pictures: pixel_inputs(processor, eyes.read, pictures)  # noqa: E731
    trainer = SftTrainer(model, config, policy_hash(base), ranks, look)
    trainer.train(kept, held, out / CHECKPOINT)
    after = trainer.evaluate(held)
    save_trained(trainer.weights, base, out / "policy")
    return {
        "sequences": len(kept),
        "too_long": long,
        "heldout_too_long": held_long,
        "pictures": sum(len(r.pictures) for r in kept),
        "tokens": sum(len(r.prompt_ids) + len(r.completion_ids) for r in kept),
        "assistant_tokens": sum(sum(r.assistant_mask) for r in kept),
        "heldout_loss_before": trainer.before,
        "heldout_loss": after,
        "curve": trainer.curve,
    }
