"""What a policy of the embedded world can do, on fresh requests of a split that bases and cold starts may be chosen on.

    python -m benchmarks.abilities --policy build/c000/trained/policy [--split evolve] [--n 400]

Half of the requests are Knowledge-Anchored, half Quality-Anchored; entities are the split's own, recipes are drawn anew,
each is played once with the bench's sampling. The bench split is refused. The last line is one JSON object: the rates of
`genevolve.bench.ability`, over all and by track, how the trajectories ended, and `rare`: the share of the world's words
with a token that stands fewer than ten times in 6,000 examples of the base's practice. Such a token cannot be copied well.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from genevolve.agent.rollout import rollouts
from genevolve.agent.session import Limits
from genevolve.bench.ability import abilities
from genevolve.dataset.recipe_pool import Cell, Drawer, make_pools
from genevolve.policy.local import LocalPolicy
from genevolve.profiles import load
from genevolve.scene import SKILLS
from genevolve.stages.backends import make_tools, system_text, world
from genevolve.stages.crew import bench_sampling
from genevolve.tools.embedded import SkillTexts
from genevolve.training.lore import read_lore
from genevolve.training.pretrain import token_counts

TRACKS = ("knowledge_anchored", "quality_anchored")


def rare_words(policy: Path, dataset: Path, seen: int = 10) -> float:
    """Return the share of words in the world's names with a token seen fewer than `seen` times in practice."""
    from genevolve.training.checkpoint import load_policy

    tokenizer = load_policy(policy)[1]
    skills = SkillTexts()
    names = [n for e in world(dataset).entities.values() for n in (e.name, e.title) if n]
    lore = read_lore(names, {s: skills.read(s) for s in SKILLS})
    counts = token_counts(tokenizer, lore)
    words = sorted({word for name in names for word in name.split()})
    rows = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    return sum(min(counts[i] for i in row) < seen for row in rows) / len(words)


def rates(requests: Any, played: Any) -> dict[str, float]:
    return {name: round(row["rate"], 4) for name, row in abilities(requests, played).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--split", choices=("sft", "evolve", "validation"), default="evolve")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--profile", default="embedded")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = load(args.profile)
    drawer = Drawer(make_pools(world(args.data), settings.seeds.data_seed), settings.seeds.data_seed)
    requests = [drawer.draw(Cell(args.split, t)).request for _ in range(args.n // 2) for t in TRACKS]
    played = rollouts(
        LocalPolicy.load(args.policy),
        requests,
        1,
        make_tools(settings, args.data),
        bench_sampling(settings),
        1,
        system=system_text(settings),
        limits=Limits(settings.sampling.tool_calls, settings.sampling.rounds),
    )
    track = {r.id: r.eval_type for r in requests}
    by_track = {
        name: rates([r for r in requests if r.eval_type == name], [t for t in played if track[t.request_id] == name])
        for name in TRACKS
    }
    print(
        json.dumps(
            {
                "requests": len(requests),
                **rates(requests, played),
                "by_track": by_track,
                "ended": Counter(t.termination for t in played),
                "rare": round(rare_words(args.policy, args.data), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
