"""What may import what: the layers of architecture.md, and nothing heavy before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "transformers",
    "trl",
    "mlflow",
    "prefect",
    "dvc",
    "onnxruntime",
    "cv2",
    "great_expectations",
    "pandas",
)


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "genevolve.cli",
        "genevolve.profiles",
        "genevolve.ledger",
        "genevolve.tracking",
        "genevolve.stages.runner",
        "genevolve.operations.status",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(module: str) -> None:
    assert loaded_by(f"import {module}").isdisjoint(HEAVY)


def test_help_needs_not_even_the_settings() -> None:
    assert "pydantic" not in loaded_by("import genevolve.cli")


def test_layers_hold(project: Path) -> None:
    """The contracts of pyproject.toml: layers, Prefect in flows, MLflow in tracking, DVC nowhere."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "0 broken" in done.stdout
