"""A project in a temporary folder whose four stage bodies are toys: real runner, ledger, flows, DVC and MLflow around them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import types
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from genevolve.bench.stats import paired_bootstrap
from genevolve.records import Request, write_jsonl
from genevolve.store import EXPERIMENT
from genevolve.tracking import init_db

Body = Callable[..., dict[str, Any]]


def build(settings: Any, *, out: Path) -> dict[str, Any]:
    write_jsonl(out / "requests.jsonl", [request(i, settings.seeds.data_seed) for i in range(10)])
    return {"kept": 5}


def request(i: int, data_seed: int = 1) -> Request:
    """Return a bench request of the gate half; the first five are about flags, and easy."""
    kind: dict[str, Any] = (
        {"category": "flags", "difficulty": "easy"} if i < 5 else {"category": "birds", "difficulty": "hard"}
    )
    question, track = f"Draw {i} of {data_seed}.", "quality_anchored"
    return Request.model_validate(
        {"id": f"q{i}", "question": question, "eval_type": track, "split": "bench", "half": "gate", **kind}
    )


def cold_start(settings: Any, *, dataset: Path, base: Path, out: Path) -> dict[str, Any]:
    (out / "policy").mkdir(exist_ok=True)
    (out / "policy" / "w").write_text(f"{base.name} {settings.seeds.run_seed}")
    return {"valid": 0.9, "curve": [{"step": i, "loss": 1 / (i + 1)} for i in range(3)]}


def evolve(settings: Any, *, dataset: Path, parent: Path, earlier: Path | None = None, out: Path) -> dict[str, Any]:
    """Remember a line a night: which nights the memory knows of, and from which it came."""
    known = (earlier / "memory.jsonl").read_text() if earlier else ""
    (out / "memory.jsonl").write_text(f"{known}night {settings.cycle.night}\n")
    for step in range(settings.cycle.steps):
        (out / f"step{step}").write_text("rollouts")
    (out / "policy").mkdir(exist_ok=True)
    (out / "policy" / "w").write_text((parent / "w").read_text() + " evolved")
    return {"steps": settings.cycle.steps, "curve": [{"step": 0, "reward": 0.5}]}


def bench(settings: Any, *, dataset: Path, policy: Path, baseline: Path | None, out: Path) -> dict[str, Any]:
    score = 0.5 + 0.1 * (policy / "w").read_text().count("evolved")
    scores = {half: {f"q{i}": score + i / 1000 for i in range(10)} for half in ("gate", "report", "all")}
    (out / "scores.json").write_text(json.dumps(scores))
    one = {"judged": 10, "invalid_programs": 0, "overall": score}
    return {
        "summary": {"all": one, "splits": {"half": {"gate": one, "report": one}}},
        **compared(settings, scores, baseline),
    }


def compared(settings: Any, scores: dict[str, dict[str, float]], baseline: Path | None) -> dict[str, Any]:
    """Return the paired differences of the halves to a baseline's, nothing without one."""
    if baseline is None:
        return {}
    before = json.loads((baseline / "scores.json").read_text())
    return {half: paired_bootstrap(before[half], scores[half], settings.bench.resamples).to_dict() for half in scores}


def modules(**bodies: Body) -> dict[str, types.ModuleType]:
    """Return the four stage modules by their import name, toys but for the bodies given."""
    out = {}
    for name, body in {"build": build, "cold_start": cold_start, "evolve": evolve, "bench": bench, **bodies}.items():
        module = types.ModuleType(f"genevolve.stages.{name}")
        module.run = body  # type: ignore[attr-defined]
        out[module.__name__] = module
    return out


@cache
def _database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        init_db(Path(folder))
        return (Path(folder) / "mlflow.db").read_bytes()


def empty_database(folder: Path) -> None:
    """Put what `init_db` makes into a folder, without the seconds that MLflow's migrations take each time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mlflow.db").write_bytes(_database())
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        where = (str(folder.absolute() / "artifacts"), EXPERIMENT)
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", where)


def lay_out(folder: Path, project: Path) -> None:
    """Put the project's own params.yaml, a toy base and an empty MLflow database into a folder."""
    empty_database(folder / "mlruns")
    lay_out_without_mlflow(folder, project)


def lay_out_without_mlflow(folder: Path, project: Path) -> None:
    shutil.copy(project / "params.yaml", folder / "params.yaml")
    (folder / "assets" / "base-policy").mkdir(parents=True)
    (folder / "assets" / "base-policy" / "w").write_text("base")
