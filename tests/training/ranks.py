"""What each of several processes does in test_parallel.py: `accelerate launch ... -m tests.training.ranks FOLDER`.

Every case makes gradients and steps with this process's share; the first process writes them, gathered, to FOLDER.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch

from genevolve.training.batch import StepBatch, TrainRow
from genevolve.training.distill import DistillTrainer
from genevolve.training.distill_config import DistillConfig
from genevolve.training.parallel import ALONE, Ranks, whole
from genevolve.training.weights import adapter_tensors, policy_tensors
from tests.training.parts import fake_look, make_rows, tiny_eyes, tiny_model

TEXT = {"lr": 1e-2, "steps": 4, "micro_batch_tokens": 120, "kl_coef": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "text": TEXT,
    "step scope, a token's mean": {**TEXT, "top_scope": "step", "aggregation": "token-mean"},
    "lora": {**TEXT, "lora_rank": 4, "gradient_checkpointing": True},
    "eyes": {**TEXT, "gradient_checkpointing": True, "weight_decay": 0.1},
    "eyes with lora": {**TEXT, "lora_rank": 4},
    "no bundle here": TEXT,
    "no row here": {**TEXT, "micro_batch_tokens": 100_000},
    "nobody has a bundle": TEXT,
    "bfloat16": {**TEXT, "precision": "bfloat16"},
}


KEPT = ("text", "lora", "eyes")
"""The cases that leave a checkpoint and go on from it."""


def model_of(case: str, seed: int = 0) -> Any:
    return tiny_eyes(seed) if case.startswith("eyes") else tiny_model(seed)


def rows_of(case: str) -> list[TrainRow]:
    rows = make_rows(model_of(case), count=9, shown=3 if case.startswith("eyes") else 0)
    if case == "no bundle here":  # the longest rows go to the first process alone, each in a micro-batch of its own
        pair = [dataclasses.replace(r, completion_ids=r.completion_ids, teacher_prompt_ids=None) for r in rows[:2]]
        guided = next(r for r in rows if r.teacher_prompt_ids)
        return [dataclasses.replace(guided, id="t", request_id=pair[0].request_id), *pair]
    if case == "no row here":
        return rows[:3]
    if case == "nobody has a bundle":
        return [dataclasses.replace(r, teacher_prompt_ids=None) for r in rows]
    return rows


def trainer_of(case: str, ranks: Ranks = ALONE, **changes: Any) -> DistillTrainer:
    config = DistillConfig(**{**CASES[case], **changes})
    reference = None if config.lora_rank else model_of(case, 7)
    return DistillTrainer(model_of(case), config, reference, "p", ranks, fake_look)


def measure(case: str, ranks: Ranks, folder: Path | None = None) -> dict[str, Any]:
    """Return the step's gradient, the weights after two steps, and what each step said; `folder` gets a checkpoint of the
    first."""
    trainer, rows = trainer_of(case, ranks), rows_of(case)
    trainer.optimizer.zero_grad()
    trainer.backward(StepBatch.build(rows, trainer.config.advantage_eps, trainer.device))
    ranks.add_up_gradients(trainer.trained.values())
    gradient = {name: whole(p.grad).clone() for name, p in trainer.trained.items() if p.grad is not None}
    trainer.optimizer.zero_grad()
    metrics = [trainer.step(rows)]
    if folder is not None:
        trainer.save(folder)
    metrics.append(trainer.step(rows))
    adapters = adapter_tensors(trainer.model, ranks) if trainer.config.lora_rank else {}
    return {
        "gradient": gradient,
        "policy": policy_tensors(trainer.model, ranks),
        "adapters": adapters,
        "metrics": metrics,
    }


def resumed(case: str, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Return what the second step gives when it goes on from a checkpoint of the first."""
    trainer = trainer_of(case, ranks, processes=ranks.count)
    trainer.resume(folder)
    return {"metrics": [trainer.step(rows_of(case))], "policy": policy_tensors(trainer.model, ranks)}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.of_environment("cpu")
    assert ranks.count == 2
    for case in CASES:
        found = measure(case, ranks, out / f"{case} checkpoint" if case in KEPT else None)
        if case in KEPT:
            found["resumed"] = resumed(case, ranks, out / f"{case} checkpoint")
            found["from one process"] = resumed(case, ranks, out / f"{case} alone")
        shares = ranks.share(list(range(5)), lambda: -1)
        if ranks.first:
            torch.save({**found, "sharded": ranks.sharded, "shares": shares}, out / f"{case}.pt")


def fork(out: Path, port: int) -> None:
    """Two processes as `accelerate launch` starts them for DDP, forked from this one, which has imported everything."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def one(rank: int) -> None:
        os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
        main(out)

    processes = [multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))


if __name__ == "__main__":
    folder, *port = sys.argv[1:]
    if port:
        fork(Path(folder), int(port[0]))
    main(Path(folder))
