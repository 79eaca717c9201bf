"""Scoring a micro-batch with any Hugging Face causal or image-text model, never holding [batch, time, vocabulary]."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from genevolve.records import Picture
from genevolve.training.batch import MicroBatch, TrainingDataError
from genevolve.training.losses import token_logprobs
from genevolve.training.models import UnsupportedModelError, unwrapped

Look = Callable[[Sequence[Picture]], Mapping[str, Tensor]]
"""Recorded pictures -> pixel_values [patches, D] and image_grid_thw [N, 3], as the policy saw them
(`policy/pictures.py`)."""


class Scoring(Protocol):
    """What a configuration says about scoring."""

    @property
    def temperature(self) -> float: ...

    @property
    def precision(self) -> str: ...


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
    model: Any, micro: MicroBatch, config: Scoring, *, with_entropy: bool = False, look: Look | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return log p `[M]` of the micro-batch's assistant tokens at the config's temperature, and their entropy if
    asked for. `look` makes pixels of the pictures among the tokens; without it, TrainingDataError for such rows."""
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    with _autocast(micro.ids.device, config):
        hidden = inner.base_model(input_ids=micro.ids, use_cache=False, **_seen(inner, micro, look)).last_hidden_state
        picked = hidden.flatten(0, 1).index_select(0, micro.at)
        return token_logprobs(
            picked, head.weight, head.bias, micro.targets, config.temperature, with_entropy=with_entropy
        )


class Scorer(nn.Module):
    """`score` as a module: what is split over processes must be called as one, head and all."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, micro: MicroBatch, config: Scoring, *, with_entropy: bool = False, look: Look | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See `score`."""
        return score(self.model, micro, config, with_entropy=with_entropy, look=look)


def _seen(inner: Any, micro: MicroBatch, look: Look | None) -> dict[str, Tensor]:
    """Return what an image-text model needs beside the tokens; nothing for rows without pictures."""
    if not micro.pictures:
        return {}
    token = getattr(inner.config, "image_token_id", None)
    if look is None or token is None:
        raise TrainingDataError(
            f"{len(micro.pictures)} pictures stand among the trajectories' tokens, but {type(inner).__name__} is trained "
            "here without eyes; train the image-text model that sampled them."
        )
    shown = {name: values.to(micro.ids.device) for name, values in look(micro.pictures).items()}
    return {**shown, "mm_token_type_ids": (micro.ids == token).to(torch.int32)}


def _autocast(device: torch.device, config: Scoring) -> AbstractContextManager[Any]:
    if config.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
