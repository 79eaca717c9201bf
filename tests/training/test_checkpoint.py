"""Policies on disk: hashes, and folders that are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genevolve.training.checkpoint import CheckpointError, new_folder, policy_hash, save_policy, tokenizer_hash
from tests.training.parts import tiny_model


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(60)} | {"<eos>": 60}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="<eos>"
    )


def test_a_saved_policy_loads_again_and_its_hash_follows_the_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first = save_policy(tiny_model(), tokenizer(), tmp_path / "a")
    assert first == policy_hash(tmp_path / "a") == save_policy(tiny_model(), tokenizer(), tmp_path / "b")
    assert save_policy(tiny_model(1), tokenizer(), tmp_path / "b") != first  # replaces the folder
    assert tokenizer_hash(tmp_path / "a") == tokenizer_hash(tmp_path / "b")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert all((a == b).all() for a, b in zip(loaded.parameters(), tiny_model().parameters(), strict=True))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "a")) == 61
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_changed_tokenizer_changes_its_hash(tmp_path: Path) -> None:
    save_policy(tiny_model(), tokenizer(), tmp_path / "a")
    before = tokenizer_hash(tmp_path / "a")
    path = tmp_path / "a" / "tokenizer.json"
    path.write_text(path.read_text().replace("w59", "w_59"))
    assert tokenizer_hash(tmp_path / "a") != before


def test_a_folder_that_is_no_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        policy_hash(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json"):
        tokenizer_hash(tmp_path)


def test_a_write_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "a") as temporary:
            (temporary / "half").write_text("half")
            raise OSError("disk full")

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        fail()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "old"]
