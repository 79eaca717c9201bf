"""Tiny random policies on disk: Qwen3 and Qwen3-VL, a tokenizer with the tokens of theirs, a chat template like theirs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from genevolve.policy.base import Job, Sampled, Sampling
from genevolve.policy.huggingface import HubPolicy
from genevolve.policy.template import ChatTemplate

VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{% if c.type == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_turn_tokens=60, max_context=500, batch=5)


def make_tokenizer(eyes: bool = True) -> Any:
    from genevolve.training.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["You are an image agent. Draw the giraffe number 3, please."] * 20, 420)
    if eyes:
        tokenizer.add_special_tokens({"additional_special_tokens": list(VISION)})
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def _loud(model: Any, tokenizer: Any) -> Any:
    """Stock initialisation is so flat that every log-prob is log(1 / V); and a turn must end now and then."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and "visual" not in name:
                p.mul_(4)
        model.get_output_embeddings().weight.mul_(2)
        embed = model.get_input_embeddings().weight
        embed += torch.randn(embed.shape[1]) * embed.std()  # common to all tokens, so that it may end anywhere
        tries = HubPolicy(model, ChatTemplate(tokenizer)).sample(jobs(2), SAMPLING, seed=0)
        inner = model.eval().model
        hidden = torch.cat([inner(torch.tensor([r.completion_ids])).last_hidden_state[0] for r in tries])
        head, end = model.get_output_embeddings().weight, tokenizer.convert_tokens_to_ids("<|im_end|>")
        usual = hidden.mean(0)
        low, high = 0.0, 20.0
        for _ in range(30):
            head[end] = (low + high) / 2 * usual
            often = (hidden @ head.t() / SAMPLING.temperature).softmax(-1)[:, end].mean()
            low, high = (low, (low + high) / 2) if often > 1 / 12 else ((low + high) / 2, high)
    return model


def seeing_model(tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    token = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {
        "vocab_size": len(tokenizer) + 3, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=token(VISION[0]),
        vision_end_token_id=token(VISION[1]),
        image_token_id=token(VISION[2]),
        video_token_id=token(VISION[3]),
    )
    return _loud(Qwen3VLForConditionalGeneration(config), tokenizer)


def blind_model(tokenizer: Any, **changes: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer) + 3, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    }  # fmt: skip
    return _loud(Qwen3ForCausalLM(Qwen3Config(**{**shape, **changes})), tokenizer)


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {  # as the published Qwen3-VL has it, with smaller patches
        "size": {"longest_edge": 16777216, "shortest_edge": 1024}, "patch_size": 8, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def png(number: int = 0, size: tuple[int, int] = (120, 90)) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.linear_gradient("L").rotate(40 * number).resize(size).convert("RGB").save(data, "PNG")
    return data.getvalue()


def job(key: str, turns: int, *, pictures: int = 0, said: list[str] | None = None) -> Job:
    """A conversation of so many turns, with observations of different lengths and pictures after the first."""
    count = 0

    def step(text: str) -> str | None:
        nonlocal count
        count += 1
        if said is not None:
            said.append(text)
        return None if count == turns else seen(count)

    def shown() -> list[tuple[str, str]]:
        return [(f"IMG_{n + 1:03d}", f"{n}.png") for n in range(pictures if count == 1 else 0)]

    return Job(key, "You are an image agent.", f"Draw {'a giraffe ' * (len(key) % 3)}{key}", step, shown)


def seen(count: int) -> str:
    return "<tool_response>\n" + " giraffe" * (3 * count) + "\n</tool_response>"


def jobs(n: int, pictures: int = 0) -> list[Job]:
    return [job(f"r{i}", 1 + i % 4, pictures=(i % 3) if pictures else 0) for i in range(n)]


def plain(policy: HubPolicy, row: Sampled, temperature: float, pixels: dict[str, Any] | None = None) -> torch.Tensor:
    """Log p of every completion token by the model's own forward pass over the whole sequence: the slow truth."""
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
    extra = dict(pixels or {})
    if extra:
        extra["mm_token_type_ids"] = (ids == policy.model.config.image_token_id).int()
    with torch.no_grad():
        logits = policy.model(input_ids=ids, use_cache=False, **extra).logits[0, len(row.prompt_ids) - 1 : -1]
    logp = torch.log_softmax(logits.float() / temperature, -1)
    return logp.gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0]


def worst(row: Sampled, truth: torch.Tensor) -> float:
    """Largest distance of a row's log-probs from the truth, on its own tokens."""
    mask = torch.tensor(row.assistant_mask, dtype=torch.bool)
    logp = torch.tensor(row.logprobs)
    assert not logp[~mask].any()
    return float((truth - logp)[mask].abs().max())
