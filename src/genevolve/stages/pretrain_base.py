"""`genevolve pretrain-base`: not a stage of the DAG; run once by the project, its result is committed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any


def run(
    *, out: Path, device: str = "cpu", seed: int | None = None, start: Path | None = None, tokens: int | None = None
) -> dict[str, Any]:
    """Make the base in `out`; the embedded world is built under build/world when it is not there.

    With `start`, the folder of a base, practice goes on with that one, at half the rates of a new one.
    """
    from genevolve.training.pretrain import PretrainConfig, make_base

    cfg = PretrainConfig(device=device, workers=2 if device == "cpu" else 1)
    if start is not None:
        cfg = replace(cfg, start=str(start), lr_matrix=0.0012, lr_other=5e-4, batch_tokens=3072)
    if seed is not None:
        cfg = replace(cfg, seed=seed)
    if tokens is not None:
        cfg = replace(cfg, tokens=tokens)
    return make_base(out, Path("build/world"), cfg)
