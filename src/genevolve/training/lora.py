"""LoRA adapters (peft) on the language model alone; the paper trains all weights."""

from __future__ import annotations

from typing import Any, Protocol

from genevolve.training.models import decoder, unwrapped


class LoraConfigured(Protocol):
    """What a configuration says about adapters."""

    @property
    def lora_rank(self) -> int | None: ...

    @property
    def lora_alpha(self) -> int: ...

    @property
    def seed(self) -> int: ...


def add_adapters(model: Any, config: LoraConfigured) -> Any:
    """Return the model with LoRA adapters, the only weights that are trained: on every linear layer of the decoder, so
    neither on the head nor on a vision tower or projector. Seeded, without dropout, in float32."""
    import torch
    from peft import LoraConfig, get_peft_model

    assert config.lora_rank is not None
    own = {id(m) for m in decoder(model).modules()}
    outside = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and id(m) not in own]
    head = model.get_output_embeddings()
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",  # leaves out the head by itself
        exclude_modules=[n for n in outside if model.get_submodule(n) is not head] or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return get_peft_model(model, settings)


def merge_adapters(model: Any) -> Any:
    """Return the plain model with the adapters added to its weights; the wrapped model cannot be trained on after
    this."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def adapted_layers(model: Any) -> dict[str, Any]:
    """Return the layers that hold adapters by their name in the plain model."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in unwrapped(model).named_modules() if isinstance(module, LoraLayer)}
