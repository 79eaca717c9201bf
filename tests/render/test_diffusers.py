"""The paper's two pipelines with tiny random weights: real loading, real denoising steps, on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from genevolve.render.base import Options, RenderError, RenderJob, noise_seed
from genevolve.render.diffusers import EDIT, TEXT, Diffusers
from genevolve.services.cache import CallCache
from tests.render.tiny import build, opened, picture, tiny_diffusers

RED, BLUE = picture("red"), picture("blue", (48, 64), "JPEG")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def generator(folders: tuple[Path, Path]) -> Diffusers:
    return tiny_diffusers(*folders)


def passes(generator: Diffusers, kind: str, job: RenderJob) -> int:
    """Return how often the transformer ran for a job."""
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    hook = generator._pipe(kind).transformer.register_forward_hook(add)
    try:
        assert generator.render([job])[0] is not None
    finally:
        hook.remove()
    return count


def test_programs_with_and_without_references_go_to_their_pipelines_and_come_back_in_order(
    generator: Diffusers,
) -> None:
    jobs = [
        RenderJob("a", "A red flag.", (RED,), 1),
        RenderJob("b", "A flag.", (), 1),
        RenderJob("c", "Two flags.", (BLUE, RED), 1),
    ]
    pictures = generator.render(jobs)
    assert [opened(p).size for p in pictures] == [(64, 48), (64, 64), (48, 64)], "the shape is the first reference's"
    assert generator.render(jobs[::-1]) == pictures[::-1], "the same noise, whatever was drawn before"
    assert len(set(pictures)) == 3
    assert opened(pictures[1]).convert("L").getextrema() != (0, 0)


def test_the_noise_is_the_requests_and_the_runs(generator: Diffusers) -> None:
    one, other_run, other_request = (RenderJob(r, "A flag.", (), s) for r, s in (("a", 1), ("a", 2), ("b", 1)))
    assert len(set(generator.render([one, other_run, other_request]))) == 3
    assert noise_seed(RenderJob("", "", seed=7)) == 7, "a caller of the server may name the seed itself"


def test_references_and_their_order_are_seen(generator: Diffusers) -> None:
    jobs = [RenderJob("a", "It.", references, 1) for references in ((RED,), (picture("green"),), (RED, BLUE))]
    jobs.append(RenderJob("a", "It.", (BLUE, RED), 1, Options(width=64, height=48)))
    assert len(set(generator.render(jobs))) == 4


def test_true_cfg_is_really_computed_and_steps_are_counted(generator: Diffusers) -> None:
    plain, none = RenderJob("a", "A flag.", (RED,), 1), Options(true_cfg=1.0)
    assert passes(generator, EDIT, plain) == 2 * generator.steps, "a blank negative prompt is one"
    assert passes(generator, EDIT, RenderJob("a", "A flag.", (RED,), 1, none)) == generator.steps
    text = RenderJob("a", "A flag.", (), 1, Options(steps=3))
    assert passes(generator, TEXT, text) == 6
    stronger = RenderJob("a", "A flag.", (RED,), 1, Options(true_cfg=7.0))
    other = RenderJob("a", "A flag.", (RED,), 1, Options(negative="a red flag"))
    assert len(set(generator.render([plain, stronger, other]))) == 3


def test_a_drawing_of_the_embedded_world_is_a_reference_too(generator: Diffusers) -> None:
    svg = (
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><rect width="60" height="40" fill="#00f"/></svg>'
    )
    drawn, bad = generator.render([RenderJob("a", "It.", (svg,), 1), RenderJob("a", "It.", (b"<svg>",), 1)])
    assert opened(drawn).size == (64, 64)
    assert bad is None


def test_a_program_that_fails_is_missing_and_the_others_are_drawn(
    generator: Diffusers, caplog: pytest.LogCaptureFixture
) -> None:
    good = RenderJob("a", "A flag.", (), 1)
    zero = RenderJob("z", "A flag.", (), 1, Options(steps=0))  # the scheduler divides by them
    cut = RenderJob("cut", "A flag.", (RED[:60],), 1)
    found = generator.render([zero, good, cut, zero, zero, zero])
    assert [p is not None for p in found] == [False, True, False, False, False, False]
    assert "request z: the generator failed (ZeroDivisionError" in caplog.text
    assert "request cut: a reference is of no use (broken picture)" in caplog.text


def test_a_program_is_a_free_call_of_the_ledger(
    generator: Diffusers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = CallCache(tmp_path / "calls.sqlite")
    monkeypatch.setattr(generator, "ledger", ledger)
    failing = RenderJob("z", "A flag.", (), 1, Options(steps=0))
    refused = RenderJob("cut", "A flag.", (RED[:60],), 1)  # the generator never has it
    drawn, *missing = generator.render([RenderJob("a", "A flag."), failing, refused])
    assert drawn is not None
    assert missing == [None, None]
    spent = ledger.spent("diffusers")
    assert (spent.calls, spent.cached, spent.cost) == (2, 0, 0.0)
    assert spent.seconds > 0


def test_a_model_that_draws_nothing_at_all_ends_with_a_sentence(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from diffusers import QwenImagePipeline

    pipe = QwenImagePipeline.from_pretrained(folders[1])
    pipe.transformer.proj_out.weight.data.fill_(np.nan)
    pipe.save_pretrained(tmp_path / "nan")
    sick = Diffusers(str(folders[0]), str(tmp_path / "nan"), size=64, steps=1)
    assert sick.render([RenderJob("a", "A flag."), RenderJob("b", "A flag.")]) == [None, None]
    with pytest.raises(RenderError, match=r"fails on every program .*not finite"):
        sick.render([RenderJob("c", "A flag.")])


@pytest.mark.parametrize("fault", ["no folder", "cut weights", "no weights", "no JSON", "text folder", "no processor"])
def test_a_model_that_does_not_load_is_one_sentence(folders: tuple[Path, Path], tmp_path: Path, fault: str) -> None:
    edit, text = folders
    copy = tmp_path / "model"
    if fault == "no folder":
        copy = Path("nobody/no-such-model")
    elif fault == "text folder":
        copy = text
    else:
        shutil.copytree(edit, copy)
        weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
        if fault == "cut weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        elif fault == "no weights":
            weights.unlink()
        elif fault == "no JSON":
            (copy / "model_index.json").write_text("{", encoding="utf-8")
        else:
            shutil.rmtree(copy / "processor")
    with pytest.raises(RenderError) as raised:
        Diffusers(str(copy), str(text), size=64, steps=1).load()
    said = str(raised.value)
    assert said.startswith(f"The generator's model {copy} could not be loaded as {EDIT} (")
    assert "\n" not in said


def test_at_rest_it_leaves_its_gpu_and_on_the_cpu_nothing_moves(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    pipe = SimpleNamespace(to=moved.append)
    resting = tiny_diffusers(*folders)
    resting._pipes["a"] = pipe
    resting.rest()
    assert moved == []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: moved.append("emptied"))
    resting.device = "cuda:0"
    resting.rest()
    assert moved == ["cpu", "emptied"]


def test_a_gpu_that_is_not_there_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(RenderError, match="PyTorch finds no GPU here"):
        Diffusers("nobody/edit", "nobody/text", device="cuda:0")
