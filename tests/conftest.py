"""For all tests: no network, no telemetry, one torch thread, and nothing written into the project's own folders."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from genevolve.settings import Settings

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
os.environ.setdefault("DVC_SITE_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"dvc-of-tests-{os.getuid()}"))
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
for variable in (
    "GENEVOLVE_PROFILE",
    "GENEVOLVE_MLFLOW_RUN",
    "GENEVOLVE_DEBUG",
    "GENEVOLVE_AUDITOR_URL",
    "GENEVOLVE_COMMAND",
    "GENEVOLVE_JUDGE_KEY",
    "GENEVOLVE_JUDGE_URL",
    "GENEVOLVE_POLICY_CONCURRENCY",
    "GENEVOLVE_POLICY_KEY",
    "GENEVOLVE_POLICY_RELOAD",
    "GENEVOLVE_POLICY_START",
    "GENEVOLVE_POLICY_URL",
    "GENEVOLVE_SERPER_RATE",
    "GENEVOLVE_SERPER_URL",
    "GENEVOLVE_SERPER_USD",
    "GENEVOLVE_SUMMARISER_KEY",
    "GENEVOLVE_SUMMARISER_URL",
    "GENEVOLVE_TEACHER_KEY",
    "GENEVOLVE_TEACHER_URL",
    "GENEVOLVE_WEB",
    "GENEVOLVE_WRITER_URL",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "OPENAI_API_KEY",
    "SERPER_API_KEY",
):
    os.environ.pop(variable, None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run apart what `xdist_group` holds together: some pairs of pytest and pytest-xdist do, and say nothing."""
    if getattr(session.config.option, "loadgroup", False):
        grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
        if any("@" not in item.nodeid for item in grouped):
            raise pytest.UsageError(
                "this pytest and this pytest-xdist do not group tests: install those of pyproject.toml"
            )


@pytest.fixture(scope="session", autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What tests start leaves its temporary files below pytest's own folder: Prefect, MLflow and torch clear none away."""
    folder = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's folder, to read from."""
    return PROJECT


@pytest.fixture
def in_project(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test with the project's folder as the working directory."""
    monkeypatch.chdir(PROJECT)
    return PROJECT


# One small dataset for all tests that need one: built once a session, by the real stage, from the real world.
SIZES = {"recipes": 120, "sft": 12, "sft_heldout": 4, "evolve": 4, "validation": 2, "bench": 6}


def small(**sizes: int) -> Settings:
    from genevolve.profiles import load

    values = {**SIZES, **sizes}
    over = [f"dataset.{k}={v}" for k, v in values.items()]
    return load("tiny", overrides=[*over, "sampling.workers=1"], path=PROJECT / "params.yaml")


@pytest.fixture(scope="session")
def settings() -> Settings:
    return small()


@pytest.fixture(scope="session")
def resized() -> Callable[..., Settings]:
    """The same settings with other sizes."""
    return small


@pytest.fixture(scope="session")
def dataset(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read by all processes of pytest-xdist, built by the first that needs it."""
    from genevolve.stages import build

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    out, whole = folder / "shared-dataset" / "dataset", folder / "shared-dataset" / "whole"
    out.mkdir(parents=True, exist_ok=True)
    with (folder / "shared-dataset" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            (out / "left_over.txt").write_text("of a run that was killed")
            build.run(settings, out=out)
            whole.touch()
    return out
