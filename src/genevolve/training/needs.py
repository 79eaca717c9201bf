"""What training takes of a machine, reckoned from the size of the base's files; docs/gpu.md has the sums (ours, estimates).

Imports no torch. Bytes are reckoned per byte of bfloat16 weights: two bytes a parameter.
"""

from __future__ import annotations

from pathlib import Path

import yaml

ACTIVATIONS_GB = 17.0
"""Of a process that trains all weights: activations of 16,384 tokens, gathered embedding and head with their gradients."""
ADAPTERS_GB = 10.0
"""Of a process that trains adapters: the same activations, adapters with their moments."""
POLICIES = 6
"""Whole policies on the disk at a time: cold start, best, last and newest round, the result, its registered copy."""


def weights_gb(folder: Path) -> float:
    """Return the gigabytes (1e9) of a policy folder's weights, 0 where it has none."""
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 1e9


def split(processes: int, accelerate: str) -> bool:
    """Say whether the launcher's file splits the weights over the processes; one that cannot be read does not."""
    try:
        values = yaml.safe_load(Path(accelerate).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return processes > 1 and isinstance(values, dict) and values.get("distributed_type") == "FSDP"


def gpu_gb(weights: float, *, lora: bool, shares: int) -> float:
    """Return the gigabytes of each GPU that training takes, the more of loading and of a step.

    `shares`: over how many processes weights, gradients and optimiser are split; 1: each has all of them. All weights: 4
    bytes for the weight, 4 for its gradient, 8 for its moments, 2 for the reference; while they are loaded each process
    holds 4 and 2. Adapters: 2.
    """
    if lora:
        return weights + ADAPTERS_GB
    return max(3 * weights, 9 * weights / shares + ACTIVATIONS_GB)


def disk_gb(weights: float, *, lora: bool) -> float:
    """Return the gigabytes of disk that a cycle needs: POLICIES, and two checkpoints of 12 bytes a weight: a
    frozen vision tower, which no checkpoint holds, is counted too."""
    return POLICIES * weights + (0.0 if lora else 2 * 6 * weights)
