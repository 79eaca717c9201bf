"""Qwen3-Embedding: last-token pooling, L2 (the paper's embedder, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genevolve.experience.embed import EmbedderError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_TOKENS = 2048
"""A request has at most 4,000 characters; the model reads 32,768 tokens."""

END = "<|endoftext|>"


class Qwen3Embedder:
    """A Qwen3 embedding model through transformers, in float32, on a GPU where there is one.

    The text goes in as it is: the model's instruction prefix is for queries against documents, and here requests are held
    against requests. Every text ends with END, whose hidden state is the embedding: the model's own tokenizer file says so,
    but not every version of transformers obeys it, so it is put there where it is missing. The weights load at the first
    call; a text embedded once is remembered for the life of the object.
    """

    name = "Qwen3-Embedding"

    def __init__(self, model: str, device: str | None = None, batch_size: int = 16) -> None:
        """`model`: a folder, or a name of the local Hugging Face cache."""
        self.model, self.device, self.batch_size = model, device, batch_size
        self._cache: dict[str, NDArray[np.float32]] = {}
        self._network: Any = None
        self._tokenizer: Any = None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return `[N, D]` unit rows in the order of `texts`. Raises EmbedderError when the model cannot be loaded."""
        import numpy as np

        self._load()
        # Sorted by length: little padding, and the batches do not depend on the order of the call.
        new = sorted({t for t in texts if t not in self._cache}, key=lambda t: (len(t), t))
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self._cache.update(zip(batch, self._forward(batch), strict=True))
        width = int(self._network.config.hidden_size)
        return np.stack([self._cache[t] for t in texts]) if texts else np.zeros((0, width), np.float32)

    def _load(self) -> None:
        if self._network is not None:
            return
        import torch
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.model)
            network = AutoModel.from_pretrained(self.model, dtype=torch.float32).eval()
        except (OSError, ValueError) as e:
            raise EmbedderError(
                f"The embedder {self.model} (experience.embedder_model) cannot be loaded: {' '.join(str(e).split())[:200]}"
            ) from e
        if self._tokenizer.convert_tokens_to_ids(END) in (None, self._tokenizer.unk_token_id):
            raise EmbedderError(f"The embedder {self.model} (experience.embedder_model) is no Qwen3 model: no {END}.")
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self.device)

    def _ids(self, text: str) -> list[int]:
        """Return the tokens of a text, END last."""
        end = self._tokenizer.convert_tokens_to_ids(END)
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return ids if ids and ids[-1] == end else [*ids, end]

    def _forward(self, batch: Sequence[str]) -> list[NDArray[np.float32]]:
        import torch

        rows = [self._ids(text) for text in batch]
        longest = max(map(len, rows))
        ids = torch.tensor([r + [r[-1]] * (longest - len(r)) for r in rows], device=self.device)  # [N, T], padded right
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows], device=self.device)
        with torch.inference_mode():
            hidden = self._network(input_ids=ids, attention_mask=mask).last_hidden_state  # [N, T, D]
            pooled = hidden[torch.arange(len(rows), device=hidden.device), mask.sum(1) - 1]
            return list(torch.nn.functional.normalize(pooled.float(), dim=-1).cpu().numpy())
