"""A ragged key-value cache under any transformers decoder: the engine of policies that are not our small one (ours).

Rows live in slots 0..R-1 of one tensor a layer, [slots, kv, capacity, D], each row from column 0 on. A decode step feeds
one token to every row; an observation is fed to its row alone. So nothing is prefilled twice and nothing is padded: a mask
says how far each row reaches. The model is transformers' own; it meets its cache through `Cache.update`, its mask ready
made (4D masks are taken as they are) and its positions given. Rows share matrix products, so their results differ by
rounding with the company they keep; `prove` compares the whole with a plain forward pass.

The tensors grow with the longest row, up to the capacity: memory is what slots x longest row takes, not slots x capacity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from genevolve.policy.base import PolicyError

PAGE = 64
"""Lengths are rounded up to this, so that few tensor shapes occur."""
CHUNK = 2048
"""Tokens of a longer text that are fed at once: bounds the mask and what a forward pass keeps."""


class Saved(NamedTuple):
    """A row's cache up to its length, by layer ([kv, n, D] each), its next position, and the logits [V] after it."""

    layers: dict[int, tuple[Tensor, Tensor]]
    length: int
    position: int
    logits: Tensor


class _SlotCache(Cache):
    """Where attention layers put keys and values; `rows` and `columns` say where, `upto` how far they look back."""

    def __init__(self, slots: int, limit: int) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.slots, self.limit, self.size = slots, limit, 0
        self.store: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows: slice | Tensor = slice(0, 0)
        self.columns: slice | Tensor = slice(0, 0)
        self.upto = 0

    def grow(self, length: int) -> None:
        """Make room for rows of so many tokens: a quarter more than asked, so that it seldom happens."""
        if length <= self.size:
            return
        self.size = min(-(-(length + length // 4) // PAGE) * PAGE, self.limit)
        for layer, pair in self.store.items():
            self.store[layer] = (self._wider(pair[0]), self._wider(pair[1]))

    def _wider(self, old: Tensor) -> Tensor:
        new = old.new_zeros(old.shape[0], old.shape[1], self.size, old.shape[3])
        new[:, :, : old.shape[2]] = old
        return new

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        if layer_idx not in self.store:
            self.store[layer_idx] = (self._empty(key_states), self._empty(value_states))
        out = []
        for store, states in zip(self.store[layer_idx], (key_states, value_states), strict=True):
            if isinstance(self.rows, slice):
                store[self.rows, :, self.columns] = states
                out.append(store[self.rows, :, : self.upto])
            else:
                store[self.rows, :, self.columns] = states[:, :, 0]
                out.append(store[: len(states), :, : self.upto])
        return out[0], out[1]

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.slots, like.shape[1], self.size, like.shape[3])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.upto

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.upto, 0


class SlotEngine:
    """Decode up to `slots` rows of up to `capacity` tokens with a transformers model. Not thread-safe."""

    def __init__(self, model: Any, slots: int, capacity: int) -> None:
        """Raise PolicyError for layers that keep something else than keys and values."""
        self.model, self.slots = model, slots
        self.capacity = -(-capacity // PAGE) * PAGE
        self.device: torch.device = model.device
        config = model.config.get_text_config()
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
        self.windows = {kind: None if kind == "full_attention" else window for kind in sorted(set(kinds))}
        odd = [k for k in self.windows if k not in ("full_attention", "sliding_attention")]
        if odd:
            raise PolicyError(
                f"Its layers are of the kind {odd[0]}, which is not played here; serve it and use `openai`."
            )
        inner = getattr(model, "model", model)
        self._index = getattr(inner, "get_rope_index", None)
        """Models that place pictures in a plane number their tokens in three axes."""
        self._picture_token = getattr(model.config, "image_token_id", None)
        self.cache = _SlotCache(slots, self.capacity)
        self.lengths = [0] * slots
        self.positions = [0] * slots

    def reset(self, slot: int) -> None:
        """Empty a slot for a new row."""
        self.lengths[slot] = self.positions[slot] = 0

    def move(self, source: int, target: int) -> None:
        """Move a row to another slot."""
        n = self.lengths[source]
        for pair in self.cache.store.values():
            for store in pair:
                store[target, :, :n] = store[source, :, :n]
        self.lengths[target], self.positions[target] = n, self.positions[source]
        self.reset(source)

    def save(self, slot: int, logits: Tensor) -> Saved:
        """Copy a row out, to start others from it."""
        n = self.lengths[slot]
        layers = {i: (k[slot, :, :n].clone(), v[slot, :, :n].clone()) for i, (k, v) in self.cache.store.items()}
        return Saved(layers, n, self.positions[slot], logits.clone())

    def restore(self, slot: int, saved: Saved) -> Tensor:
        """Start a row from a saved one; return its logits [V]."""
        self.cache.grow(saved.length)
        for i, pair in saved.layers.items():
            for store, kept in zip(self.cache.store[i], pair, strict=True):
                store[slot, :, : saved.length] = kept
        self.lengths[slot], self.positions[slot] = saved.length, saved.position
        return saved.logits

    def extend(self, slot: int, ids: Sequence[int], pixels: Mapping[str, Tensor] | None = None) -> Tensor:
        """Append tokens to one row, with the pixel inputs of the pictures among them; return the logits [V] after the
        last. The row must have room for them."""
        size = len(ids) if pixels else CHUNK
        logits = torch.empty(0)
        for start in range(0, len(ids), size):
            logits = self._extend(slot, ids[start : start + size], pixels)
        return logits

    def _extend(self, slot: int, ids: Sequence[int], pixels: Mapping[str, Tensor] | None) -> Tensor:
        old, n = self.lengths[slot], len(ids)
        new = old + n
        self.cache.grow(new)
        self.cache.rows, self.cache.columns, self.cache.upto = slice(slot, slot + 1), slice(old, new), new
        tokens = torch.tensor([list(ids)], device=self.device)
        places = self._places(tokens, pixels) + self.positions[slot]
        extra = {k: v.to(self.device) for k, v in pixels.items()} if pixels else {}
        logits = self._forward(tokens, torch.arange(old, new, device=self.device)[None], places, extra)
        self.lengths[slot], self.positions[slot] = new, int(places.max()) + 1
        return logits[0]

    def decode(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each of the rows in slots 0..R-1; return logits [R, V]."""
        rows = len(tokens)
        at = torch.tensor(self.lengths[:rows], device=self.device)
        longest = max(self.lengths[:rows]) + 1
        self.cache.grow(longest)
        self.cache.rows, self.cache.columns = torch.arange(rows, device=self.device), at
        self.cache.upto = min(-(-longest // PAGE) * PAGE, self.cache.size)
        places = torch.tensor(self.positions[:rows], device=self.device)[:, None]
        fed = torch.tensor(list(tokens), device=self.device)[:, None]
        logits = self._forward(fed, at[:, None], places.expand(3, rows, 1) if self._index else places, {})
        for row in range(rows):
            self.lengths[row] += 1
            self.positions[row] += 1
        return logits

    def _places(self, tokens: Tensor, pixels: Mapping[str, Tensor] | None) -> Tensor:
        """Return the positions of a row's new tokens, counted from its next one: [1, n], or [3, 1, n]."""
        count = torch.arange(tokens.shape[1], device=self.device)[None]
        if self._index is None:
            return count
        if not pixels:
            return count.expand(3, 1, -1)
        seen = (tokens == self._picture_token).int()
        grid = pixels["image_grid_thw"].to(self.device)
        places: Tensor = self._index(tokens, mm_token_type_ids=seen, image_grid_thw=grid)[0]
        return places

    def _forward(self, tokens: Tensor, at: Tensor, places: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        """Return logits [rows, V] after the last of `tokens` [rows, n], which stand in columns `at` [rows, n]."""
        masks = {kind: self._mask(at, window) for kind, window in self.windows.items()}
        out = self.model(
            input_ids=tokens,
            attention_mask=next(iter(masks.values())) if len(masks) == 1 else masks,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _mask(self, at: Tensor, window: int | None) -> Tensor:
        """Return what is added to attention scores, [rows, 1, n, upto]."""
        column = torch.arange(self.cache.upto, device=self.device)
        hidden = column > at[..., None]
        if window is not None:
            hidden |= column <= at[..., None] - window
        mask = torch.zeros(hidden.shape, dtype=self.model.dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)[:, None]
