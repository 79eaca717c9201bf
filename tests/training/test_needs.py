"""What training takes of a machine: the sums of docs/gpu.md for 8.77 billion weights, and what doctor makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve.doctor.examine import examine
from genevolve.doctor.finding import Finding
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
    embedder = tmp_path / "embedder"
    embedder.mkdir()
    with (embedder / "model.safetensors").open("wb") as stream:
        stream.truncate(1_200_000_000)
    monkeypatch.setattr("genevolve.render.ready.gpus", lambda: (8, "GPU 80 GB", 58.0))
    assert lines(*four)["training GPUs"].ok
    beside = lines(*four, f"experience.embedder_model={embedder}")["training GPUs"]
    assert not beside.ok, "56.4 and 2.4"
    assert beside.said.endswith("about 56 GB on each (an estimate) and 2.4 GB of the embedder on the first")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 200e9}))
    assert (
        lines()["disk"]
        .line()
        .startswith("MISSING  disk             200.0 GB free; blocks a cycle of a base of 17.5 GB")
    )
    assert {f.what: f for f in examine("embedded")}["disk"].ok
    assert "training GPUs" not in {f.what for f in examine("embedded")}


def test_doctor_reckons_a_policy_that_samples_beside_its_training(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    (tmp_path / "configs").symlink_to(project / "configs")
    (tmp_path / "base").mkdir()
    with (tmp_path / "base" / "model.safetensors").open("wb") as stream:
        stream.truncate(17_500_000_000)
    here = ("policy.base=base", "policy.backend=local", "policy.device=cuda")

    def line(*over: str) -> Finding:
        return {f.what: f for f in examine("paper", [*here, *over])}["policy GPU"]

    assert line().line().startswith("MISSING  policy GPU       none; cuda takes 17.5 GB of the policy")
    monkeypatch.setattr("genevolve.render.ready.gpus", lambda: (1, "GPU 80 GB", 79.0))
    assert line().ok, "processes of their own have ended before it samples"
    assert "distillation" not in line().said
    one = line("distill.processes=1")
    assert (one.ok, "beside 174 GB of distillation" in one.said) == (False, True)
    assert line("distill.processes=1", "distill.lora_rank=32").ok
    monkeypatch.setattr("genevolve.render.ready.gpus", lambda: (1, "GPU 24 GB", 20.0))
    assert line("distill.device=cpu").ok
    assert "policy GPU" not in {f.what for f in examine("paper")}, "a server samples"


def test_doctor_adds_up_what_shares_a_disk(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    monkeypatch.setenv("GENEVOLVE_WEB", str(tmp_path / "web"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub" / "none yet"))
    service = ("render.backend=service",)

    def lines(free: float, *over: str) -> dict[str, Finding]:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free * 1e9}))
        return {f.what: f for f in examine("paper", over) if f.what.startswith("disk")}

    assert [f.ok for f in lines(200, "world.image_search=embedded", "render.backend=diffusers").values()] == [
        True,
        True,
    ]
    found = lines(60)  # 13,626 trajectories: 27 GB of the web; the generators draw in this process and keep nothing
    assert [f.ok for f in found.values()] == [True, True, False]
    assert "blocks the download of Qwen/Qwen3-VL-8B-Instruct, Qwen/Qwen-Image-Edit-2511" in found["disk, models"].line()
    assert "needs 135 GB beside 30 GB of the above on the same disk" in found["disk, models"].line()
    assert (
        f"pictures in {tmp_path / 'web'}: those of one cycle may need 48 GB"
        in lines(1, *service)["disk, pictures"].line()
    )
    assert lines(80, *service)["disk, models"].ok, "3 + 48 + 19"
    assert not lines(60, *service)["disk, models"].ok
    other = type("Place", (), {"stat": lambda _: type("Stat", (), {"st_dev": 1})})()
    monkeypatch.setattr("genevolve.doctor.machine._existing", lambda p: other if "hub" in str(p) else tmp_path)
    assert lines(60, *service)["disk, models"].ok, "another disk"
    assert set({f.what for f in examine("embedded") if f.what.startswith("disk")}) == {"disk"}
