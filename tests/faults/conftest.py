"""The undisturbed cycle that all disturbed ones with DVC are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve.tracking import SWITCH_VARIABLE
from tests.faults.bodies import ONCE
from tests.faults.chain import Project
from tests.faults.results import digests


@pytest.fixture(scope="session")
def undisturbed_dvc(tmp_path_factory: pytest.TempPathFactory, project: Path) -> dict[str, str]:
    whole = Project(tmp_path_factory.mktemp("dvc") / "undisturbed", project, **{SWITCH_VARIABLE: "off"})
    whole.ok("genevolve", "evolve")
    assert whole.switches.calls() == ONCE
    return digests(whole.folder)
