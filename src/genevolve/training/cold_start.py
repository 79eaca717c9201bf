"""The supervised cold start: TRL's SFTTrainer on tokens we made ourselves, loss on assistant tokens only (method.md, 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from genevolve.agent.chat import observation_text, prompt_text
from genevolve.errors import GenEvolveError
from genevolve.records import Message, Trajectory

AT_ONCE = 8
"""Sequences of one forward pass: TRL makes logits for every position, so this bounds memory; the step's batch does not change."""

IGNORED = -100
"""The label of a token that is read, not learnt (Hugging Face's convention)."""


class ColdStartError(GenEvolveError):
    """The cold start cannot be trained; the message says why."""


def pieces(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """Return (text, written by the policy) for a conversation, cut exactly where the rollout engine cuts it."""
    if [m.role for m in messages[:2]] != ["system", "user"] or messages[-1].role != "assistant":
        raise ColdStartError("A conversation must begin with system and user and end with the assistant.")
    return [
        (prompt_text(messages[0].content, messages[1].content), False),
        *(
            (m.content + "<|im_end|>", True) if m.role == "assistant" else (observation_text(m.content), False)
            for m in messages[2:]
        ),
    ]


def encode(tokenizer: Any, messages: Sequence[Message]) -> dict[str, list[int]]:
    """Return {input_ids [T], labels [T]}; labels are IGNORED off the assistant's tokens.

    Each piece is tokenised alone, as the engine does, so that training sees the very tokens that sampling will see.
    """
    ids: list[int] = []
    labels: list[int] = []
    for text, written in pieces(messages):
        row = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += row
        labels += row if written else [IGNORED] * len(row)
    return {"input_ids": ids, "labels": labels}


def train(
    base: str | Path,
    trajectories: Iterable[Trajectory],
    heldout: Iterable[Trajectory],
    out: Path,
    *,
    epochs: float,
    batch: int,
    learning_rate: float,
    warmup: float,
    weight_decay: float,
    cutoff: int,
    seed: int,
    threads: int,
) -> dict[str, Any]:
    """Fine-tune `base` on the trajectories and save the policy in `out`; return metrics with a `curve` of the loss.

    Sequences longer than `cutoff` tokens are left out and counted. Deterministic for the same input and threads.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from genevolve.training.checkpoint import load_policy, save_policy

    torch.set_num_threads(threads)
    model, tokenizer = load_policy(base)
    rows = [encode(tokenizer, t.messages) for t in trajectories]
    kept = [r for r in rows if len(r["input_ids"]) <= cutoff]
    held = [r for r in (encode(tokenizer, t.messages) for t in heldout) if len(r["input_ids"]) <= cutoff]
    if not kept:
        raise ColdStartError(f"None of the {len(rows)} trajectories fits in {cutoff} tokens; raise cold_start.cutoff.")
    at_once = next(n for n in range(min(batch, AT_ONCE), 0, -1) if batch % n == 0)
    args = SFTConfig(
        output_dir=str(out / "trainer"),
        num_train_epochs=epochs,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=batch // at_once,
        per_device_eval_batch_size=AT_ONCE,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup,
        weight_decay=weight_decay,
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=seed,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(kept),
        eval_dataset=Dataset.from_list(held) if held else None,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # a bar of our own instead of a line a step
    trainer.add_callback(_bar())
    before = trainer.evaluate()["eval_loss"] if held else None
    trainer.train()
    after = trainer.evaluate()["eval_loss"] if held else None
    save_policy(trainer.model, tokenizer, out / "policy")
    curve = [
        {"step": row["step"], "loss": row["loss"], "learning_rate": row["learning_rate"]}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    return {
        "sequences": len(kept),
        "too_long": len(rows) - len(kept),
        "tokens": sum(len(r["input_ids"]) for r in kept),
        "assistant_tokens": sum(label != IGNORED for r in kept for label in r["labels"]),
        "heldout_loss_before": before,
        "heldout_loss": after,
        "curve": curve,
    }


def _bar() -> Any:
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = tqdm(total=state.max_steps, desc="cold start", unit="step")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    return Bar()
