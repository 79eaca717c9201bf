"""A policy from any Hugging Face chat or image-text model: transformers' own forward pass, our slots, tokens in and out.

For a model on a GPU, for an architecture that engine.py does not compute, and for policies that are shown pictures.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.policy.base import Job, PolicyError, Sampled, Sampling
from genevolve.policy.loop import Loop, Piece
from genevolve.policy.pictures import Eyes, image_processor, look, pixel_values
from genevolve.policy.template import ChatTemplate
from genevolve.tools.base import ToolError
from genevolve.training.checkpoint import (
    CheckpointError,
    adapter_base,
    find_policy,
    policy_hash,
    tokenizer_folder,
    tokenizer_hash,
)

if TYPE_CHECKING:
    from genevolve.policy.slots import SlotEngine

EXACT, ROUNDED = 2e-3, 0.5
"""How far log-probs of the slots may lie from a plain forward pass, on average, in nats: float32, bfloat16. The latter
stores logits of 16 to 32 in steps of 1/8; a wrong mask or position is off by whole nats."""


def observed(
    template: ChatTemplate,
    message: str,
    wanted: Sequence[tuple[str, str]],
    processor: Any,
    eyes: Eyes | None,
    image_token: int | None,
) -> Piece:
    """Return an observation as tokens, with the pictures (img_id, file) that are wanted among them and can be read.

    Raises PolicyError when the chat template writes another number of image tokens.
    """
    shown = []
    for img_id, file in wanted if eyes is not None else ():
        try:
            shown.append(look(processor, eyes, img_id, file))  # type: ignore[arg-type]
        except (ToolError, ValueError, OSError):
            continue
    ids = list(template.encode(template.observation(message, [p.img_id for p, _ in shown])))
    if not shown or image_token is None:
        return Piece(tuple(ids))
    spots = [i for i, token in enumerate(ids) if token == image_token]
    if len(spots) != len(shown):
        raise PolicyError(
            f"{template.name}: its chat template writes {len(spots)} image tokens for {len(shown)} pictures."
        )
    for (picture, _), spot in zip(reversed(shown), reversed(spots), strict=True):
        ids[spot : spot + 1] = [image_token] * picture.tokens
    placed, before = [], 0
    for (picture, _), spot in zip(shown, spots, strict=True):
        placed.append(picture.model_copy(update={"at": spot + before}))
        before += picture.tokens - 1
    return Piece(tuple(ids), tuple(placed), pixel_values(processor, [image for _, image in shown]))


class HubPolicy:
    """A model, its chat template and, where it is shown pictures, its image processor."""

    def __init__(
        self,
        model: Any,
        template: ChatTemplate,
        hashes: tuple[str, str] = ("", ""),
        *,
        processor: Any = None,
        eyes: Eyes | None = None,
    ) -> None:
        """`hashes` are (policy, tokenizer); `processor` and `eyes` belong together. Raises PolicyError when tokenizer and
        model do not match, or when the model's log-probs in slots are not those of a plain forward pass."""
        import torch

        self.model, self.template, self.processor, self.eyes = model.eval(), template, processor, eyes
        self.policy_hash, self.tokenizer_hash = hashes
        self.end = template.end
        rows = model.get_output_embeddings().weight.shape[0]
        known = len(template.tokenizer)
        if known > model.get_input_embeddings().weight.shape[0]:
            raise PolicyError(
                f"{template.name}: the tokenizer has {known} tokens and the policy {rows}: they do not match."
            )
        pads = [getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video", "audio")]
        never = sorted({p for p in pads if p is not None and p < rows} | set(range(known, rows)))
        self.never = torch.tensor(never, device=model.device) if never else None
        self._engine: SlotEngine | None = None
        if eyes is not None and getattr(model.config, "image_token_id", None) is None:
            raise PolicyError(f"{template.name} is a language model without eyes; set sampling.show_images to 0.")
        if eyes is not None:
            template.placeholder()
        with _memory("to check the policy"):
            self._prove()

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        attention: str = "sdpa",
        eyes: Eyes | None = None,
    ) -> HubPolicy:
        """Load a folder, an adapter's folder or a model of the local Hugging Face cache; raises PolicyError with one
        sentence. `dtype` auto: bfloat16 on a GPU, float32 on the CPU. Adapters are merged. No code of a model's repository
        is run, and only safetensors are read."""
        import torch

        try:
            root = find_policy(name)
            base = adapter_base(root) or root
            hashes = (policy_hash(root), tokenizer_hash(root))
            tokenizer = tokenizer_folder(root)
        except CheckpointError as e:
            raise PolicyError(str(e)) from e
        if device != "cpu" and not torch.cuda.is_available():
            raise PolicyError(f"There is no GPU that torch can use, and policy.device is {device}; set it to cpu.")
        kind = torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and device != "cpu") else torch.float32
        template = ChatTemplate.load(tokenizer, str(name))
        processor = image_processor(tokenizer, base) if eyes is not None else None
        with _memory(f"to load {name}"):
            model = _model(base, device, kind, attention)
            if base != root:
                model = with_adapter(model, root)
        return cls(model, template, hashes, processor=processor, eyes=eyes)

    def opening(self, job: Job) -> tuple[int, ...]:
        """Return the ids before the first assistant token."""
        return self.template.prompt(job.system, job.question)

    def reply(self, job: Job, message: str) -> Piece:
        """Return the ids between an assistant's end token and its next turn, pictures included. A picture that cannot be
        read is not shown."""
        wanted = list(job.pictures()) if job.pictures is not None and self.eyes is not None else []
        token = getattr(self.model.config, "image_token_id", None)
        return observed(self.template, message, wanted, self.processor, self.eyes, token)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a turn, its end token left out."""
        return self.template.decode(ids)

    def sample(
        self, jobs: Sequence[Job], sampling: Sampling, seed: int, on_done: Callable[[int, Sampled], None] | None = None
    ) -> list[Sampled]:
        """Play all jobs (policy/base.py). A job's result depends on its key and the seed, and on its company by rounding
        only."""
        import torch

        from genevolve.policy.slots import SlotEngine

        if not jobs:
            return []
        slots = min(sampling.batch, len(jobs))
        engine = self._engine
        if engine is None or engine.slots < slots or engine.capacity < sampling.max_context:
            self._engine = engine = SlotEngine(self.model, slots, sampling.max_context)
        what = f"with {slots} trajectories at once"
        advice = f"lower sampling.batch (now {sampling.batch}) or sampling.max_context (now {sampling.max_context})"
        try:
            with torch.inference_mode(), _memory(what, advice):
                return Loop(self, engine, jobs, sampling, seed, slots, on_done).run()
        except BaseException:
            self._engine = None  # its rows are half done
            raise

    def release(self) -> None:
        """Give the cache's memory back; the next `sample` makes a new one."""
        self._engine = None

    def _prove(self) -> None:
        """Compare two rows of different length, played in slots, with a plain forward pass over each."""
        import torch

        from genevolve.policy.slots import SlotEngine

        job = Job("", "You are an agent.", "Draw a thing.", lambda _: None)
        opening, turn = self.opening(job), self.template.turn("<think> I look for it first.</think>")
        piece = self._sight() or Piece(self.template.encode(self.template.observation("Seen.")))
        whole = [*opening, *turn, *piece.ids, *turn]
        want = len(opening) + len(turn) + len(piece.ids)
        try:
            with torch.inference_mode():
                engine = SlotEngine(self.model, 2, 2 * len(whole) + 8)
                got = []
                engine.extend(0, opening)
                engine.extend(1, [*opening, *opening])
                for token in turn:
                    engine.decode([token, token])
                got.append(engine.extend(0, piece.ids, piece.pixels))
                got += [engine.decode([token, token])[0] for token in turn[:-1]]
                found = torch.stack(got).log_softmax(-1)
                plain = self._plain(whole, piece)[want - 1 : -1].log_softmax(-1)
        except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as e:
            if _is_memory(e):
                raise
            said = " ".join(str(e).split())[:200]
            raise PolicyError(
                f"{self.template.name}: this model cannot be played in slots ({said}); serve it and use `openai`."
            ) from e
        at = torch.tensor(turn, device=found.device)[:, None]
        off = float((found.gather(1, at) - plain.gather(1, at)).abs().mean())
        if not off <= (EXACT if self.model.dtype == torch.float32 else ROUNDED):  # also catches NaN
            raise PolicyError(
                f"{self.template.name}: log-probs in slots differ by {off:.2g} from a plain forward pass, so this model "
                "cannot be played here; serve it and use `openai`."
            )

    def _sight(self) -> Piece | None:
        """Return an observation with a picture, for models that are shown some."""
        if self.eyes is None:
            return None
        import io

        from PIL import Image

        data = io.BytesIO()
        Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(data, "PNG")
        job = Job("", "", "", lambda _: None, lambda: [("IMG_001", "")])
        real, self.eyes = self.eyes, Eyes(lambda _: data.getvalue(), self.eyes.pixels)
        try:
            return self.reply(job, "Seen.")
        finally:
            self.eyes = real

    def _plain(self, ids: Sequence[int], piece: Piece) -> Any:
        """Return logits [T, V] of one sequence by the model's own forward pass, no cache."""
        import torch

        tokens = torch.tensor([list(ids)], device=self.model.device)
        extra = {k: v.to(self.model.device) for k, v in (piece.pixels or {}).items()}
        if extra:
            extra["mm_token_type_ids"] = (tokens == self.model.config.image_token_id).int()
        return self.model(input_ids=tokens, use_cache=False, **extra).logits[0].float()


def _model(folder: Path, device: str, dtype: Any, attention: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        seeing = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        kind = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
        return kind.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            device_map=None if device == "cpu" else device,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        ).requires_grad_(False)
    except Exception as e:  # config.json and weights are a stranger's: anything may be wrong with them
        if _is_memory(e):
            raise
        raise PolicyError(f"{folder}: the model cannot be loaded ({' '.join(str(e).split())[:200]}).") from e


def with_adapter(model: Any, folder: Path) -> Any:
    """Return the model with the adapter's weights added to its own; raises PolicyError when they do not all fit."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        wrapped = PeftModel.from_pretrained(model, str(folder))
        given = {name for path in folder.glob("*.safetensors") for name in load_file(path)}
    except Exception as e:
        if _is_memory(e):
            raise
        raise PolicyError(f"{folder}: the adapter does not fit its base ({' '.join(str(e).split())[:200]}).") from e
    lost = sorted(given ^ set(get_peft_model_state_dict(wrapped)))
    if lost:
        raise PolicyError(f"{folder}: the adapter does not fit its base: {len(lost)} tensors, such as {lost[0]}.")
    return wrapped.merge_and_unload()


@contextmanager
def _memory(what: str, advice: str = "take a smaller model, or a device with more memory") -> Iterator[None]:
    """Turn running out of memory into a PolicyError that says what to lower."""
    try:
        yield
        return
    except (RuntimeError, MemoryError) as e:
        if not _is_memory(e):
            raise
    free()
    raise PolicyError(f"There was too little memory {what}; {advice}.")


def _is_memory(error: BaseException) -> bool:
    import torch

    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in said


def free() -> None:
    """Hand memory that torch holds for later back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
