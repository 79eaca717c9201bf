"""The paper's open generator in this process: Qwen-Image-Edit for 1-2 references, Qwen-Image for programs without (diffusers).

Both pipelines are loaded with `from_pretrained` from a local folder or by model id, when the first program needs them. The
pictures that the text encoder looks at are prepared on PIL alone, so that torchvision is not needed.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genevolve.render.base import RenderError, RenderJob, noise_seed
from genevolve.render.pictures import MULTIPLE, output_size, png, reference
from genevolve.services.cache import CallCache
from genevolve.tools.picture import Refused

log = logging.getLogger(__name__)

NAME = "diffusers"
"""Its line in the ledger of calls."""
EDIT, TEXT = "QwenImageEditPlusPipeline", "QwenImagePipeline"
NEGATIVE = " "
"""True CFG is computed only where there is a negative prompt; the released one is a blank. [R]"""
LONGEST_TEXT = 1024
"""Tokens of a prompt without references that the pipeline takes; it cuts the rest."""
SPARE_BYTES = 12 * 2**30
"""GPU memory that drawing itself takes beside the weights, at 1024 pixels and two references (an estimate, not measured)."""
FAILURES = 3
"""So many programs in a row, before any has succeeded, and it is the model that is broken."""
POISONED = ("device-side assert", "illegal memory access", "unspecified launch failure", "uncorrectable ecc")
"""After such an error every call on this GPU fails until the process ends."""


@dataclass
class Diffusers:
    """A Renderer; one GPU or the CPU. Several GPUs are several processes: `genevolve serve-renderer`."""

    model: str
    """Model id or folder of the edit pipeline."""
    text_model: str
    """Model id or folder of the text-to-image pipeline."""
    size: int = 1024
    """Long side in pixels."""
    steps: int = 40
    true_cfg: float = 4.0
    device: str = "auto"
    """'auto': the first GPU in bf16, or the CPU in fp32."""
    ledger: CallCache | None = field(default=None, repr=False)
    """Counts programs and the seconds of each, loading left out."""
    _pipes: dict[str, Any] = field(default_factory=dict, repr=False)
    _failed: int = field(default=0, repr=False)
    _drawn: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        """Raise RenderError, before anything is loaded, where diffusers is missing or the GPU is."""
        try:
            import diffusers  # noqa: F401
        except ImportError as e:
            raise RenderError(f"The generator 'diffusers' needs the package diffusers ({e}): install '.[gpu]'.") from e
        import torch

        if self.device == "auto":
            self.device = "cuda:0" if torch.cuda.is_available() else "cpu"
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise RenderError(f"The generator is to draw on {self.device}, but PyTorch finds no GPU here.")

    def load(self) -> None:
        """Load the edit pipeline now, not with the first program; raise RenderError."""
        self._pipe(EDIT)

    def rest(self) -> None:
        """Leave the GPU to training: the pipelines wait in main memory for the next program. On the CPU nothing moves."""
        if not self.device.startswith("cuda"):
            return
        import torch

        for pipe in self._pipes.values():
            pipe.to("cpu")
        gc.collect()
        torch.cuda.empty_cache()

    def render(self, jobs: Sequence[RenderJob]) -> list[bytes | None]:
        """Return one PNG per job; None, and a log line saying why, where this program could not be drawn.

        Raises RenderError for a model that does not load or draws none of its first programs.
        """
        pictures: list[bytes | None] = [None] * len(jobs)
        for i in sorted(range(len(jobs)), key=lambda i: not jobs[i].references):  # one pipeline after the other
            try:
                pictures[i] = self._draw(jobs[i])
            except Refused as e:
                log.warning("request %s: a reference is of no use (%s)", jobs[i].request_id, e.reason)
        return pictures

    def _draw(self, job: RenderJob) -> bytes | None:
        references = [reference(data) for data in job.references]
        pipe = self._pipe(EDIT if references else TEXT)
        began = time.monotonic()
        try:
            picture = self._picture(pipe, job, references)
        except Exception as e:  # whatever a pipeline raises, it is this one program that is missing
            self._count(job, e)
            return None
        finally:
            if self.ledger is not None:
                self.ledger.note(NAME, time.monotonic() - began)
        self._drawn += 1
        return picture

    def _picture(self, pipe: Any, job: RenderJob, references: list[Any]) -> bytes:
        import numpy as np
        import torch
        from PIL import Image

        wish = job.options
        width, height = output_size(references[0].size if references else None, self.size)
        what = {"image": references} if references else {"max_sequence_length": LONGEST_TEXT}
        with torch.inference_mode():
            pixels = pipe(
                **what,
                prompt=job.gen_prompt,
                negative_prompt=NEGATIVE if wish.negative is None else wish.negative,
                true_cfg_scale=self.true_cfg if wish.true_cfg is None else wish.true_cfg,
                num_inference_steps=self.steps if wish.steps is None else wish.steps,
                width=_whole(wish.width, width),
                height=_whole(wish.height, height),
                generator=torch.Generator("cpu").manual_seed(noise_seed(job)),  # the same noise on every device
                output_type="np",
            ).images[0]
        if not np.isfinite(pixels).all():
            raise ValueError("the picture holds numbers that are not finite")
        return png(Image.fromarray((pixels * 255).round().clip(0, 255).astype("uint8")))

    def _count(self, job: RenderJob, error: Exception) -> None:
        """Log a failure; raise RenderError when it is the model's, or the GPU's, and not the program's."""
        import torch

        said = " ".join(str(error).split())[:300]
        log.warning("request %s: the generator failed (%s: %s)", job.request_id, type(error).__name__, said)
        if isinstance(error, torch.OutOfMemoryError):
            gc.collect()
            torch.cuda.empty_cache()
        elif any(words in said.lower() for words in POISONED):
            raise RenderError(f"The GPU of the generator failed and needs a new process ({said}).") from error
        self._failed += 1
        if not self._drawn and self._failed >= FAILURES:
            raise RenderError(
                f"The generator {self.model} fails on every program ({type(error).__name__}: {said})."
            ) from error

    def _pipe(self, kind: str) -> Any:
        """Return a pipeline on its device, loaded on first use; where memory is short, the other one makes room."""
        import torch

        pipe = self._pipes.get(kind)
        if pipe is None:
            pipe = self._pipes[kind] = load(kind, self.model if kind == EDIT else self.text_model, self.device)
        if self.device.startswith("cuda") and pipe.device.type == "cpu":
            free, _ = torch.cuda.mem_get_info(self.device)
            for name, other in self._pipes.items():
                if name != kind and free < _bytes(pipe) + SPARE_BYTES:
                    other.to("cpu")
                    torch.cuda.empty_cache()
            try:
                pipe.to(self.device)
            except torch.OutOfMemoryError as e:
                raise RenderError(f"The generator does not fit into the memory of {self.device}.") from e
        return pipe


def load(kind: str, model: str, device: str) -> Any:
    """Return a pipeline with its weights in main memory, bf16 for a GPU and fp32 for the CPU; raise RenderError."""
    import diffusers
    import torch

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    pipeline = getattr(diffusers, kind)
    try:
        folder = Path(model) if Path(model).is_dir() else Path(pipeline.download(model, use_safetensors=True))
        parts = {"processor": _processor(folder)} if kind == EDIT else {}
        pipe = pipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **parts)
    except Exception as e:  # hub, disk, JSON, safetensors and class errors: one sentence for all
        said = " ".join(str(e).split())[:300]
        raise RenderError(
            f"The generator's model {model} could not be loaded as {kind} ({type(e).__name__}: {said}); "
            "name a folder with its files, or a model that the Hugging Face cache of this machine holds."
        ) from e
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _processor(folder: Path) -> Any:
    """Return the processor of an edit pipeline: its tokenizer, its image processor on PIL, and no video processor."""
    from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin, Qwen2VLProcessor

    class PictureProcessor(Qwen2VLProcessor):
        """Qwen2VLProcessor demands a video processor, which demands torchvision; programs have no videos."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    only_here = {"local_files_only": True, "trust_remote_code": False}
    images = AutoImageProcessor.from_pretrained(folder / "processor", backend="pil", **only_here)
    return PictureProcessor(images, AutoTokenizer.from_pretrained(folder / "tokenizer", **only_here))


def _whole(wanted: int | None, default: int) -> int:
    return default if wanted is None else max(MULTIPLE, wanted // MULTIPLE * MULTIPLE)


def _bytes(pipe: Any) -> int:
    import torch

    modules = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
