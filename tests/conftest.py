"""For all tests: no network, no telemetry, one torch thread, and nothing written into the project's own folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# Before any library reads them; workers of pytest-xdist and child processes inherit them.
os.environ.update(
    {
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), str(PROJECT)]),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_OFFLINE": "1",
    }
)
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
for variable in (
    "GENEVOLVE_PROFILE",
    "GENEVOLVE_MLFLOW_RUN",
    "GENEVOLVE_DEBUG",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's folder, to read from."""
    return PROJECT


@pytest.fixture
def in_project(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test with the project's folder as the working directory."""
    monkeypatch.chdir(PROJECT)
    return PROJECT
