"""Policies on disk: hashes that tie trajectories to weights, and writing a folder whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genevolve.errors import GenEvolveError
from genevolve.files import sha256_of

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What turns messages and pictures into a policy's inputs. A trained policy gets these files copied, byte by byte, from
the one it came from: written anew they may have other bytes, and so another hash."""
ADAPTER = "adapter_config.json"
"""A folder that holds this one is a LoRA adapter (peft) over a base that it names."""


class CheckpointError(GenEvolveError):
    """A policy or checkpoint folder is missing something or does not belong to this run; the message says what."""


def find_policy(name: str | Path) -> Path:
    """Return the folder of a policy: the folder itself, or for `ORG/NAME` or `ORG/NAME@REVISION` its snapshot in the local
    Hugging Face cache. Nothing is downloaded. Raises CheckpointError when there is none, or a part of it is missing."""
    root = Path(name)
    if not root.is_dir():
        root = _snapshot(str(name))
    index = root / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{index} is damaged.") from e
        gone = sorted(s for s in shards if not (root / s).is_file())
        if gone:
            raise CheckpointError(f"{name} is not whole: {len(gone)} of {len(shards)} shards are missing ({gone[0]}).")
    return root


def base_folder(name: str) -> Path:
    """Return the folder of a base as `find_policy` does, or its name as it is where there is none: who needs it says so."""
    try:
        return find_policy(name)
    except CheckpointError:
        return Path(name)


def _snapshot(name: str) -> Path:
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w.-]*))?", name)
    if found is None:
        raise CheckpointError(f"There is no policy folder {name}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(found[1], revision=found[2], local_files_only=True))
    except Exception as e:  # its errors have many types, and one meaning here
        revision = f" --revision {found[2]}" if found[2] else ""
        raise CheckpointError(
            f"There is no folder {name}, and no model of that name in the Hugging Face cache of this machine; "
            f"`hf download {found[1]}{revision}` fetches one."
        ) from e


def adapter_base(folder: str | Path) -> Path | None:
    """Return the folder of the base under a LoRA adapter, None for a policy that is none; raises CheckpointError when the
    base is not here. It is looked for as it is named, and beside the adapter."""
    root = Path(folder)
    if not (root / ADAPTER).is_file():
        return None
    try:
        name = str(json.loads((root / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"] or "")
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{root / ADAPTER} does not name the base of the adapter.") from e
    beside = root / name
    base = beside if name and not Path(name).is_dir() and beside.is_dir() else find_policy(name)
    if (base / ADAPTER).is_file():
        raise CheckpointError(f"{root} is an adapter over another adapter, {base}: merge that one first.")
    return base


def policy_hash(folder: str | Path) -> str:
    """Return the SHA-256 (hex) over the folder's safetensors files, names and bytes; for a LoRA adapter also over its
    configuration and its base's hash. Raises CheckpointError if there are none."""
    root = Path(folder)
    files = sorted(root.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file, so it is not a policy.")
    base = adapter_base(root)
    if base is None:
        return _digest(files)
    own = _digest([*files, root / ADAPTER])
    return hashlib.sha256(f"{own} over {policy_hash(base)}".encode()).hexdigest()


def tokenizer_hash(folder: str | Path) -> str:
    """Return the SHA-256 (hex) over the files that make a policy's inputs, its own or those of an adapter's base; raises
    CheckpointError without a tokenizer.json."""
    root = tokenizer_folder(folder)
    if not (root / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} holds no tokenizer.json, so it is not a policy.")
    return _digest([root / name for name in TOKENIZER_FILES if (root / name).is_file()])


def tokenizer_folder(folder: str | Path) -> Path:
    """Return where a policy's tokenizer lies: in its folder, or in its base's for an adapter that has none of its own."""
    root = Path(folder)
    base = None if (root / "tokenizer.json").is_file() else adapter_base(root)
    return root if base is None else base


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {sha256_of(path)}\n".encode())
    return total.hexdigest()


def load_policy(folder: str | Path) -> tuple[Any, Any]:
    """Return (model in float32, tokenizer) of a policy folder; raises CheckpointError when it cannot be read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for some megabytes from the disk is noise
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{folder} is not a readable policy: {' '.join(str(e).split())[:200]}") from e


def save_policy(model: Any, tokenizer: Any, folder: str | Path) -> str:
    """Write model (safetensors) and tokenizer to `folder`, atomically; return the policy hash.

    An existing folder is replaced. Raises CheckpointError for a model with LoRA adapters: merge them first
    (`DistillTrainer.finish`).
    """
    if hasattr(model, "get_base_model"):
        raise CheckpointError("This model still has LoRA adapters; merge them before saving it as a policy.")
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
    return policy_hash(folder)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `folder` when the block ends well and disappears when it does not."""
    final = Path(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
