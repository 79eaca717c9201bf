"""LoRA adapters for distillation on one GPU (peft); the paper trains all weights."""

from __future__ import annotations

from typing import Any

from genevolve.training.distill_config import DistillConfig


def add_adapters(model: Any, config: DistillConfig) -> Any:
    """Return the model with LoRA adapters, the only weights that are trained: on every linear layer but the head and a
    vision tower (trajectories are text). Seeded, without dropout."""
    import torch
    from peft import LoraConfig, get_peft_model

    assert config.lora_rank is not None
    vision = [n for n, m in model.named_modules() if "visual" in n.split(".") and isinstance(m, torch.nn.Linear)]
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        exclude_modules=vision or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return get_peft_model(model, settings)


def merge_adapters(model: Any) -> Any:
    """Return the plain model with the adapters added to its weights; the wrapped model cannot be trained on after
    this."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
