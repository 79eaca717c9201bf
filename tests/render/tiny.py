"""Generators for tests: the paper's pipelines with tiny random weights, in folders laid out like the released ones."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from genevolve.render.base import RenderError, RenderJob
from genevolve.render.compositor import Compositor


def picture(colour: str = "red", size: tuple[int, int] = (64, 48), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def opened(png: bytes | None) -> Image.Image:
    assert png is not None
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image


def build(folder: Path) -> tuple[Path, Path]:
    """Write a tiny Qwen-Image-Edit and a tiny Qwen-Image below `folder`; return their two folders."""
    import torch
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPlusPipeline,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from tokenizers import pre_tokenizers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    torch.manual_seed(0)
    special = [f"<|{name}|>" for name in "im_start im_end vision_start vision_end image_pad video_pad".split()]
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab={**letters, "<|endoftext|>": len(letters)}, merges=[], extra_special_tokens=special
    )
    ids = {f"{name[2:-2]}_id": tokenizer.convert_tokens_to_ids(name) for name in special}
    rope = {"mrope_section": [2, 2, 4], "rope_type": "default", "rope_theta": 1e6}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "rope_parameters": rope,
            "max_position_embeddings": 4096,
            "bos_token_id": None,
            "eos_token_id": ids["im_end_id"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        vision_start_token_id=ids["vision_start_id"],
        vision_end_token_id=ids["vision_end_id"],
        image_token_id=ids["image_pad_id"],
        video_token_id=ids["video_pad_id"],
    )
    parts: dict[str, Any] = {
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config).eval(),
        "tokenizer": tokenizer,
        "vae": AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        "transformer": QwenImageTransformer2DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02, use_dynamic_shifting=True
        ),
    }
    edit, text = folder / "edit", folder / "text"
    QwenImagePipeline(**parts).save_pretrained(text)
    QwenImageEditPlusPipeline(**parts, processor=None).save_pretrained(edit)
    # Qwen2VLProcessor cannot be made without torchvision, so its folder is written by its parts, as released.
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56).save_pretrained(edit / "processor")
    tokenizer.save_pretrained(edit / "processor")
    index = json.loads((edit / "model_index.json").read_text(encoding="utf-8"))
    index["processor"] = ["transformers", "Qwen2VLProcessor"]
    (edit / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return edit, text


def small_references() -> None:
    """Let the edit pipeline look at its references at 64 x 64 pixels instead of 1024 x 1024 and 384 x 384: minutes less."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    module.VAE_IMAGE_SIZE, module.CONDITION_IMAGE_SIZE = 64 * 64, 64 * 64


def tiny_diffusers(edit: Path, text: Path, size: int = 64, steps: int = 2) -> Any:
    """Make the generator in a worker's process."""
    from genevolve.render.diffusers import Diffusers

    small_references()
    return Diffusers(str(edit), str(text), size=size, steps=steps)


class Scripted:
    """The compositor, but a program may begin with a word that says how it goes wrong; each is noted in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.compositor = folder, Compositor()

    def render(self, jobs: Sequence[RenderJob]) -> list[bytes | None]:
        word = jobs[0].gen_prompt.partition(" ")[0]
        with (self.folder / "seen").open("a", encoding="utf-8") as seen:
            seen.write(f"{jobs[0].gen_prompt}\n")
        if word == "die":
            os._exit(3)
        if word == "break":
            raise RenderError("The GPU is broken.")
        if word == "nothing":
            return [None]
        while word == "wait" and not (self.folder / "go").exists():
            time.sleep(0.01)
        while word == "hang":
            time.sleep(60)
        return self.compositor.render(jobs)


def broken() -> Any:
    raise RenderError("There is no such model.")


def dead() -> Any:
    os._exit(1)
