"""Does the policy read the guide that its teacher is given? Reward with and without it, on the very requests it was made of.

    python -m benchmarks.guide_lift --policy build/c000/trained/policy --requests 64

Every request (evolve split, from the end, which a short evolution does not reach) is played `--k` times to make a bundle of
its best and its worst rollout, then `--k` times more, with other random numbers, in four ways: without a guide, with the
guide of its own bundle, with that of the nearest bundle of another request, and with one of an unrelated request (the
placebo). Only requests that gave a bundle count. The last line is one JSON object: reward, and validity, in each way, the
paired gain over no guide with its standard error, and the gain by what the guide advises.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.memory_gate import mean_rewards
from genevolve.dataset.public import load_requests
from genevolve.experience.contrast import by_request, contrast
from genevolve.experience.guide import render_guide
from genevolve.experience.memory import KEYS
from genevolve.experience.summarise import summarise
from genevolve.profiles import load
from genevolve.stages.backends import make_embedder
from genevolve.stages.crew import Crew, training_sampling
from genevolve.stages.experience import MINILM_KEY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--k", type=int, default=6)
    args = parser.parse_args()
    settings = load(args.profile)
    sampling = training_sampling(settings)
    requests = load_requests(args.data, "evolve")[-args.requests :]
    with Crew(settings, args.data) as crew:
        first = crew.play(args.policy, requests, args.k, sampling, 1)
        pairs = contrast(by_request(first), settings.experience.gap, len(requests)).pairs
        bundles = {p.request_id: summarise(p) for p in pairs}
        asked = [r for r in requests if r.id in bundles]
        guides = {r.id: render_guide(bundles[r.id]) for r in asked}
        to_key, embedder = KEYS[MINILM_KEY], make_embedder(settings)
        keys = embedder.embed([to_key(r.question) for r in asked])
        near = keys @ keys.T
        np.fill_diagonal(near, -np.inf)
        dice = Random(1)
        others = {r.id: [g for o, g in guides.items() if o != r.id and g != guides[r.id]] for r in asked}
        ways = {
            "alone": {},
            "own": guides,
            "nearest other": {r.id: guides[asked[int(i)].id] for r, i in zip(asked, near.argmax(axis=1), strict=True)},
            "placebo": {r.id: dice.choice(others[r.id]) for r in asked if others[r.id]},
        }
        played = {way: crew.play(args.policy, asked, args.k, sampling, 2, guides=g) for way, g in ways.items()}
    rewards = {way: mean_rewards(asked, rows) for way, rows in played.items()}
    gain = {way: rewards[way] - rewards["alone"] for way in ways if way != "alone"}
    by_advice: dict[str, list[float]] = defaultdict(list)
    for r, g in zip(asked, gain["own"], strict=True):
        for slot, bullets in bundles[r.id].decision_guidance.model_dump().items():
            news = [b for b in bullets if not b.startswith("Standard:")] if isinstance(bullets, tuple | list) else []
            if news and not np.isnan(g):
                by_advice[slot].append(float(g))
    print(
        json.dumps(
            {
                "requests": len(requests),
                "bundles": len(asked),
                "reward": {way: round(float(np.nanmean(r)), 4) for way, r in rewards.items()},
                "valid": {
                    way: round(np.mean([t.program is not None for t in rows]), 4) for way, rows in played.items()
                },
                "gain": {
                    way: {
                        "mean": round(float(np.nanmean(g)), 4),
                        "se": round(float(np.nanstd(g) / np.sqrt(np.isfinite(g).sum())), 4),
                    }
                    for way, g in gain.items()
                },
                "own_gain_by_advice": {
                    slot: {"n": len(gs), "mean": round(float(np.mean(gs)), 4)} for slot, gs in sorted(by_advice.items())
                },
            }
        )
    )


if __name__ == "__main__":
    main()
