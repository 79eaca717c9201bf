"""Stage `cold_start`: the base, fine-tuned on the teacher's audited trajectories -> out/policy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from genevolve.settings import Settings


def run(settings: Settings, *, dataset: Path, base: Path, out: Path) -> dict[str, Any]:
    """Train the cold start; return its metrics. Started again, it begins anew: it takes minutes and has no middle."""
    from genevolve.dataset.public import SFT_FILES, load_sft
    from genevolve.training import cold_start

    c = settings.cold_start
    held_out = (
        dataset / SFT_FILES["sft_heldout"]
    ).exists()  # an imported dataset may have none: then no loss is measured
    metrics = cold_start.train(
        base,
        load_sft(dataset, "sft"),
        load_sft(dataset, "sft_heldout") if held_out else [],
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
