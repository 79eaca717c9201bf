"""The result of one (arm, seed) run: a small JSON that git keeps, from which every table can be rebuilt."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genevolve.errors import GenEvolveError
from genevolve.files import write_whole
from genevolve.records import Request
from genevolve.scene import SKILL_OF
from genevolve.settings import Settings

REQUESTS = "requests.json"
"""Beside the results: what every bench request is (track, category, difficulty, skills), once for all of them."""

CURVE = (
    "reward",
    "kscore",
    "valid",
    "hit_rate",
    "hit_rate_own",
    "hit_rate_transfer",
    "sdl/hit_rate",
    "teacher_advantage",
    "teacher_advantage_best",
    "teacher_advantage_worst",
    "kl",
    "entropy",
    "validation_reward",
    "validation_kscore",
    "validation_valid",
)
"""What a result keeps of an evolution's rounds."""


class ResultError(GenEvolveError):
    """A result file cannot be read, or does not belong with the others; the message says which and what to do."""


class BenchmarkScores(BaseModel):
    """What a run's policy did on a further benchmark of ablation.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dataset: str
    """sha256 of the benchmark's folder."""
    scores: dict[str, float | None]
    """As `scores` of the result."""


class Result(BaseModel):
    """What one arm did with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    arm: str
    label: str
    seed: int
    profile: str
    overrides: dict[str, dict[str, Any]]
    """What the arm's entry in ablation.yaml changed."""
    settings: dict[str, Any]
    """All values the run had, by section; switches at their defaults left out."""
    recipe: str
    """16 hex digits of sha256 over settings, dataset and base: two results of an arm are comparable when they agree."""
    dataset: str
    """sha256 of the dataset folder."""
    base: str
    """sha256 of the base's weights, then of its tokenizer."""
    commit: str
    machine: str
    finished: str
    """UTC date."""
    seconds: dict[str, float]
    """Wall time of evolve and bench; the cold start is shared by the seed's arms and stands under its own name."""
    rollouts: int
    """Training rollouts, validation and bench not counted; 0 where nothing evolved."""
    scores: dict[str, float | None]
    """Bench request -> KScore by the reward judge; 0 without a valid program, null where the judge failed."""
    scores_second: dict[str, float | None] | None = None
    """The same by a judge that no reward comes from; null as a whole where there was none."""
    benchmarks: dict[str, BenchmarkScores] = Field(default_factory=dict)
    """By name; `recipe` does not depend on them."""
    valid: float
    """Share of bench rollouts with a valid program."""
    dimensions: dict[str, float | None] = Field(default_factory=dict)
    """Means of the KScore's dimensions over drawn pictures."""
    abilities: dict[str, float] = Field(default_factory=dict)
    """Rates of bench/ability.py."""
    chosen_round: int | None = None
    """The round whose policy was scored: the best on the validation split; 0 is the start."""
    curve: list[dict[str, float]] = Field(default_factory=list)
    """One row a round, and one for the start: `rollouts` so far and the fields of CURVE it has."""

    def path(self, folder: Path) -> Path:
        return result_path(folder, self.arm, self.seed)

    def write(self, folder: Path) -> Path:
        """Write the result into a folder, whole or not at all; return its file."""
        path = self.path(folder)
        write_json(path, self.model_dump(mode="json"))
        return path


def result_path(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{arm}-s{seed}.json"


def read_result(path: Path) -> Result:
    """Return a result; raises ResultError naming the file and what is wrong."""
    try:
        return Result.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ResultError(
            f"{path} is not a result ({where or 'JSON'}: {first['msg']}); delete it to run it again"
        ) from e


def read_results(folder: Path) -> list[Result]:
    """Return all results of a folder, by arm and seed."""
    paths = folder.glob("*-s*.json")
    return sorted((read_result(p) for p in paths), key=lambda r: (r.arm, r.seed))


def recipe_of(settings: Settings, dataset: str, base: str) -> str:
    """Return 16 hex digits over all that makes a result, our code left out: the commit is noted beside it."""
    text = json.dumps({"settings": all_values(settings), "dataset": dataset, "base": base}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def all_values(settings: Settings) -> dict[str, Any]:
    return settings.section_values(*(n for n in type(settings).model_fields if n not in ("profile", "retention")))


def curve_rows(start: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], per_round: int) -> list[dict[str, float]]:
    """Return the rows a result keeps; `start` is the start's validation, `per_round` the rollouts of a round."""
    kept = [{"rollouts": 0.0, **_numbers(start)}]
    return kept + [{"rollouts": float(row["step"] * per_round), **_numbers(row)} for row in rows]


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: round(float(row[key]), 6) for key in CURVE if key in row}


def describe(requests: Sequence[Request]) -> dict[str, dict[str, Any]]:
    """Return request id -> what it is, for the changes by track and by skill."""
    return {r.id: _what(r) for r in requests}


def _what(request: Request) -> dict[str, Any]:
    kinds = {kind for kind, _, _ in request.scene.requirements()} if request.scene else set()
    return {
        "track": request.eval_type,
        "category": request.category,
        "difficulty": request.difficulty,
        "half": request.half,
        "skills": sorted({SKILL_OF[kind] for kind in kinds}),
    }


def write_requests(folder: Path, described: Mapping[str, Any]) -> None:
    """Write or check `requests.json`; raises ResultError when the folder's results are of another bench."""
    path = folder / REQUESTS
    if path.exists() and read_requests(folder) != described:
        raise ResultError(f"The results in {folder} are of another bench than this one: take another --out folder.")
    if not path.exists():
        write_json(path, described)


def read_requests(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `write_requests` wrote; raises ResultError where it is missing."""
    path = folder / REQUESTS
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ResultError(f"{path} is missing or unreadable: `genevolve ablate` writes it beside the results") from e
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON, keys sorted, whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def commit() -> str:
    """Return the checkout's commit, `-dirty` behind it when tracked files differ, or "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Return processor and cores, as far as the system says."""
    import os

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"
