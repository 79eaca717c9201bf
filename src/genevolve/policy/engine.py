"""A ragged decoder with a static key-value cache for Qwen3 on the CPU, in the order trajectories need it (ours).

Rows live in slots 0..R-1. A decode step feeds one token to every row in one batch; an observation or a prompt is fed to its
row alone. So nothing is ever prefilled twice, nothing is padded, and no result depends on the company a row keeps
(matrix products of at least four rows and batched attention give each row the same bits for every batch size: measured
on torch 2.13 with MKL, tested in tests/policy). Norm weights and the attention scale are folded into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from genevolve.policy.base import PolicyError

if TYPE_CHECKING:
    from torch import Tensor

LEAST_ROWS = 4
"""Smaller matrix products take another kernel with other rounding, so a decode step always has this many rows."""
PAGE = 32
"""The attended length is rounded up to this, so that few tensor shapes occur."""


class Saved(NamedTuple):
    """A row's cache up to its length [layers, kv, n, head_dim], and the logits [V] after its last token."""

    keys: Tensor
    values: Tensor
    logits: Tensor


class _Layer(NamedTuple):
    qkv: Tensor  # [H, (q + 2 kv) * D], input norm folded in
    qk_norm: Tensor  # [q + kv, D], attention scale folded into the q part
    out: Tensor  # [q * D, H]
    gate_up: Tensor  # [H, 2 F], post-attention norm folded in
    down: Tensor  # [F, H]


class Shape(NamedTuple):
    """The numbers of a Qwen3 config.json that decoding needs."""

    layers: int
    heads: int
    kv: int
    head_dim: int
    eps: float
    theta: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read config.json; raises PolicyError for a Qwen3 variant this engine does not compute."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        odd = {
            "rope_type": rope.get("rope_type", rope.get("type", "default")) != "default",
            "hidden_act": config.get("hidden_act", "silu") != "silu",
            "attention_bias": bool(config.get("attention_bias")),
            "use_sliding_window": bool(config.get("use_sliding_window")),
        }
        wrong = [name for name, is_odd in odd.items() if is_odd]
        if wrong:
            raise PolicyError(f"The engine does not compute Qwen3 with a special {wrong[0]}.")
        heads = int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            eps=float(config.get("rms_norm_eps", 1e-6)),
            theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        )


class Engine:
    """Decode up to `slots` rows of up to `capacity` tokens. Not thread-safe; all tensors are float32 on the CPU."""

    def __init__(self, weights: Mapping[str, Tensor], config: Mapping[str, Any], slots: int, capacity: int) -> None:
        import torch

        self.shape = s = Shape.of(config)
        self.device = torch.device("cpu")
        self.slots = max(slots, LEAST_ROWS)
        self.capacity = -(-capacity // PAGE) * PAGE
        try:
            self._fold(
                {name: w.detach().float() for name, w in weights.items()}, bool(config.get("tie_word_embeddings"))
            )
        except KeyError as e:
            raise PolicyError(f"The policy's weights lack {e}.") from e
        size = (s.layers, self.slots, s.kv, self.capacity, s.head_dim)
        self.keys, self.values = torch.zeros(size), torch.zeros(size)
        self.lengths = torch.zeros(self.slots, dtype=torch.long)
        angle = torch.outer(
            torch.arange(self.capacity).float(), 1.0 / s.theta ** (torch.arange(0, s.head_dim, 2).float() / s.head_dim)
        )
        self._turns = torch.polar(torch.ones_like(angle), angle)[:, None]  # [capacity, 1, D / 2] unit complex numbers
        self._steps = torch.arange(self.capacity)

    def _fold(self, w: dict[str, Tensor], tied: bool) -> None:
        """Fuse and transpose the weights. Head channels are reordered from (half, half) to pairs, so that the rotary
        embedding is one complex product; scores are dot products and do not notice."""
        import torch

        s = self.shape
        pairs = torch.arange(s.head_dim).view(2, -1).t().reshape(-1)
        self._embed = w["model.embed_tokens.weight"].contiguous()
        self._layers = []
        for i in range(s.layers):
            p = f"model.layers.{i}."
            a = p + "self_attn."
            hidden = w[a + "q_proj.weight"].shape[1]
            q, k = (
                w[a + n].view(-1, s.head_dim, hidden)[:, pairs].reshape(-1, hidden)
                for n in ("q_proj.weight", "k_proj.weight")
            )
            qkv = torch.cat([q, k, w[a + "v_proj.weight"]]) * w[p + "input_layernorm.weight"]
            q_norm, k_norm = (w[a + n][pairs] for n in ("q_norm.weight", "k_norm.weight"))
            norm = torch.cat([(q_norm * s.head_dim**-0.5).expand(s.heads, -1), k_norm.expand(s.kv, -1)])
            gate_up = torch.cat([w[p + "mlp.gate_proj.weight"], w[p + "mlp.up_proj.weight"]])
            gate_up = gate_up * w[p + "post_attention_layernorm.weight"]
            out, down = w[a + "o_proj.weight"], w[p + "mlp.down_proj.weight"]
            self._layers.append(_Layer(*(m.contiguous() for m in (qkv.t(), norm, out.t(), gate_up.t(), down.t()))))
        head = self._embed if tied or "lm_head.weight" not in w else w["lm_head.weight"]
        self._head = (head * w["model.norm.weight"]).t().contiguous()
        self.vocabulary = self._head.shape[1]

    def reset(self, slot: int) -> None:
        """Empty a slot for a new row."""
        self.lengths[slot] = 0

    def move(self, source: int, target: int) -> None:
        """Move a row to another slot."""
        n = int(self.lengths[source])
        self.keys[:, target, :, :n] = self.keys[:, source, :, :n]
        self.values[:, target, :, :n] = self.values[:, source, :, :n]
        self.lengths[target] = n
        self.lengths[source] = 0

    def save(self, slot: int, logits: Tensor) -> Saved:
        """Copy a row out, to start others from it."""
        n = int(self.lengths[slot])
        return Saved(self.keys[:, slot, :, :n].clone(), self.values[:, slot, :, :n].clone(), logits.clone())

    def restore(self, slot: int, saved: Saved) -> Tensor:
        """Start a row from a saved one; return its logits [V]."""
        n = saved.keys.shape[2]
        self.keys[:, slot, :, :n] = saved.keys
        self.values[:, slot, :, :n] = saved.values
        self.lengths[slot] = n
        return saved.logits

    def extend(self, slot: int, ids: Sequence[int], pixels: None = None) -> Tensor:
        """Append tokens to one row; return the logits [V] after the last. The row must have room for them. This model is
        blind: `pixels` is always None."""
        import torch
        import torch.nn.functional as functional

        s = self.shape
        old, n = int(self.lengths[slot]), len(ids)
        new = old + n
        turns = self._turns[old:new]
        mask = None if old == 0 else self._steps[:new] <= self._steps[old:new, None]
        last = len(self._layers) - 1
        x = self._embed[torch.tensor(ids)]
        for i, layer in enumerate(self._layers):
            q, k, v = self._project(x, layer, turns)
            self.keys[i, slot, :, old:new] = k.transpose(0, 1)
            self.values[i, slot, :, old:new] = v.transpose(0, 1)
            if i == last:  # only the last token's logits are wanted, and it sees everything
                q, x, mask = q[-1:], x[-1:], None
            o = functional.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                self.keys[i, slot, None, :, :new],
                self.values[i, slot, None, :, :new],
                attn_mask=mask,
                is_causal=mask is None and i != last,
                scale=1.0,
                enable_gqa=s.heads != s.kv,
            )
            x = self._finish(x, o[0].transpose(0, 1).reshape(len(x), -1), layer)
        self.lengths[slot] = new
        return self._logits(x)[0]

    def decode(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each of the rows in slots 0..R-1; return logits [R, V], valid until the next call."""
        import torch
        import torch.nn.functional as functional

        s, wanted = self.shape, len(tokens)
        rows = max(wanted, LEAST_ROWS)
        at = self.lengths[:rows]
        top = min(-(-(int(at.max()) + 1) // PAGE) * PAGE, self.capacity)
        bias = torch.zeros(rows, 1, 1, top).masked_fill_(
            (self._steps[:top] > at[:, None])[:, None, None], float("-inf")
        )
        turns, index = self._turns[at], self._steps[:rows]
        x = self._embed[torch.tensor([*tokens, *[0] * (rows - wanted)])]
        for i, layer in enumerate(self._layers):
            q, k, v = self._project(x, layer, turns)
            keys, values = self.keys[i, :rows], self.values[i, :rows]
            keys[index, :, at] = k
            values[index, :, at] = v
            o = functional.scaled_dot_product_attention(
                q.view(rows, s.kv, -1, s.head_dim), keys[:, :, :top], values[:, :, :top], attn_mask=bias, scale=1.0
            )
            x = self._finish(x, o.reshape(rows, -1), layer)
        self.lengths[:wanted] += 1
        return self._logits(x)[:wanted]

    def _project(self, x: Tensor, layer: _Layer, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated q [N, heads, D] and k [N, kv, D], and v [N, kv, D]."""
        import torch

        s = self.shape
        qkv = (self._normed(x) @ layer.qkv).view(len(x), -1, s.head_dim)
        qk = self._normed(qkv[:, : s.heads + s.kv]) * layer.qk_norm
        qk = torch.view_as_real(torch.view_as_complex(qk.view(*qk.shape[:2], -1, 2)) * turns).view_as(qk)
        return qk[:, : s.heads], qk[:, s.heads :], qkv[:, s.heads + s.kv :]

    def _finish(self, x: Tensor, attended: Tensor, layer: _Layer) -> Tensor:
        import torch
        import torch.nn.functional as functional

        x = torch.addmm(x, attended, layer.out)
        gate, up = (self._normed(x) @ layer.gate_up).chunk(2, dim=-1)
        return torch.addmm(x, functional.silu(gate).mul_(up), layer.down)

    def _normed(self, x: Tensor) -> Tensor:
        """RMS norm over the last axis, without its weight."""
        return x * x.square().mean(-1, keepdim=True).add_(self.shape.eps).rsqrt_()

    def _logits(self, x: Tensor) -> Tensor:
        return self._normed(x) @ self._head
