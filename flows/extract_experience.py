"""Scored trajectories -> best-worst pairs -> bundles -> memory: a round's second third."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.plain import flow, task
from genevolve.settings import Settings


@flow(name="extract-experience")
def extract_experience(
    settings: Settings, trajectories: Path, out: Path, memory: Path | None = None, step: int = 1
) -> dict[str, Any]:
    """Contrast the groups of a round and add their bundles to the memory before; return hit rate, gaps and counts."""
    return _extract(settings, trajectories, memory, out, step)


@task(name="experience")
def _extract(settings: Settings, trajectories: Path, memory: Path | None, out: Path, step: int) -> dict[str, Any]:
    from genevolve.stages import experience

    return experience.run(settings, trajectories=trajectories, memory=memory, out=out, step=step)
