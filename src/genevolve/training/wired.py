"""A structured start for a small Qwen3: a previous-token head in layer 0 and induction heads above it (ours).

Copying what was never seen is the wall for a model of a few million parameters. A stock start learns it late or not at
all; this one copies repeated random tokens before any training, and everything in it goes on to train.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM


def wire(
    model: Qwen3ForCausalLM,
    seed: int,
    induction_layers: tuple[int, ...] = (1,),
    sharpness: float = 2.0,
    copy: float = 4.0,
) -> None:
    """Wire key-value group 0 of layer 0 (attend to the previous token, write it to a side subspace B) and of
    `induction_layers` (match own token, subspace A, against B; copy what stands there), in place.

    `copy` scales what an induction head writes: below ~3 the tied head still repeats the current token.
    The residual stream of width H >= 2 * head_dim + 1 is split by a random orthogonal basis: u (a constant direction
    for position-only attention), A and B of head_dim directions each.
    """
    import torch

    cfg = model.config
    width, hd = cfg.hidden_size, cfg.head_dim
    heads, groups = cfg.num_attention_heads, cfg.num_key_value_heads or cfg.num_attention_heads
    theta: Any = (cfg.rope_parameters or {})["rope_theta"]
    per_group = heads // groups
    if width < 2 * hd + 1:
        raise ValueError(f"wired start needs hidden_size >= {2 * hd + 1} for head_dim {hd}, not {width}")
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        inv = 1 / (theta ** (torch.arange(0, hd, 2) / hd))
        slow = (inv < 0.012).nonzero().squeeze(1)  # rotary pairs that hardly turn over a trajectory: content, not place
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.2
            layer.mlp.down_proj.weight *= 0.2
        basis, _ = torch.linalg.qr(torch.randn(width, width, generator=g))
        u, a, b = basis[0], basis[1 : 1 + hd], basis[1 + hd : 1 + 2 * hd]
        emb = model.model.embed_tokens.weight
        emb -= (emb @ u)[:, None] * u
        emb -= (emb @ b.T) @ b * 0.7
        emb += 0.02 * width**0.5 * u * 0.6

        def views(attn: Any) -> tuple[Any, Any, Any, Any]:
            return (
                attn.q_proj.weight.view(heads, hd, width),
                attn.k_proj.weight.view(groups, hd, width),
                attn.v_proj.weight.view(groups, hd, width),
                attn.o_proj.weight.view(width, heads, hd),
            )

        amp = torch.exp(-torch.arange(hd // 2) / 3.0)
        key = torch.cat([amp, torch.zeros(hd // 2)])
        query = torch.cat([amp * torch.cos(-inv), amp * torch.sin(-inv)])  # one position back, by rotation
        first = model.model.layers[0].self_attn
        qw, kw, vw, ow = views(first)
        kw[0] = 0.3 * key[:, None] * u + 0.003 * torch.randn(hd, width, generator=g)
        vw[0] = a * 0.2
        for h in range(per_group):
            qw[h] = 0.3 * query[:, None] * u + 0.003 * torch.randn(hd, width, generator=g)
            ow[:, h] = b.T * 0.2 / per_group
        first.q_norm.weight.fill_(sharpness)
        first.k_norm.weight.fill_(sharpness)
        dims, n = torch.cat([slow, slow + hd // 2]), 2 * len(slow)
        for index in induction_layers:
            attn = model.model.layers[index].self_attn
            qw, kw, vw, ow = views(attn)
            kw[0] *= 0.1
            kw[0][dims] = b[:n] * 0.3
            vw[0] = basis[torch.randperm(width, generator=g)[:hd]] * 0.2
            for h in range(per_group):
                qw[h] *= 0.1
                qw[h][dims] = a[:n] * 0.3
                ow[:, h] = vw[0].T * copy / per_group
            attn.q_norm.weight.fill_(sharpness)
            attn.k_norm.weight.fill_(sharpness)
