"""Results that one can reckon by hand."""

from __future__ import annotations

from typing import Any

from genevolve.ablation.results import Result


def result(arm: str, seed: int, scores: dict[str, float | None], **given: Any) -> Result:
    fields: dict[str, Any] = {
        "arm": arm,
        "label": arm,
        "seed": seed,
        "profile": "tiny",
        "overrides": {},
        "settings": {"seeds": {"run_seed": seed}},
        "recipe": "0" * 16,
        "dataset": "d" * 64,
        "base": "b",
        "commit": "abc",
        "machine": "here",
        "finished": "2026-11-23",
        "seconds": {"evolve": 30.0, "bench": 30.0},
        "rollouts": 8,
        "scores": scores,
        "valid": 1.0,
    }
    return Result.model_validate({**fields, **given})


def curve(*overall: float, every: int = 4) -> list[dict[str, float]]:
    """A learning curve with a look at the validation split at 0, 4, 8, ... rollouts."""
    return [
        {"rollouts": float(i * every), "validation_kscore": v, "validation_valid": 1.0} for i, v in enumerate(overall)
    ]
