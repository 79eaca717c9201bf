"""Policies by folder and by name; adapters; hashes of large files that are read once."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from genevolve import files
from genevolve.files import sha256_of
from genevolve.training.checkpoint import (
    CheckpointError,
    adapter_base,
    base_folder,
    find_policy,
    policy_hash,
    save_policy,
    tokenizer_hash,
)
from tests.training.parts import tiny_model
from tests.training.test_checkpoint import tokenizer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache as its own client writes it, with one model: blobs, a snapshot of links, a ref."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_policy(tiny_model(), tokenizer(), tmp_path / "policy")
    root = tmp_path / "hub" / "models--Some--Model"
    snapshot = root / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    for number, path in enumerate(sorted((tmp_path / "policy").iterdir())):
        shutil.copy(path, root / "blobs" / str(number))
        (snapshot / path.name).symlink_to(root / "blobs" / str(number))
    return snapshot


def test_a_name_finds_its_snapshot_and_a_folder_itself(hub: Path, tmp_path: Path) -> None:
    assert find_policy("Some/Model") == hub
    assert find_policy(f"Some/Model@{'a' * 40}") == hub
    assert find_policy(tmp_path / "policy") == tmp_path / "policy"
    assert policy_hash(hub) == policy_hash(tmp_path / "policy")
    assert tokenizer_hash(hub) == tokenizer_hash(tmp_path / "policy")
    assert base_folder("Some/Model") == hub
    assert base_folder("Some/Other") == Path("Some/Other")
    with pytest.raises(CheckpointError, match="hf download Some/Other` fetches"):
        find_policy("Some/Other")
    with pytest.raises(CheckpointError, match="hf download Some/Model --revision v2"):
        find_policy("Some/Model@v2")
    for name in ("champion", "../policy", "a/b/c", ""):
        with pytest.raises(CheckpointError, match="no policy folder"):
            find_policy(name or tmp_path / "none" / "at" / "all")


def test_a_policy_with_missing_shards_is_not_whole(hub: Path) -> None:
    (hub / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match="1 of 1 shards are missing"):
        find_policy("Some/Model")
    (hub / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="damaged"):
        find_policy("Some/Model")


def test_an_adapters_hash_follows_its_weights_its_configuration_and_its_base(hub: Path, tmp_path: Path) -> None:
    def adapter(name: str, base: str, weights: bytes = b"w", rank: int = 2) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(weights)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": rank}))
        return folder

    first = adapter("a", "Some/Model")
    assert adapter_base(first) == hub
    assert adapter_base(hub) is None
    assert tokenizer_hash(first) == tokenizer_hash(hub)
    hashes = {policy_hash(first), policy_hash(adapter("b", "Some/Model", b"x"))}
    hashes.add(policy_hash(adapter("c", "Some/Model", rank=3)))
    save_policy(tiny_model(1), tokenizer(), tmp_path / "other")
    hashes.add(policy_hash(adapter("d", str(tmp_path / "other"))))
    assert len(hashes) == 4
    assert adapter_base(adapter("e", "../other")) == tmp_path / "e" / ".." / "other"  # beside the adapter
    with pytest.raises(CheckpointError, match="over another adapter"):
        adapter_base(adapter("f", str(first)))
    with pytest.raises(CheckpointError, match="no policy folder"):
        policy_hash(adapter("g", "/nowhere/at/all"))
    (first / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not name the base"):
        policy_hash(first)


def test_a_large_file_is_read_once_and_again_when_anything_about_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = files._read
    monkeypatch.setattr(files, "LARGE", 10)
    monkeypatch.setattr(files, "DIGESTS", tmp_path / "digests")
    monkeypatch.setattr(files, "_read", lambda path: read.append(path) or real(path))
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789ab")
    now = time.time()
    first = sha256_of(path)
    assert sha256_of(path) == first
    assert len(read) == 2, "a file that has just changed is not noted"
    monkeypatch.setattr(files.time, "time", lambda: now + 60)
    assert sha256_of(path) == first
    assert sha256_of(path) == first
    assert len(read) == 3
    stat = path.stat()
    path.write_bytes(b"0123456789ac")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and mtime: ctime tells
    second = sha256_of(path)
    assert second != first
    assert second == real(path)
    for note in (tmp_path / "digests").iterdir():
        note.write_text("damaged")
    assert sha256_of(path) == second
    monkeypatch.setattr(files, "DIGESTS", tmp_path / "weights" / "no folder")
    assert sha256_of(path) == second
    small = tmp_path / "small"
    small.write_bytes(b"1")
    read.clear()
    assert sha256_of(small) == sha256_of(small)
    assert len(read) == 2
