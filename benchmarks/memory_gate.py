"""The experience memory's gate, calibrated on reward: from which similarity on does another request's advice help?

    python -m benchmarks.memory_gate --policy build/c000/trained/policy --memory build/c001/trained/memory.jsonl

Every validation request is played `--k` times without a guide, and `--k` times with the guide of the nearest bundle of the
memory, of a random one, and of one half way down the list. Usefulness is the mean reward with the guide less the mean
without. The last line is one JSON object: the calibrated gate (`genevolve.experience.gate`), the gate in use, and the mean
usefulness above and below it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from genevolve.dataset.public import load_requests
from genevolve.experience.gate import calibrate_gate
from genevolve.experience.guide import render_guide
from genevolve.experience.memory import KEYS
from genevolve.profiles import load
from genevolve.records import Bundle, Request, Trajectory, read_jsonl
from genevolve.stages.backends import make_embedder
from genevolve.stages.crew import Crew, training_sampling
from genevolve.stages.experience import MINILM_GATE, MINILM_KEY


def mean_rewards(requests: Sequence[Request], played: Sequence[Trajectory]) -> np.ndarray:
    """Return the mean total reward of each request's rollouts; a missing one is left out, nan where all are."""
    rewards: dict[str, list[float]] = {r.id: [] for r in requests}
    for t in played:
        if t.reward is not None and t.reward.total is not None:
            rewards[t.request_id].append(t.reward.total)
    return np.array([np.mean(rewards[r.id]) if rewards[r.id] else np.nan for r in requests])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--memory", type=Path, required=True, help="memory.jsonl of an evolution")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--k", type=int, default=4)
    args = parser.parse_args()
    settings = load(args.profile)
    requests = load_requests(args.data, "validation")
    bundles = list(read_jsonl(args.memory, Bundle))
    to_key, embedder = KEYS[MINILM_KEY], make_embedder(settings)
    cosines = (
        embedder.embed([to_key(r.question) for r in requests]) @ embedder.embed([to_key(b.question) for b in bundles]).T
    )
    order, dice = np.argsort(-cosines, axis=1, kind="stable"), Random(1)
    chosen = {
        "nearest": order[:, 0],
        "middle": order[:, order.shape[1] // 2],
        "random": np.array([dice.randrange(len(bundles)) for _ in requests]),
    }
    with Crew(settings, args.data) as crew:

        def play(guides: dict[str, str]) -> np.ndarray:
            sampling = training_sampling(settings)
            played = crew.play(args.policy, requests, args.k, sampling, 1, guides=guides)
            return mean_rewards(requests, played)

        alone = play({})
        pairs: list[tuple[float, float]] = []
        means: dict[str, float] = {}
        for name, picks in chosen.items():
            gain = play({r.id: render_guide(bundles[i]) for r, i in zip(requests, picks, strict=True)}) - alone
            means[name] = round(float(np.nanmean(gain)), 4)
            pairs += [
                (float(cosines[row, i]), float(g))
                for row, (i, g) in enumerate(zip(picks, gain, strict=True))
                if not np.isnan(g)
            ]
    similarity, gains = np.array(pairs).T
    ranks = [np.argsort(np.argsort(v)) for v in (similarity, gains)]
    above = similarity >= MINILM_GATE
    gate = calibrate_gate(pairs)
    print(
        json.dumps(
            {
                "requests": len(requests),
                "bundles": len(bundles),
                "reward_alone": round(float(np.nanmean(alone)), 4),
                "gain": means,
                "rank_correlation": round(float(np.corrcoef(*ranks)[0, 1]), 3),
                "calibrated": {
                    "gate": round(gate.gate, 3),
                    "hit_rate": gate.hit_rate,
                    "gain": round(gate.usefulness, 4),
                },
                "in_use": {
                    "gate": MINILM_GATE,
                    "hit_rate": round(float(above.mean()), 3),
                    "gain_above": round(float(gains[above].mean()), 4) if above.any() else None,
                    "gain_below": round(float(gains[~above].mean()), 4) if not above.all() else None,
                },
            }
        )
    )


if __name__ == "__main__":
    main()
