"""One small dataset for all tests of this folder: built once a session, by the real stage, from the real world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from genevolve.profiles import load
from genevolve.settings import Settings
from genevolve.stages import build as stage

SIZES = {"recipes": 120, "sft": 12, "sft_heldout": 4, "evolve": 4, "validation": 2, "bench": 6}


def small(project: Path, **sizes: int) -> Settings:
    values = {**SIZES, **sizes}
    over = [f"dataset.{k}={v}" for k, v in values.items()]
    return load("tiny", overrides=[*over, "sampling.workers=1"], path=project / "params.yaml")


@pytest.fixture(scope="session")
def settings(project: Path) -> Settings:
    return small(project)


@pytest.fixture(scope="session")
def resized(project: Path) -> Callable[..., Settings]:
    """The same settings with other sizes."""
    return lambda **sizes: small(project, **sizes)


@pytest.fixture(scope="session")
def dataset(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "dataset"
    out.mkdir()
    (out / "left_over.txt").write_text("of a run that was killed")
    stage.run(settings, out=out)
    return out
