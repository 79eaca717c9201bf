"""Fixtures of the training tests: one thread, and a small config with fields to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from genevolve.training.distill_config import DistillConfig


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def config() -> Callable[..., DistillConfig]:
    def make(**changes: Any) -> DistillConfig:
        return DistillConfig(**{"lr": 1e-2, "steps": 4, "micro_batch_tokens": 120, **changes})

    return make
