"""`genevolve pretrain-base`: not a stage of the DAG; run once by the project, its result is committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genevolve.settings import Settings


def run(settings: Settings, *, out: Path, device: str = "cpu") -> dict[str, Any]:
    """Make the base in `out`; the embedded world is built under build/world when it is not there."""
    from genevolve.training.pretrain import PretrainConfig, make_base

    return make_base(out, Path("build/world"), PretrainConfig(device=device, threads=settings.sampling.workers))
