"""`genevolve pretrain-base`: not a stage of the DAG; run once by the project, its result is committed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any


def run(*, out: Path, device: str = "cpu", seed: int | None = None) -> dict[str, Any]:
    """Make the base in `out`; the embedded world is built under build/world when it is not there."""
    from genevolve.training.pretrain import PretrainConfig, make_base

    cfg = PretrainConfig(device=device, workers=2 if device == "cpu" else 1)
    return make_base(out, Path("build/world"), cfg if seed is None else replace(cfg, seed=seed))
