"""Stage `cold_start`: the base, fine-tuned on the teacher's audited trajectories -> out/policy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.settings import Settings

if TYPE_CHECKING:
    from genevolve.records import Trajectory


def run(settings: Settings, *, dataset: Path, base: Path, out: Path) -> dict[str, Any]:
    """Train the cold start; return its metrics.

    With TRL (`cold_start.trainer`) a run that is started again begins anew: it takes minutes and has no middle. Otherwise
    it goes on from its last checkpoint.
    """
    if settings.cold_start.trainer == "ranks":
        return _by_ranks(settings, dataset, base, out)
    from genevolve.dataset.public import load_sft
    from genevolve.training import cold_start

    c = settings.cold_start
    metrics = cold_start.train(
        base,
        load_sft(dataset, "sft"),
        _held_out(dataset),
        out,
        epochs=c.epochs,
        batch=c.batch,
        learning_rate=c.learning_rate,
        warmup=c.warmup,
        weight_decay=c.weight_decay,
        cutoff=c.cutoff,
        seed=settings.seeds.run_seed,
        threads=settings.sampling.workers,
    )
    shutil.rmtree(out / "trainer", ignore_errors=True)
    return metrics


def _held_out(dataset: Path) -> list[Trajectory]:
    """Return the held-out trajectories; none where an imported dataset has no eval split: then no loss is measured."""
    from genevolve.dataset.public import SFT_FILES, load_sft

    return load_sft(dataset, "sft_heldout") if (dataset / SFT_FILES["sft_heldout"]).exists() else []


def _by_ranks(settings: Settings, dataset: Path, base: Path, out: Path) -> dict[str, Any]:
    """Train in this process, or start as many as `cold_start.processes` says, of which each comes here as one of them."""
    from genevolve.stages.launch import launch, launched

    c = settings.cold_start
    if c.processes > 1 and not launched():
        words = ["--dataset", str(dataset), "--base", str(base)]
        metrics = launch("cold-start", words, settings, out, c.processes, c.accelerate)
        shutil.rmtree(out / "checkpoint", ignore_errors=True)
        return metrics
    import dataclasses

    import torch

    from genevolve.dataset.public import load_sft
    from genevolve.stages.backends import make_eyes
    from genevolve.training import sft
    from genevolve.training.checkpoint import find_policy
    from genevolve.training.parallel import Ranks

    torch.set_num_threads(settings.sampling.workers)
    shared = {f.name for f in dataclasses.fields(sft.SftConfig)} & set(type(c).model_fields)
    config = sft.SftConfig(
        lr=c.learning_rate, seed=settings.seeds.run_seed, **{name: getattr(c, name) for name in sorted(shared)}
    )
    metrics = sft.train(
        find_policy(base),
        load_sft(dataset, "sft"),
        _held_out(dataset),
        out,
        config,
        device=c.device,
        ranks=Ranks.of_environment(c.device),
        eyes=make_eyes(settings, dataset),
        show=settings.sampling.show_images,
    )
    if not launched():
        shutil.rmtree(out / "checkpoint", ignore_errors=True)
    return metrics
