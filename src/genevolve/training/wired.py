"""A structured start for a small Qwen3: heads that look one and two tokens back, and induction heads above them (ours).

Copying what was never seen is the wall for a model of a few million parameters. A stock start learns it late or not at
all; this one copies repeated random tokens, and tells two lines with the same last word apart, before any training.
Everything in it goes on to train.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

EMBEDDING_STD = 0.1
"""Initial spread of the embeddings. At the usual .02 the first hundred steps of AdamW move them by several times their
size, and the heads that stand on them are lost."""


def wire(model: Qwen3ForCausalLM, seed: int, sharpness: float = 2.0, copy: float = 4.0) -> None:
    """Wire the first two layers, in place; the model needs two key-value groups and a tied head.

    Layer 0: group 0 attends to the previous token and writes it to a side subspace B, group 1 to the one before that and
    writes it to C. Layer 1: both groups attend to where the present token was seen before (A, the token itself, against
    B) and copy what stands there; group 1 also asks that the token before it be the same (B against C).
    `copy` scales what an induction head writes: below ~3 the tied head still repeats the current token.
    The residual stream of width H >= 2.5 * head_dim + 1 is split by a random orthogonal basis: u (a constant direction
    for position-only attention), A and B of head_dim directions each, C of half as many. Raises ValueError when the
    model is too narrow or has too few groups.
    """
    import torch

    cfg = model.config
    width, hd = cfg.hidden_size, cfg.head_dim
    heads, groups = cfg.num_attention_heads, cfg.num_key_value_heads or cfg.num_attention_heads
    theta: Any = (cfg.rope_parameters or {})["rope_theta"]
    per_group = heads // groups
    need = 2 * hd + hd // 2 + 1
    if width < need or groups < 2:
        raise ValueError(
            f"wired start needs hidden_size >= {need} and 2 key-value heads or more for head_dim {hd}, "
            f"not {width} and {groups}"
        )
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        emb = model.model.embed_tokens.weight
        scale = EMBEDDING_STD / cfg.initializer_range
        emb *= scale
        for layer in model.model.layers:  # what wired heads write must not drown in what the others write
            layer.self_attn.o_proj.weight *= 0.2 * scale
            layer.mlp.down_proj.weight *= 0.2 * scale
        basis, _ = torch.linalg.qr(torch.randn(width, width, generator=g))
        u, a, b, c = basis[0], basis[1 : 1 + hd], basis[1 + hd : 1 + 2 * hd], basis[1 + 2 * hd : need]
        emb -= (emb @ u)[:, None] * u
        emb -= (emb @ b.T) @ b * 0.7
        emb -= (emb @ c.T) @ c * 0.7
        emb += 0.6 * EMBEDDING_STD * width**0.5 * u

        def views(attn: Any) -> tuple[Any, Any, Any, Any]:
            return (
                attn.q_proj.weight.view(heads, hd, width),
                attn.k_proj.weight.view(groups, hd, width),
                attn.v_proj.weight.view(groups, hd, width),
                attn.o_proj.weight.view(width, heads, hd),
            )

        inv = 1 / (theta ** (torch.arange(0, hd, 2) / hd))
        amp = torch.exp(-torch.arange(hd // 2) / 3.0)
        key = torch.cat([amp, torch.zeros(hd // 2)])
        first = model.model.layers[0].self_attn
        qw, kw, vw, ow = views(first)
        for group, target in enumerate((b, c)):
            turn = -inv * (group + 1)  # one or two positions back, by rotation
            query = torch.cat([amp * torch.cos(turn), amp * torch.sin(turn)])
            kw[group] = 0.3 * key[:, None] * u + 0.003 * torch.randn(hd, width, generator=g)
            vw[group] = a * 0.2
            for h in range(group * per_group, (group + 1) * per_group):
                qw[h] = 0.3 * query[:, None] * u + 0.003 * torch.randn(hd, width, generator=g)
                ow[:, h] = 0
                ow[:, h, : len(target)] = target.T * 0.2 * scale / per_group
        first.q_norm.weight.fill_(sharpness)
        first.k_norm.weight.fill_(sharpness)

        # rotary pairs that hardly turn over a trajectory carry content; the slowest first
        slow = (inv < 0.012).nonzero().squeeze(1).flip(0)
        second = model.model.layers[1].self_attn
        qw, kw, vw, ow = views(second)
        half = len(slow) // 2
        for group, matches in enumerate(([(b, a, slow)], [(b, a, slow[:half]), (c, b, slow[half:])])):
            kw[group] *= 0.1
            vw[group] = basis[torch.randperm(width, generator=g)[:hd]] * 0.2
            for h in range(group * per_group, (group + 1) * per_group):
                qw[h] *= 0.1
                ow[:, h] = vw[group].T * copy * scale / per_group
            for seen, asked, pairs in matches:
                dims = torch.cat([pairs, pairs + hd // 2])
                kw[group][dims] = seen[: len(dims)] * 0.3
                for h in range(group * per_group, (group + 1) * per_group):
                    qw[h][dims] = asked[: len(dims)] * 0.3
        second.q_norm.weight.fill_(sharpness)
        second.k_norm.weight.fill_(sharpness)
