"""One evolution for all tests that need one whole; they are of one xdist group, so that it is played once."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve.profiles import load
from genevolve.settings import Settings
from genevolve.stages import evolve

from .parts import FEW, Evolved, cut_off_in_round_two


@pytest.fixture(scope="session")
def few(project: Path) -> Settings:
    return load("tiny", overrides=[*FEW], path=project / "params.yaml")


@pytest.fixture(scope="session")
def base(project: Path) -> Path:
    return project / "assets" / "base-policy"


@pytest.fixture(scope="session")
def evolved(few: Settings, dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Evolved:
    """A cycle from a cold start, to read from; `broken` is one test's own."""
    folder = tmp_path_factory.mktemp("evolved")
    whole, broken = folder / "whole", folder / "broken"
    whole.mkdir()
    with cut_off_in_round_two(whole, broken):
        metrics = evolve.run(few, dataset=dataset, parent=base, out=whole)
    return Evolved(whole, broken, metrics)
