"""Training an image-text model: its language weights and no others, pictures and all, never as [batch, time, words]."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genevolve.training.batch import StepBatch, TrainingDataError
from genevolve.training.distill import DistillTrainer
from genevolve.training.distill_config import DistillConfig
from tests.training.parts import fake_look, gradient, make_rows, plain_logprobs, tiny_eyes, tiny_model

Make = Callable[..., DistillConfig]


def trainer_with(config: DistillConfig, model: Any = None) -> DistillTrainer:
    reference = None if config.lora_rank else tiny_eyes(7)
    return DistillTrainer(model or tiny_eyes(), config, reference, look=fake_look)


@pytest.mark.parametrize("tied", [True, False])
def test_pictures_and_text_score_as_the_whole_model_does(config: Make, tied: bool) -> None:
    model = tiny_eyes(tied=tied)
    rows = make_rows(model, shown=2)
    assert sum(bool(r.pictures) for r in rows) == 3
    for budget in (1, 100_000):  # alone, and padded beside rows that show nothing
        trainer = trainer_with(config(micro_batch_tokens=budget), tiny_eyes(tied=tied))
        step = StepBatch.build(rows, 1e-4, torch.device("cpu"))
        scores = trainer.backward(step)
        for i, row in enumerate(rows):
            keep = torch.tensor(row.assistant_mask).bool()
            with torch.no_grad():
                truth = plain_logprobs(model, row.prompt_ids, row.completion_ids, 0.7, row.pictures)[keep]
                if row.teacher_prompt_ids:
                    taught = plain_logprobs(model, row.teacher_prompt_ids, row.completion_ids, 0.7, row.pictures)[keep]
                    assert torch.allclose(scores.teacher[step.row == i], taught, atol=2e-5)
            assert torch.allclose(scores.student[step.row == i], truth, atol=2e-5)


def test_a_picture_matters(config: Make) -> None:
    rows = make_rows(tiny_eyes(), shown=1, drift=0.0)
    other = [
        dataclasses.replace(r, pictures=[p.model_copy(update={"sha256": "f" * 64}) for p in r.pictures]) for r in rows
    ]
    gaps = [trainer_with(config(kl_coef=0.01)).step(r)["old_gap"] for r in (rows, other)]
    assert gaps[0] < 1e-5
    assert gaps[1] > 1e-2


@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_vision_tower_and_projector_neither_move_nor_get_a_gradient(
    config: Make, lora: int | None, checkpointing: bool
) -> None:
    model = tiny_eyes()
    before = copy.deepcopy(model.state_dict())
    trainer = trainer_with(config(lora_rank=lora, gradient_checkpointing=checkpointing, weight_decay=0.1), model)
    rows = make_rows(tiny_eyes(), shown=2)
    trainer.step(rows)
    trainer.step(rows)
    assert all(".visual." not in name for name in trainer.trained)
    assert all(p.grad is None and not p.requires_grad for n, p in model.named_parameters() if ".visual." in n)
    after = {k.replace(".base_layer", ""): v for k, v in model.state_dict().items() if "lora_" not in k}
    assert all(torch.equal(after[k], before[k]) for k in before if ".visual." in k)
    moved = {k for k in before if not torch.equal(after[k], before[k])}
    if lora:
        assert not moved
        assert {n.split(".lora_")[0].rsplit(".", 1)[1] for n in trainer.trained} == {
            *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        }
        assert all(".language_model.layers." in n for n in trainer.trained)
        assert all(float(p.detach().abs().max()) > 0 for n, p in trainer.trained.items() if "lora_B" in n)
    else:
        assert {k for k in before if ".language_model." in k} <= moved


@pytest.mark.parametrize("lora", [None, 4])
def test_gradient_checkpointing_changes_no_gradient_with_pictures(config: Make, lora: int | None) -> None:
    rows = make_rows(tiny_eyes(), shown=2)
    found = []
    for saved in (False, True):
        trainer = trainer_with(config(gradient_checkpointing=saved, lora_rank=lora))
        found.append(gradient(trainer, rows))
    assert float(found[0].norm()) > 0
    assert torch.allclose(*found, rtol=1e-5, atol=1e-7)


def test_no_logits_of_every_position_are_ever_made(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4,096 words, [rows, time, words] would be by far the largest tensor of the step."""
    import genevolve.training.losses as losses

    monkeypatch.setattr(losses, "CHUNK_LOGITS", 4 * 4096)
    model = tiny_eyes(vocabulary=4096)
    rows = make_rows(tiny_eyes(vocabulary=4096), count=3, shown=2)
    trainer = trainer_with(config(micro_batch_tokens=100_000, kl_coef=0.0, lora_rank=2), model)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (4096,) and tensor.shape != (32, 4096):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        trainer.step(rows)
    positions = sum(len(r.prompt_ids) + len(r.completion_ids) for r in rows)
    assert 4 * 4096 == largest < positions * 4096 / 4


def test_a_model_without_eyes_refuses_pictures_in_a_sentence(config: Make) -> None:
    rows = make_rows(tiny_eyes(), shown=2)
    with pytest.raises(TrainingDataError, match=r"pictures stand among .* trained here without eyes"):
        DistillTrainer(tiny_model(), config(), tiny_model(7), look=fake_look).step(rows)
    with pytest.raises(TrainingDataError, match="pictures stand among"):
        DistillTrainer(tiny_eyes(), config(), tiny_eyes(7)).step(rows)


def test_resumed_training_with_eyes_ends_with_the_same_bytes(config: Make, tmp_path: Path) -> None:
    settings = config(lora_rank=4)
    rows = make_rows(tiny_eyes(), shown=2)
    whole = trainer_with(settings)
    whole.step(rows)
    whole.save(tmp_path / "one")
    whole.step(rows)
    whole.save(tmp_path / "two")
    again = trainer_with(settings)
    again.resume(tmp_path / "one")
    again.step(rows)
    again.save(tmp_path / "three")
    assert (tmp_path / "two/state.safetensors").read_bytes() == (tmp_path / "three/state.safetensors").read_bytes()
