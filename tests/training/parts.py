"""A tiny random Qwen3 and ragged trajectories with observations, teacher prompts and honest sampling log-probs."""

from __future__ import annotations

import random
from typing import Any

import torch

from genevolve.training.batch import StepBatch, TrainRow

VOCABULARY = 61


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, vocabulary: int = VOCABULARY) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=vocabulary, tie_word_embeddings=True, **shape, **heads)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():  # stock initialisation is so flat that every log-prob is log(1 / V)
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else None
    return model.to(dtype)


def plain_logprobs(model: Any, prompt: Any, completion: Any, temperature: float) -> torch.Tensor:
    """Log p of every completion token, one unpadded sequence with full logits: the slow truth."""
    ids = torch.tensor([[*prompt, *completion]])
    logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float() / temperature, -1)
    return logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


def make_rows(
    model: Any, count: int = 6, seed: int = 0, temperature: float = 0.7, drift: float = 0.2
) -> list[TrainRow]:
    """Rows in groups of three; two of three have a teacher prompt. `drift`: how stale the stored log-probs are (nats)."""
    dice = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [dice.randrange(1, VOCABULARY) for _ in range(dice.randint(low, high))]

    rows = []
    for i in range(count):
        prompt, completion, mask = tokens(4, 12), [], []
        for _ in range(dice.randint(1, 3)):
            for part, kind in ((tokens(5, 14), 1), (tokens(2, 9), 0)):
                completion += part
                mask += [kind] * len(part)
        teacher = [*prompt[:2], *tokens(3, 15), *prompt[2:]] if i % 3 else None
        with torch.no_grad():
            logp = plain_logprobs(model, prompt, completion, temperature).tolist()
        old = [min(0.0, p + dice.gauss(0, drift)) if m else 0.0 for p, m in zip(logp, mask, strict=True)]
        rows.append(TrainRow(f"t{i}", f"r{i // 3}", prompt, completion, mask, old, dice.random(), teacher))
    return rows


def gradient(trainer: Any, rows: list[TrainRow]) -> torch.Tensor:
    """The step's whole gradient as one vector."""
    trainer.optimizer.zero_grad()
    trainer.backward(StepBatch.build(rows, trainer.config.advantage_eps, trainer.device))
    return torch.cat([p.grad.flatten() for p in trainer.trained.values() if p.grad is not None]).clone()
