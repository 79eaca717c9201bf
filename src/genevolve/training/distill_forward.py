"""Scoring a micro-batch with any Hugging Face causal language model, never holding [batch, time, vocabulary]."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from genevolve.errors import GenEvolveError
from genevolve.training.batch import MicroBatch
from genevolve.training.distill_config import DistillConfig
from genevolve.training.losses import token_logprobs


class UnsupportedModelError(GenEvolveError):
    """The model computes its logits in a way `score` does not reproduce; the message says which."""


def unwrapped(model: Any) -> Any:
    """Return the causal language model inside a PEFT wrapper (its layers keep the adapters), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_model(model: Any) -> None:
    """Raise UnsupportedModelError unless log p is log_softmax(head(backbone(ids)) / temperature)."""
    config = unwrapped(model).config.get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UnsupportedModelError(
                f"Models with {name} ({config.model_type}) change their logits after the head; not supported."
            )
    head = unwrapped(model).get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UnsupportedModelError(
            f"The language-model head must be one plain linear layer, not {type(head).__name__}."
        )


def disable_dropout(model: nn.Module) -> None:
    """Switch every dropout off for good: stored log-probs were sampled without, and the ratio must be 1 on the first
    step."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def score(
    model: Any, micro: MicroBatch, config: DistillConfig, *, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return log p `[M]` of the micro-batch's assistant tokens at the config's temperature, and their entropy if
    asked for."""
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    with _autocast(micro.ids.device, config):
        hidden = inner.base_model(input_ids=micro.ids, use_cache=False).last_hidden_state
        picked = hidden.flatten(0, 1).index_select(0, micro.at)
        return token_logprobs(
            picked, head.weight, head.bias, micro.targets, config.temperature, with_entropy=with_entropy
        )


def _autocast(device: torch.device, config: DistillConfig) -> AbstractContextManager[Any]:
    if config.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
