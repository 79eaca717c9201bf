"""The base's wired start: what its heads can do before any training, and what that is worth after a little.

    python -m benchmarks.wired_start [--tokens 700000] [--groups 1 2 4] [--vocab 4096] [--cases 100]

One model for each number of key-value groups: a head group looks that many tokens back (1: the stock start, nothing wired).
`copies`: of random tokens that were read once before, the share said right. `tells_apart`: five lines of eight random
tokens and an id stand somewhere above; they end in the same n tokens; asked for one of them, its own id comes first among
the five (chance .2). With --tokens each model is trained on the base's practice for so long (6 minutes per 700,000 on one
core) and measured again, with the probe of `genevolve pretrain-base`. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genevolve.training.pretrain import PretrainConfig, new_model, practice, probe, train

SHARED = (0, 1, 2, 3, 4, 5)
LINE, LINES, FILLER = 8, 5, 300


def copies(model: Any, cases: int, length: int = 150) -> float:
    """Return the share of `length` random tokens said right when they come a second time."""
    rng, right = torch.Generator().manual_seed(4), 0.0
    for _ in range(cases):
        once = torch.randint(10, model.config.vocab_size, (length,), generator=rng)
        with torch.no_grad():
            said = model(input_ids=torch.cat([once, once])[None]).logits[0, length + 8 : -1].argmax(-1)
        right += (said == once[9:]).float().mean().item()
    return right / cases


def tells_apart(model: Any, shared: int, cases: int) -> float:
    """Return how often the right one of five ids comes first when the lines end in the same `shared` tokens."""
    rng, right = torch.Generator().manual_seed(3), 0

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(10, model.config.vocab_size, shape, generator=rng)

    for case in range(cases):
        lines = draw(LINES, LINE + 1)
        lines[:, LINE - shared : LINE] = lines[0, LINE - shared : LINE]
        page = torch.cat([lines, torch.full((LINES, 1), 5)], 1).reshape(-1)
        asked = lines[case % LINES]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([draw(FILLER), page, draw(20), asked[:LINE]])[None]).logits[0, -1]
        right += int(logits[lines[:, LINE]].argmax()) == case % LINES
    return right / cases


def measure(model: Any, cases: int) -> dict[str, Any]:
    model.eval()
    return {
        "copies": round(copies(model, max(1, cases // 10)), 3),
        "tells_apart": {n: round(tells_apart(model, n, cases), 3) for n in SHARED},
    }


def stock(cfg: PretrainConfig) -> Any:
    """Return the same architecture as transformers initialises it."""
    from transformers import Qwen3ForCausalLM

    wired = new_model(replace(cfg, kv_heads=2))
    torch.manual_seed(cfg.seed)
    return Qwen3ForCausalLM(wired.config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=0, help="train each model on so many tokens")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--vocab", type=int, default=PretrainConfig.vocab_size)
    parser.add_argument("--cases", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    material = practice(Path("build/world"), args.vocab, PretrainConfig.seed) if args.tokens else None
    rows = []
    for groups in args.groups:
        cfg = replace(PretrainConfig(), kv_heads=groups, vocab_size=args.vocab, tokens=args.tokens, workers=1)
        model = stock(cfg) if groups == 1 else new_model(cfg)
        row: dict[str, Any] = {"groups": groups, "vocab": args.vocab, "tokens": args.tokens}
        row |= {"before": measure(model, args.cases)}
        if material is not None:
            lore, tokenizer = material
            with tempfile.TemporaryDirectory() as folder:
                train(cfg, tokenizer, lore, Path(folder), lambda r: print(json.dumps(r), file=sys.stderr), model)
            row |= {"after": measure(model, args.cases) | probe(model, tokenizer, lore, seed=9, n=150)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
