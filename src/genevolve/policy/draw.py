"""Drawing tokens: temperature, exact top-p, full-vocabulary log-probs, and one random stream per trajectory (ours)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TRY = 64
"""Candidates looked at first; a row whose nucleus is larger is sorted whole."""


def uniforms(seed: int, key: str, n: int) -> Tensor:
    """Return n numbers in [0, 1) of the stream (seed, key), float64: Philox counted from a SHA-256 key, so that a
    trajectory draws the same numbers in whatever batch it is."""
    import numpy as np
    import torch

    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(n)
    return torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def draw(
    logits: Tensor, u: Tensor, temperature: float, top_p: float, never: Tensor | None = None
) -> tuple[list[int], list[float]]:
    """Return one token a row and its natural log-prob over the full vocabulary at `temperature`, for logits [R, V] and
    uniforms u [R]. Temperature 0 takes the best token and reports its log-prob at temperature 1.

    The nucleus is the shortest run of best tokens whose probability reaches `top_p` (as in transformers). Ids in `never`
    [N] are not drawn; as with what the nucleus cuts off, the log-probs stay those of the full vocabulary.
    """
    import torch

    scaled = logits if temperature in (0, 1) else logits * (1.0 / temperature)
    logp = torch.log_softmax(scaled, -1)
    if never is not None:
        logp = logp.index_fill(-1, never, float("-inf"))
    token = logp.argmax(-1)
    best = logp.gather(1, token[:, None])[:, 0]
    if temperature > 0:
        open_rows = (best.exp() < top_p).nonzero()[:, 0]
        if len(open_rows):
            token[open_rows] = _nucleus(logp[open_rows], u[open_rows], top_p)
            best = logp.gather(1, token[:, None])[:, 0]
    return token.tolist(), best.tolist()


def _nucleus(logp: Tensor, u: Tensor, top_p: float) -> Tensor:
    """Return one token a row from the nucleus of logp [R, V]."""
    import torch

    size = min(TRY, logp.shape[1])
    best, ids = logp.topk(size, dim=-1)
    p = best.exp().double()
    total = p.cumsum(-1)
    if size < logp.shape[1] and bool((wide := total[:, -1] < top_p).any()):
        token = torch.empty(len(logp), dtype=torch.long, device=logp.device)
        ranked, order = logp[wide].sort(dim=-1, descending=True, stable=True)
        token[wide] = _pick(ranked, order, u[wide], top_p)
        token[~wide] = _pick(best[~wide], ids[~wide], u[~wide], top_p)
        return token
    return _pick(best, ids, u, top_p)


def _pick(logp: Tensor, ids: Tensor, u: Tensor, top_p: float) -> Tensor:
    """Invert the distribution function of the kept part of sorted log-probs [R, N] at u [R]."""
    p = logp.exp().double()
    total = p.cumsum(-1)
    total = total.masked_fill(total - p >= top_p, 0.0).cummax(-1).values  # what is cut off adds nothing
    index = (total <= u[:, None] * total[:, -1:]).sum(-1).clamp_(max=logp.shape[1] - 1)
    return ids.gather(1, index[:, None])[:, 0]
