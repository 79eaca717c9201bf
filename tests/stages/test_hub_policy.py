"""A policy of another architecture in the stages: where it is played, what it reads, and the commands that take it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from genevolve.agent.format import answer_turn, call_turn
from genevolve.cli import app
from genevolve.dataset.public import load_requests
from genevolve.errors import SettingsError
from genevolve.policy.base import Job, PolicyError, Sampled
from genevolve.policy.huggingface import HubPolicy
from genevolve.policy.local import LocalPolicy
from genevolve.policy.pictures import decode
from genevolve.profiles import load
from genevolve.records import Trajectory, read_jsonl
from genevolve.settings import Settings
from genevolve.stages import bench, evolve
from genevolve.stages.backends import make_policy, make_tools, picture_bytes, system_text, world
from genevolve.stages.crew import Crew, Places, bench_sampling, places, training_sampling
from genevolve.training.checkpoint import policy_hash
from tests.policy.tiny import make_tokenizer, save, seeing_model

LOW = ["sampling.max_turn_tokens=24", "sampling.max_context=260", "sampling.batch=4", "cycle.requests_per_step=2"]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer()
    return save(tmp_path_factory.mktemp("qwen3vl"), seeing_model(tokenizer), tokenizer)


def profile(*overrides: str, prompt: Path | None = None) -> Settings:
    named = [f"policy.system={prompt}"] if prompt else []
    return load("tiny", overrides=[*LOW, *named, *overrides])


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "released.md"
    path.write_text("You are the released agent.\n{{guide}}\nTools: search.\n", encoding="utf-8")
    return path


def test_the_system_prompt_is_the_named_one_and_a_missing_one_is_a_sentence(prompt: Path, tmp_path: Path) -> None:
    assert system_text(profile()) == system_text(profile("policy.system=system_embedded"))
    assert system_text(profile("policy.system=system")).startswith("# Role")
    assert system_text(profile(prompt=prompt)).startswith("You are the released agent.\n{{guide}}")
    with pytest.raises(SettingsError, match=r"policy\.system: the system prompt .*nowhere\.md cannot be read"):
        system_text(profile(prompt=tmp_path / "nowhere.md"))
    prompt.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not UTF-8"):
        system_text(profile(prompt=prompt))


def test_the_embedded_base_keeps_our_engine_and_others_must_name_their_prompt(
    seeing: Path, project: Path, prompt: Path, dataset: Path
) -> None:
    base = project / "assets" / "base-policy"
    assert isinstance(make_policy(profile(), base, dataset), LocalPolicy)
    with pytest.raises(SettingsError, match=r"say which system prompt it reads, --set policy\.system=system"):
        make_policy(profile(), seeing, dataset)
    assert isinstance(make_policy(profile(prompt=prompt), seeing, dataset), HubPolicy)
    with pytest.raises(PolicyError, match="without eyes"):
        make_policy(profile("sampling.show_images=2"), base, dataset)
    with pytest.raises(PolicyError, match=r"policy\.device is cuda"):
        make_policy(profile("policy.device=cuda"), base, dataset)


def test_a_crew_plays_it_in_this_process_and_changes_policies(
    seeing: Path, project: Path, prompt: Path, dataset: Path
) -> None:
    settings = profile("sampling.workers=2", prompt=prompt)
    requests = load_requests(dataset, "evolve")[:2]
    sampling = training_sampling(settings)
    before = torch.get_num_threads()
    try:
        with Crew(settings, dataset) as crew:
            first = crew.play(seeing, requests, 3, sampling, 1)
            again = crew.play(seeing, requests, 3, sampling, 1)
            ours = crew.play(project / "assets" / "base-policy", requests[:1], 1, sampling, 1)
    finally:
        torch.set_num_threads(before)
    assert first == again
    assert len({t.completion_ids for t in first}) == 6
    assert first[0].messages[0].content == "You are the released agent.\nTools: search."
    assert (
        {t.policy_hash for t in first} == {make_policy(settings, seeing, dataset).policy_hash} != {ours[0].policy_hash}
    )
    assert all(t.reward is not None and t.reward.total == 0 for t in first)  # random weights write no program


def test_places_are_a_process_a_gpu_and_one_for_weights_on_the_cpu(
    seeing: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = project / "assets" / "base-policy"
    three = "sampling.workers=3"
    assert places(profile(three), base) == Places(("cpu",) * 3)
    assert places(profile(three), seeing) == Places(("cpu",), 3)
    for gpus, want in ((0, ("cuda",)), (1, ("cuda",)), (2, ("cuda:0", "cuda:1")), (8, ("cuda:0", "cuda:1", "cuda:2"))):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=gpus: n)
        assert places(profile(three, "policy.device=cuda"), seeing).devices == want
        assert places(profile(three, "policy.device=cuda:1"), base).devices == ("cuda:1",)
        assert places(profile("policy.device=cuda"), base).devices == ("cuda",)  # tiny has one worker


def test_pictures_of_the_world_are_what_a_policy_is_shown(seeing: Path, prompt: Path, dataset: Path) -> None:
    settings = profile("sampling.show_images=2", "sampling.image_pixels=2048", prompt=prompt)
    assert make_tools(settings, dataset).show == 2
    assert make_tools(profile(), dataset).show == 0
    policy = make_policy(settings, seeing, dataset)
    assert isinstance(policy, HubPolicy)
    assert policy.eyes is not None
    file = next(iter(world(dataset).entity_of_file))
    image = decode(policy.eyes.read(file))
    assert image.size == (320, 320)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert len(set(image.getdata())) > 2
    assert picture_bytes(dataset, file) == policy.eyes.read(file)


def test_generate_and_bench_take_it(
    seeing: Path, prompt: Path, dataset: Path, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(project / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENEVOLVE_TRACKING", "off")
    given = ["-p", "tiny", "--dataset", str(dataset), "--policy", str(seeing)]
    for override in (*LOW, f"policy.system={prompt}", "bench.requests=2"):
        given += ["--set", override]
    result = CliRunner().invoke(app, ["generate", "Draw a giraffe.", *given])
    assert "The policy made no program" in str(result.exception)
    assert (tmp_path / "picture.trajectory.json").exists()
    result = CliRunner().invoke(app, ["bench", *given, "--out", str(tmp_path / "bench")])
    assert result.exit_code == 0, result.output
    assert '"valid": 0.0' in result.output
    result = CliRunner().invoke(app, ["bench", "-p", "tiny", "--policy", "Nobody/Nothing"])
    assert "hf download Nobody/Nothing" in str(result.exception)


def test_bench_sampling_is_the_benchs(prompt: Path) -> None:
    assert bench_sampling(profile(prompt=prompt)).temperature == 0.6


def test_pictures_are_shown_read_by_the_training_and_shown_again_in_the_bench(
    seeing: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling, experience, distillation, bench. Random weights call no tool: the tokens are theirs, the turns' text is not."""
    sample, start = HubPolicy.sample, policy_hash(seeing)
    golds = {r.question: r.gold_program.gen_prompt for r in load_requests(dataset) if r.gold_program}
    cited = [("IMG_001", "its shape")]

    def speaks(job: Job, best: bool) -> Job:
        weak = answer_turn("seen", "The thing of the first reference image.", cited)
        turns = [call_turn("how does it look", "image_search", job.question), weak, weak, weak]
        turns[1:1] = [answer_turn("seen", golds[job.question], cited)] if best else []  # refused where it names two
        said = iter(turns)
        return dataclasses.replace(job, step=lambda _: job.step(next(said)))

    def plays(self: HubPolicy, jobs: list[Job], *how: Any, **more: Any) -> list[Sampled]:
        trained = self.policy_hash != start  # so that the round's weights become the cycle's
        return sample(self, [speaks(job, trained or job.key in bests) for job in jobs], *how, **more)

    bests = {f"{r.id}/0" for r in load_requests(dataset, "evolve")}
    monkeypatch.setattr(HubPolicy, "sample", plays)
    settings = profile(
        "policy.system=system_embedded", "sampling.show_images=1", "sampling.image_pixels=4096", "sampling.k=2",
        "sampling.max_turn_tokens=400", "sampling.max_context=6000", "cycle.steps=1", "bench.requests=2",
        "experience.gap=0.01", "cycle.patience=0", "sampling.bench_temperature=1",
    )  # fmt: skip
    trained, out = tmp_path / "trained", tmp_path / "bench"
    trained.mkdir()
    out.mkdir()
    curve = evolve.run(settings, dataset=dataset, parent=seeing, out=trained)["curve"]
    rollouts = list(read_jsonl(trained / "rounds/001/trajectories.jsonl", Trajectory))
    assert [len(t.pictures) for t in rollouts] == [1] * 4
    assert curve[0]["bundles"] == 2
    assert curve[0]["sdl/hit_rate"] == 1
    assert curve[0]["old_gap"] < 1e-4  # the training saw the pictures that the sampling did
    assert curve[0]["grad_norm"] > 0
    assert policy_hash(trained / "policy") != start
    bench.run(settings, dataset=dataset, policy=trained / "policy", out=out)
    (block,) = (out / "blocks").glob("*.jsonl")
    assert [len(t.pictures) for t in read_jsonl(block, Trajectory)] == [1] * 2
