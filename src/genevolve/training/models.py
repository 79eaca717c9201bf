"""Models to train: read by folder or Hugging Face id, the language weights alone free to move (method.md, section 7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genevolve.errors import GenEvolveError
from genevolve.training.checkpoint import CheckpointError, adapter_base, find_policy


class UnsupportedModelError(GenEvolveError):
    """The model is of a kind the trainer does not reproduce exactly; the message says which."""


def device_of(name: str) -> torch.device:
    """Return `cpu`, or for `cuda` this process's GPU (LOCAL_RANK); raises UnsupportedModelError when there is none."""
    import os

    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UnsupportedModelError(
            "The device is set to cuda, but PyTorch sees no GPU here; set distill.device to cpu."
        )
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise UnsupportedModelError(
            f"Process {index + 1} has no GPU of its own: this machine shows {torch.cuda.device_count()}; lower the processes."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def has_eyes(folder: str | Path) -> bool:
    """Return whether a model folder's config describes an image-text model."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{folder} holds no readable config.json, so it is not a policy.") from e
    return isinstance(config, dict) and isinstance(config.get("vision_config"), dict)


def load_model(name: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
    """Return the model of a policy by folder or id: AutoModelForImageTextToText with a vision config, else
    AutoModelForCausalLM.

    Weights go straight to `device`, so that the processes of one machine do not each hold a copy in its memory. A folder
    with LoRA adapters is read as its base with them merged. Only the language weights require gradients. Raises
    CheckpointError, and PolicyError for adapters that do not fit.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = find_policy(name)
    base = adapter_base(folder)
    if base is not None:
        from genevolve.policy.huggingface import with_adapter

        merged = with_adapter(load_model(base, dtype, device), folder).requires_grad_(True)
        freeze_all_but_language(merged)
        return merged
    kind = AutoModelForImageTextToText if has_eyes(folder) else AutoModelForCausalLM
    place = {} if torch.device(device).type == "cpu" else {"device_map": {"": torch.device(device)}}
    try:
        model = kind.from_pretrained(folder, local_files_only=True, dtype=dtype, trust_remote_code=False, **place)
    except (OSError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{folder} is not a readable policy: {' '.join(str(e).split())[:200]}") from e
    freeze_all_but_language(model)
    return model


def unwrapped(model: Any) -> Any:
    """Return the causal language model inside a PEFT wrapper (its layers keep the adapters), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> nn.Module:
    """Return the text decoder inside a model: embedding, layers and norm, without head, vision tower or projector."""
    found: nn.Module = unwrapped(model).get_decoder()
    return found


def decoder_layers(model: Any) -> list[nn.Module]:
    """Return the decoder's layers, first to last; raises UnsupportedModelError when it has no single list of them."""
    lists = [m for m in decoder(model).children() if isinstance(m, nn.ModuleList)]
    if len(lists) != 1:
        raise UnsupportedModelError(f"{type(decoder(model)).__name__} has no single list of layers to split over GPUs.")
    return list(lists[0])


def language_weights(model: Any) -> set[nn.Parameter]:
    """Return the parameters of decoder and head, adapters included."""
    inner = unwrapped(model)
    return {
        p for part in (decoder(inner), inner.get_output_embeddings()) if part is not None for p in part.parameters()
    }


def freeze_all_but_language(model: Any) -> None:
    """Let no weight outside decoder and head (vision tower, projector) take a gradient; a text model has none there."""
    language = language_weights(model)
    for parameter in model.parameters():
        if parameter not in language:
            parameter.requires_grad_(False)
