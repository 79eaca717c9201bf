"""What training leaves of a policy: whole weights or adapters, in the precision of its forward pass, inputs unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genevolve.policy.base import PolicyError
from genevolve.policy.huggingface import HubPolicy
from genevolve.training.checkpoint import CheckpointError, adapter_base, policy_hash, save_policy, tokenizer_hash
from genevolve.training.distill import DistillTrainer
from genevolve.training.distill_config import DistillConfig
from genevolve.training.models import device_of, has_eyes, load_model
from genevolve.training.weights import Weights, save_trained
from tests.policy.tiny import blind_model, make_tokenizer, save, seeing_model
from tests.training.parts import make_rows, tiny_model
from tests.training.test_checkpoint import tokenizer

Make = Callable[..., DistillConfig]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, words, eyes = tmp_path_factory.mktemp("bases"), make_tokenizer(eyes=False), make_tokenizer()
    return {
        "blind": save(root / "blind", blind_model(words), words),
        "seeing": save(root / "seeing", seeing_model(eyes), eyes),
    }


def moved(weights: Weights) -> Weights:
    """Weights away from where they began, as after some steps."""
    dice = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in weights.trained.values():
            p += 0.05 * torch.randn(p.shape, generator=dice)
    return weights


@pytest.mark.parametrize("kind", ["blind", "seeing"])
def test_a_policy_comes_back_as_it_was_trained(bases: dict[str, Path], config: Make, tmp_path: Path, kind: str) -> None:
    base = bases[kind]
    assert has_eyes(base) == (kind == "seeing")
    weights = moved(Weights(load_model(base), config()))
    found = save_trained(weights, base, tmp_path / "p")
    assert found == policy_hash(tmp_path / "p") != policy_hash(base)
    assert tokenizer_hash(tmp_path / "p") == tokenizer_hash(base)
    back = load_model(tmp_path / "p").state_dict()
    assert all(torch.equal(v, back[k]) for k, v in weights.model.state_dict().items())
    HubPolicy.load(tmp_path / "p")  # and can be sampled
    weights = moved(Weights(load_model(base), config(precision="bfloat16")))
    save_trained(weights, base, tmp_path / "p")  # replaces the folder
    said = json.loads((tmp_path / "p/config.json").read_text())
    assert {said["dtype"], said.get("text_config", said)["dtype"]} == {"bfloat16"}
    back = load_model(tmp_path / "p", torch.bfloat16).state_dict()
    assert all(torch.equal(v.bfloat16(), back[k]) for k, v in weights.model.state_dict().items())


@pytest.mark.parametrize("kind", ["blind", "seeing"])
def test_adapters_alone_give_the_merged_policy(
    bases: dict[str, Path], config: Make, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = bases[kind]
    weights = moved(Weights(load_model(base), config(lora_rank=4)))
    save_trained(weights, base, tmp_path / "merged")
    first = save_trained(weights, base, tmp_path / "adapters", adapters_over=str(base))
    assert first == save_trained(weights, base, tmp_path / "again", adapters_over=str(base)) == policy_hash("again")
    assert adapter_base(tmp_path / "adapters") == base
    size = sum(p.stat().st_size for p in (tmp_path / "adapters").glob("*.safetensors"))
    assert size < sum(p.stat().st_size for p in base.glob("*.safetensors"))
    assert tokenizer_hash(tmp_path / "adapters") == tokenizer_hash(base)
    ours, theirs = load_model(tmp_path / "adapters").state_dict(), load_model(tmp_path / "merged").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(v, theirs[k], atol=1e-6) for k, v in ours.items())
    changed = {k for k, v in load_model(base).state_dict().items() if not torch.allclose(v, theirs[k], atol=1e-6)}
    assert changed
    assert all("layers." in k and ".visual." not in k for k in changed)
    sampled = HubPolicy.load(tmp_path / "adapters").model.state_dict()
    assert all(torch.allclose(sampled[k], v, atol=1e-6) for k, v in theirs.items())  # as the sampler merges them
    other = bases["seeing" if kind == "blind" else "blind"]
    config = tmp_path / "adapters/adapter_config.json"
    config.write_text(config.read_text().replace(str(base), str(other)))
    with pytest.raises(PolicyError, match="does not fit its base"):
        load_model(tmp_path / "adapters")


def test_merging_one_weight_at_a_time_is_pefts_merge(config: Make, tmp_path: Path) -> None:
    words = tokenizer()
    save_policy(tiny_model(), words, tmp_path / "base")
    trainer = DistillTrainer(load_model(tmp_path / "base"), config(lora_rank=4, kl_coef=0.1))
    trainer.step(make_rows(tiny_model()))
    ours = save_trained(trainer.weights, tmp_path / "base", tmp_path / "ours")
    assert save_policy(trainer.finish(), words, tmp_path / "pefts") == ours
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "pefts" / name).read_bytes()


def test_large_weights_are_saved_in_shards(
    bases: dict[str, Path], config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genevolve.training.weights.SHARD", "60KB")
    weights = moved(Weights(load_model(bases["seeing"]), config()))
    save_trained(weights, bases["seeing"], tmp_path / "p")
    assert len(list((tmp_path / "p").glob("model-*-of-*.safetensors"))) > 2
    back = load_model(tmp_path / "p").state_dict()
    assert all(torch.equal(v, back[k]) for k, v in weights.model.state_dict().items())
    next(iter((tmp_path / "p").glob("model-*.safetensors"))).unlink()
    with pytest.raises(CheckpointError, match="shards are missing"):
        load_model(tmp_path / "p")


def test_what_cannot_be_loaded_is_one_sentence(tmp_path: Path, bases: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"no model of that name in the Hugging Face cache"):
        load_model("nobody/nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text((bases["blind"] / "config.json").read_text())
    with pytest.raises(CheckpointError, match="is not a readable policy"):
        load_model(tmp_path)


def test_a_missing_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Exception, match="PyTorch sees no GPU here") as told:
        device_of("cuda")
    assert type(told.value).__module__.startswith("genevolve")
