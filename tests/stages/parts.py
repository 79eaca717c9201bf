"""What the evolution's tests share: an evolution, and what a kill in its second round would have left of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from genevolve.stages import evolve

FEW = ("sampling.k=3", "cycle.steps=2", "cycle.requests_per_step=2", "cycle.validate_every=1", "sampling.workers=1")


@dataclass(frozen=True)
class Evolved:
    whole: Path
    broken: Path
    metrics: dict[str, Any]


@contextmanager
def cut_off_in_round_two(whole: Path, broken: Path) -> Iterator[None]:
    """Copy what lies in `whole` when its second round begins to learn to `broken`: what a kill there would leave."""
    learn = evolve.Learner.learn
    calls: list[int] = []

    def copy_in_round_two(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            shutil.copytree(whole, broken)
        return learn(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evolve.Learner, "learn", copy_in_round_two)
        yield
