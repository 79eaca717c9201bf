"""Training stages by several processes: tiny Qwen3-VL, two processes under `accelerate launch`, beside one alone."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch

from genevolve.cli import main
from genevolve.errors import SettingsError, StageError
from genevolve.policy.base import PolicyError, Sampling
from genevolve.profiles import load
from genevolve.records import Message, Reward, Trajectory
from genevolve.settings import Settings
from genevolve.stages import backends, cold_start, distill, evolve, launch
from genevolve.stages.launch import values_of
from genevolve.training.checkpoint import CheckpointError, adapter_base, policy_hash
from genevolve.training.models import load_model
from genevolve.training.weights import save_trained
from tests.conftest import PROJECT, SIZES
from tests.policy.tiny import job, make_tokenizer, save, seeing_model

FSDP = f"{PROJECT}/configs/accelerate/eight_gpu_fsdp.yaml"
DDP = f"{PROJECT}/configs/accelerate/eight_gpu_ddp.yaml"
COMMON = [
    *(f"dataset.{k}={v}" for k, v in SIZES.items()),
    "policy.system=system_embedded",
    "sampling.workers=1",
    "sampling.show_images=1",
    "sampling.image_pixels=4096",
    "sampling.k=2",
    "sampling.max_turn_tokens=24",
    "sampling.rounds=3",
    "sampling.tool_calls=2",
    "sampling.max_context=1600",
    "cycle.requests_per_step=2",
    "cycle.steps=2",
    "cold_start.trainer=ranks",
    "cold_start.batch=6",
    "cold_start.cutoff=3000",
]


def profile(*overrides: str) -> Settings:
    return load("tiny", overrides=[*COMMON, *overrides], path=PROJECT / "params.yaml")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    words = make_tokenizer()
    return save(tmp_path_factory.mktemp("base") / "base", seeing_model(words), words)


def near(a: Path, b: Path, start: Path, limit: float) -> None:
    """Two policies are the same up to rounding, measured against how far training moved them."""
    one, other, origin = (load_model(p).state_dict() for p in (a, b, start))
    moved = sum(float((one[k] - origin[k]).square().sum()) for k in one) ** 0.5
    apart = sum(float((one[k] - other[k]).square().sum()) for k in one) ** 0.5
    assert moved > 0
    assert apart / moved < limit


def test_a_cold_start_by_two_processes_is_that_of_one(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    alone = cold_start.run(profile(), dataset=dataset, base=base, out=tmp_path / "one")
    settings = profile("cold_start.processes=2", f"cold_start.accelerate={FSDP}")
    found = cold_start.run(settings, dataset=dataset, base=base, out=tmp_path / "two")
    assert alone["pictures"] > 0
    assert {k: v for k, v in found.items() if k != "curve"} == pytest.approx(
        {k: v for k, v in alone.items() if k != "curve"}, rel=1e-5
    )
    assert [path.name for path in temporary.iterdir()] == []  # torch's launcher leaves a folder if it may
    near(tmp_path / "one/policy", tmp_path / "two/policy", base, 1e-2)  # Adam's first steps divide by tiny moments
    assert [p.name for p in (tmp_path / "two").iterdir()] == ["policy"]


class Here:
    """Stands for the launcher: runs the command line that it would run, once, in this process."""

    def __init__(self, call: list[str], *, stdout: IO[bytes], **_: Any) -> None:
        with (
            io.TextIOWrapper(stdout) as said,
            redirect_stdout(said),
            redirect_stderr(said),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr("sys.argv", call[call.index("genevolve") :])
            patch.setattr(launch, "launched", lambda: True)
            patch.setenv("RANK", "0")
            try:
                main()
            except SystemExit as end:
                self.code = end.code

    def wait(self) -> Any:
        return self.code


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(Popen=Here, STDOUT=subprocess.STDOUT))


def goes_on(base: Path, dataset: Path, tmp_path: Path) -> None:
    """An evolution whose steps are launched commands is that of one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = evolve.run(profile(), dataset=dataset, parent=base, out=one)
    settings = profile("distill.processes=2", f"distill.accelerate={FSDP}")
    found = evolve.run(settings, dataset=dataset, parent=base, out=two)
    assert len(found["curve"]) == 2
    for ours, theirs in zip(found["curve"], alone["curve"], strict=True):
        for name in ("tokens", "rows", "lr"):
            assert ours[name] == theirs[name], name
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-4)
    for number in ("001", "002"):
        left = {p.name for p in (two / "rounds" / number).iterdir()}
        assert left == {p.name for p in (one / "rounds" / number).iterdir()}
    load_model(two / "policy")


@pytest.mark.usefixtures("here")
def test_an_evolution_of_launched_steps_goes_on_from_round_to_round(base: Path, dataset: Path, tmp_path: Path) -> None:
    goes_on(base, dataset, tmp_path)


@pytest.mark.slow
def test_an_evolution_by_two_processes_goes_on_from_round_to_round(base: Path, dataset: Path, tmp_path: Path) -> None:
    goes_on(base, dataset, tmp_path)


def test_an_evolution_that_leaves_adapters_goes_on_over_their_base(base: Path, dataset: Path, tmp_path: Path) -> None:
    rows = {}
    for saved in ("merged", "adapters"):
        settings = profile("distill.lora_rank=4", f"distill.saved={saved}", "cycle.validate_every=1")
        rows[saved] = evolve.run(settings, dataset=dataset, parent=base, out=tmp_path / saved)["curve"]
    for one, other in zip(rows["merged"], rows["adapters"], strict=True):
        assert one["reward"] == other["reward"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-4)
    assert adapter_base(tmp_path / "adapters/policy") in (base, None)  # None: the start was the best validated policy
    settings = profile("distill.lora_rank=4", "distill.saved=adapters")
    learner = distill.Learner(settings, base, base, dataset)
    save_trained(learner.trainer.weights, base, tmp_path / "adapter", adapters_over=str(base))
    with pytest.raises(SettingsError, match=r"a LoRA adapter itself; set distill\.saved to merged"):
        distill.Learner(settings, tmp_path / "adapter", tmp_path / "adapter", dataset)


def test_the_trainer_sees_what_the_sampler_showed(base: Path, dataset: Path, tmp_path: Path) -> None:
    """Pictures of the embedded world among the tokens: the first step's log-probs are those stored, and a guide teaches."""
    settings = profile("distill.lora_rank=4", "sampling.show_images=2")
    files = sorted(backends.world(dataset).entity_of_file)[:2]
    policy = backends.make_policy(settings, base, dataset)
    told = [job(f"r{i}", 3, pictures=2) for i in range(4)]
    told = [
        dataclasses.replace(j, pictures=lambda: [(f"IMG_{n + 1:03d}", f) for n, f in enumerate(files)]) for j in told
    ]
    sampled = policy.sample(told, Sampling(0.7, 0.95, 24, 1600, 4), seed=1)
    played = [
        Trajectory(
            id=j.key,
            request_id=f"q{i // 2}",
            rollout=i % 2,
            question=j.question,
            messages=(Message(role="system", content=j.system), Message(role="user", content=j.question)),
            prompt_ids=s.prompt_ids,
            completion_ids=s.completion_ids,
            assistant_mask=s.assistant_mask,
            logprobs=s.logprobs,
            pictures=s.pictures,
            temperature=0.7,
            policy_hash=policy.policy_hash,
            tokenizer_hash=policy.tokenizer_hash,
            reward=Reward(total=i / 4),
        )
        for i, (j, s) in enumerate(zip(told, sampled, strict=True))
    ]
    assert sum(len(t.pictures) for t in played) >= 2
    learner = distill.Learner(settings, base, base, dataset)
    metrics = learner.learn(played, {"q0": "- Look at the picture first."}, tmp_path / "policy")
    assert metrics["old_gap"] < 1e-3
    assert metrics["sdl/hit_rate"] == 0.5
    assert learner.policy_hash == policy_hash(tmp_path / "policy")
    (pictured, *_) = [t for t in played if t.pictures]
    other = pictured.pictures[0].model_copy(update={"sha256": "0" * 64})
    learner = distill.Learner(settings, base, base, dataset)
    with pytest.raises(PolicyError, match="is not the picture that the policy was shown"):
        learner.learn([pictured.model_copy(update={"pictures": (other,)})], {}, tmp_path / "policy")


def fails(base: Path, tmp_path: Path) -> None:
    (tmp_path / "trajectories.jsonl").write_text("{}\n")
    (tmp_path / "guides.jsonl").write_text("")
    settings = profile("distill.processes=2", f"distill.accelerate={DDP}")
    folders: dict[str, Any] = {"policy": base, "reference": base, "trajectories": tmp_path, "experience": tmp_path}
    with pytest.raises(StageError, match=r"^The 2 training processes failed: .*trajectories\.jsonl, line 1"):
        distill.run(settings, **folders, out=tmp_path / "out")
    assert (tmp_path / "out/launch.log").is_file()


@pytest.mark.usefixtures("here")
def test_what_fails_in_a_launched_command_is_told_in_its_sentence(base: Path, tmp_path: Path) -> None:
    fails(base, tmp_path)


@pytest.mark.slow
def test_what_fails_in_launched_processes_is_told_in_its_sentence(base: Path, tmp_path: Path) -> None:
    fails(base, tmp_path)


def test_settings_travel_to_the_processes_as_they_are() -> None:
    settings = profile("distill.lora_rank=4", "distill.processes=2", "cold_start.precision=bfloat16")
    assert Settings.model_validate(json.loads(json.dumps(values_of(settings)))) == settings


def test_refusals_are_sentences(base: Path, tmp_path: Path) -> None:
    settings = profile("distill.processes=2", "distill.accelerate=nowhere.yaml")
    folders: dict[str, Any] = {"policy": base, "reference": base, "trajectories": tmp_path, "experience": tmp_path}
    with pytest.raises(SettingsError, match=r"no accelerate configuration nowhere\.yaml"):
        distill.run(settings, **folders, out=tmp_path / "out")
    with pytest.raises(SettingsError, match=r"precision needs cold_start\.trainer ranks"):
        profile("cold_start.trainer=trl", "cold_start.precision=bfloat16")
    with pytest.raises(CheckpointError, match=r"no model of that name"):
        cold_start.run(profile(), dataset=tmp_path, base=Path("nobody/nothing"), out=tmp_path)


def test_embedded_recipes_do_not_name_what_only_gpus_set() -> None:
    values = load("embedded", path=PROJECT / "params.yaml").section_values("cold_start", "distill")
    new = {"trainer", "processes", "accelerate", "device", "saved"}
    assert not new & (values["cold_start"].keys() | values["distill"].keys())
