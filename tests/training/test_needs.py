"""What training takes of a machine: the sums of docs/gpu.md for 8.77 billion weights, and what doctor makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve.doctor import Finding, examine
from genevolve.training.needs import disk_gb, gpu_gb, split, weights_gb

BASE = 17.5
"""Gigabytes of Qwen3-VL-8B in bfloat16."""


def test_the_sums_are_those_of_the_manual(project: Path, tmp_path: Path) -> None:
    assert gpu_gb(BASE, lora=True, shares=1) == pytest.approx(27.5)
    assert gpu_gb(BASE, lora=False, shares=8) == pytest.approx(52.5), "loading takes more than a step"
    assert gpu_gb(BASE, lora=False, shares=4) == pytest.approx(56.4, abs=0.1)
    assert gpu_gb(BASE, lora=False, shares=1) == pytest.approx(174.5)
    assert disk_gb(BASE, lora=False) == pytest.approx(315)
    assert disk_gb(BASE, lora=True) == pytest.approx(105)
    folder = project / "configs" / "accelerate"
    assert split(8, str(folder / "eight_gpu_fsdp.yaml"))
    assert not split(1, str(folder / "eight_gpu_fsdp.yaml"))
    assert not split(8, str(folder / "eight_gpu_ddp.yaml"))
    assert not split(8, str(tmp_path / "none.yaml"))
    assert not split(8, str(folder / "one_gpu.yaml"))


def test_doctor_holds_gpus_and_disk_against_the_profile(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    (tmp_path / "configs").symlink_to(project / "configs")
    base = tmp_path / "base"
    base.mkdir()

    def lines(*over: str) -> dict[str, Finding]:
        return {f.what: f for f in examine("paper", [f"policy.base={base}", *over])}

    assert lines()["base policy"].ok is False
    assert "how full they get is told once the base is here" in lines()["training GPUs"].said
    with (base / "model.safetensors").open("wb") as stream:
        stream.truncate(17_500_000_000)  # a hole: it takes no room
    assert weights_gb(base) == BASE
    none = lines()
    assert none["base policy"].ok
    assert (
        none["training GPUs"].line().startswith("MISSING  training GPUs    none; the profile trains on 8, about 52 GB")
    )
    monkeypatch.setattr("genevolve.render.ready.gpus", lambda: (8, "GPU 80 GB", 79.0))
    assert lines()["training GPUs"].ok
    four = ("cold_start.processes=4", "distill.processes=4")
    assert lines(*four)["training GPUs"].said.endswith("trains on 4, about 56 GB on each (an estimate)")
    monkeypatch.setattr("genevolve.render.ready.gpus", lambda: (8, "GPU 80 GB", 50.0))
    assert not lines(*four)["training GPUs"].ok, "another process fills one of them"
    assert lines("cold_start.lora_rank=32", "distill.lora_rank=32")["training GPUs"].ok
    monkeypatch.setattr("genevolve.doctor.shutil.disk_usage", lambda _: type("Usage", (), {"free": 200e9}))
    assert (
        lines()["disk"]
        .line()
        .startswith("MISSING  disk             200.0 GB free; blocks a cycle of a base of 17.5 GB")
    )
    assert {f.what: f for f in examine("embedded")}["disk"].ok
    assert "training GPUs" not in {f.what for f in examine("embedded")}
