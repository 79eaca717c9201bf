"""Policies on disk: hashes that tie trajectories to weights, and writing a folder whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genevolve.errors import GenEvolveError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)


class CheckpointError(GenEvolveError):
    """A policy or checkpoint folder is missing something or does not belong to this run; the message says what."""


def policy_hash(folder: str | Path) -> str:
    """Return the SHA-256 (hex) over the folder's safetensors files, names and bytes; raises CheckpointError if there
    are none."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file, so it is not a policy.")
    return _digest(files)


def tokenizer_hash(folder: str | Path) -> str:
    """Return the SHA-256 (hex) over the folder's tokenizer files; raises CheckpointError without a tokenizer.json."""
    root = Path(folder)
    if not (root / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} holds no tokenizer.json, so it is not a policy.")
    return _digest([root / name for name in TOKENIZER_FILES if (root / name).is_file()])


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.name} {content}\n".encode())
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
