"""A tiny random Qwen3 or Qwen3-VL, and ragged trajectories with observations, pictures, teacher prompts and honest
sampling log-probs."""

from __future__ import annotations

import random
from typing import Any

import torch

from genevolve.records import Picture
from genevolve.training.batch import StepBatch, TrainRow

VOCABULARY = 61
IMAGE = 60
"""The image token of the tiny Qwen3-VL; rows without pictures hold none."""


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


def tiny_eyes(seed: int = 0, *, tied: bool = True, vocabulary: int = VOCABULARY, **changes: Any) -> Any:
    """A Qwen3-VL for conditional generation: vision tower with a projector and one deepstack layer, two text layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0},
        "tie_word_embeddings": tied,
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }
    tokens = {"image_token_id": IMAGE, "video_token_id": 59, "vision_start_token_id": 58, "vision_end_token_id": 57}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **{**tokens, **changes})
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else None
    return model


def fake_look(pictures: Any) -> dict[str, torch.Tensor]:
    """Pixels of pictures that nobody drew: noise seeded by the picture's digest, in the tiny model's patches."""
    patches = []
    for picture in pictures:
        dice = torch.Generator().manual_seed(int(picture.sha256[:8], 16))
        patches.append(torch.randn(picture.grid[0] * picture.grid[1] * picture.grid[2], 3 * 2 * 4 * 4, generator=dice))
    return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor([p.grid for p in pictures])}


def plain_logprobs(model: Any, prompt: Any, completion: Any, temperature: float, pictures: Any = ()) -> torch.Tensor:
    """Log p of every completion token, one unpadded sequence with full logits: the slow truth."""
    ids = torch.tensor([[*prompt, *completion]])
    seen = {**fake_look(pictures), "mm_token_type_ids": (ids == IMAGE).int()} if pictures else {}
    logp = torch.log_softmax(model(input_ids=ids, **seen).logits[0, :-1].float() / temperature, -1)
    return logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


def make_rows(
    model: Any, count: int = 6, seed: int = 0, temperature: float = 0.7, drift: float = 0.2, shown: int = 0
) -> list[TrainRow]:
    """Rows in groups of three; two of three have a teacher prompt. `drift`: how stale the stored log-probs are (nats).

    `shown`: of every so many rows, one begins its completion's first observation with a picture (needs `tiny_eyes`).
    """
    dice = random.Random(seed)
    above = IMAGE if shown else VOCABULARY

    def tokens(low: int, high: int) -> list[int]:
        return [dice.randrange(1, above - 4 * bool(shown)) for _ in range(dice.randint(low, high))]

    rows = []
    for i in range(count):
        prompt, completion, mask = tokens(4, 12), [], []
        pictures: list[Picture] = []
        for _ in range(dice.randint(1, 3)):
            for part, kind in ((tokens(5, 14), 1), (tokens(2, 9), 0)):
                if not kind and shown and i % shown == 0 and len(pictures) < 2:
                    rows_, columns = 2 * dice.randint(1, 2), 2 * dice.randint(1, 3)
                    picture = Picture(
                        img_id="IMG_001", file="a.png", sha256=f"{dice.randrange(16**8):08x}".ljust(64, "0"), width=8,
                        height=8, grid=(1, rows_, columns), at=len(completion) + 1, tokens=rows_ * columns // 4,
                    )  # fmt: skip
                    pictures.append(picture)
                    part = [58, *[IMAGE] * picture.tokens, 57, *part]
                completion += part
                mask += [kind] * len(part)
        teacher = [*prompt[:2], *tokens(3, 15), *prompt[2:]] if i % 3 else None
        with torch.no_grad():
            logp = plain_logprobs(model, prompt, completion, temperature, pictures).tolist()
        old = [min(0.0, p + dice.gauss(0, drift)) if m else 0.0 for p, m in zip(logp, mask, strict=True)]
        rows.append(TrainRow(f"t{i}", f"r{i // 3}", prompt, completion, mask, old, dice.random(), teacher, pictures))
    return rows


def gradient(trainer: Any, rows: list[TrainRow]) -> torch.Tensor:
    """The step's whole gradient as one vector."""
    trainer.optimizer.zero_grad()
    trainer.backward(StepBatch.build(rows, trainer.config.advantage_eps, trainer.device))
    return torch.cat([p.grad.flatten() for p in trainer.trained.values() if p.grad is not None]).clone()
