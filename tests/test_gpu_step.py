"""The GPU benchmark's program, tried on a CPU: both trainers make the same step, and the shapes are the published ones."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_step import config_of, measure, needed_gb


def command(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "benchmarks.gpu_step", *words]
    return subprocess.run(call, cwd=project, capture_output=True, text=True, timeout=300, check=False)


TINY = {"model_config": "tiny", "device": "cpu", "tokens": 128, "repeats": 1, "rank": 4}


def check(ours: dict[str, float], theirs: dict[str, float]) -> None:
    for arm in (ours, theirs):
        assert arm["tokens_per_s"] == pytest.approx(256 / arm["step_s"], rel=0.05)
        assert arm["peak_gb"] > 0.1
    # ours distils a tenth of the tokens besides
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.2)


def test_a_tiny_step_of_ours_and_of_trl() -> None:
    chosen = argparse.Namespace(rows=2, **TINY)
    check(measure("lora", chosen), measure("trl_lora", chosen))


@pytest.mark.slow
def test_the_command_measures_each_arm_in_a_process_of_its_own(project: Path) -> None:
    words = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = command(project, *words, "--arms", "lora,trl_lora")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["device"], found["tokens"], found["rows"], found["left_out"]) == ("cpu", 128, 2, {})
    check(found["arms"]["lora"], found["arms"]["trl_lora"])


def test_no_gpu_is_one_sentence(project: Path) -> None:
    if torch.cuda.is_available():
        return
    done = command(project)
    assert done.returncode == 1
    assert done.stderr.startswith("There is no GPU that PyTorch can use here")
    assert "Traceback" not in done.stderr


def test_shapes_have_the_published_numbers_of_weights() -> None:
    from transformers import AutoModelForImageTextToText

    for name, billions in (("qwen3-vl-8b", 8.77), ("qwen3-vl-4b", 4.44)):
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config_of(name))
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
    assert needed_gb("qwen3-vl-8b", "full") == pytest.approx(16 * 8.19 + 4 * 0.58, abs=0.5)
    assert needed_gb("qwen3-vl-8b", "lora") == pytest.approx(2 * 8.77, abs=0.1)
