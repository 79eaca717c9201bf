"""One real world for all tests of the tools: built once a session from the data wheels (about three seconds)."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve.tools.world import World, build_world


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools") / "world"
    build_world(folder)
    return folder


@pytest.fixture(scope="session")
def world(world_folder: Path) -> World:
    return World.open(world_folder)
