"""A structured start for a small Qwen3: heads that look one, two, three, four tokens back, and induction heads above (ours).

Copying what was never seen is the wall for a model of a few million parameters. A stock start learns it late or not at
all; this one copies repeated random tokens, and tells lines apart that end in the same two or three tokens, before any
training. Everything in it goes on to train.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

EMBEDDING_STD = 0.1
"""Initial spread of the embeddings. At the usual .02 the first hundred steps of AdamW move them by several times their
size, and the heads that stand on them are lost."""


def wire(model: Qwen3ForCausalLM, seed: int, sharpness: float = 2.0, copy: float = 4.0) -> None:
    """Wire the first two layers, in place; the model needs two key-value groups or more and a tied head.

    Layer 0: group g attends to the token g + 1 positions back and writes it to a side subspace of its own. Layer 1: group g
    attends to where the last g + 1 tokens stood before, in this order, and copies what followed them there.
    `copy` scales what the induction heads write: below ~3 the tied head still repeats the current token.
    A random orthogonal basis splits the residual stream of width H: u (a constant direction for position-only
    attention), head_dim directions each for the token itself and the one before, half as many for each one further back.
    Raises ValueError when the model is too narrow or has one group only.
    """
    import torch

    cfg = model.config
    width, hd = cfg.hidden_size, cfg.head_dim
    heads, groups = cfg.num_attention_heads, cfg.num_key_value_heads or cfg.num_attention_heads
    theta: Any = (cfg.rope_parameters or {})["rope_theta"]
    per_group = heads // groups
    sizes = [1, hd, hd] + [hd // 2] * (groups - 1)
    if width < sum(sizes) or groups < 2:
        raise ValueError(
            f"wired start needs hidden_size >= {sum(sizes)} and 2 key-value heads or more for head_dim {hd}, "
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
        (u,), *back = basis[: sum(sizes)].split(sizes)  # back[n]: where the token n positions back is written
        emb -= (emb @ u)[:, None] * u
        for side in back[1:]:
            emb -= (emb @ side.T) @ side * 0.7
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
        for group in range(groups):
            turn = -inv * (group + 1)  # so many positions back, by rotation
            query = torch.cat([amp * torch.cos(turn), amp * torch.sin(turn)])
            target = back[group + 1]
            kw[group] = 0.3 * key[:, None] * u + 0.003 * torch.randn(hd, width, generator=g)
            vw[group] = back[0] * 0.2
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
        for group in range(groups):
            kw[group] *= 0.1
            vw[group] = basis[torch.randperm(width, generator=g)[:hd]] * 0.2
            for h in range(group * per_group, (group + 1) * per_group):
                qw[h] *= 0.1
                ow[:, h] = vw[group].T * copy * scale * 2 / heads
            for n in range(group + 1):  # the token n back, where I stand, is the token n + 1 back, where I look
                pairs = slow[n :: group + 1]
                dims = torch.cat([pairs, pairs + hd // 2])[: len(back[n + 1])]
                kw[group][dims] = back[n + 1][: len(dims)] * 0.3
                for h in range(group * per_group, (group + 1) * per_group):
                    qw[h][dims] = back[n][: len(dims)] * 0.3
        second.q_norm.weight.fill_(sharpness)
        second.k_norm.weight.fill_(sharpness)
