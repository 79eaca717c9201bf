"""Which settings of the evolution are better, on the validation split alone: to choose by before the bench is ever asked.

    python -m benchmarks.tuning --arms-file tuning.yaml --arms grpo,full --first-seed 101 --seeds 2 [--requests 400]

Arms are entries as in `ablation.yaml`. Every (arm, seed) evolves from its seed's cold start as `genevolve ablate` would let
it, and its policy then plays fresh requests about entities of the validation split (their recipes are drawn anew, so there
can be more of them than the dataset has), once each, with the bench's sampling. Bench requests are never read. Finished
runs are kept under build/tuning/ and not made again, whatever has changed: delete their folders to have them anew.

`--parent POLICY --earlier FOLDER` tries out a later night in place of a first one: all arms and seeds go on from that policy,
with the memory and the record of what was played in that cycle's `trained` folder; an arm says `cycle: {night: N}`.

The last line is one JSON object: for each arm the mean reward, KScore of drawn pictures and validity, per-seed rewards, and
the paired difference of rewards to the first arm with its standard error over requests; `start` is the cold start.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

WORK = Path("build/tuning")


def fresh(settings: Any, dataset: Path, n: int, split: str) -> list[Any]:
    """Return n fresh requests about a split's entities, half of them Knowledge-Anchored."""
    from genevolve.dataset.recipe_pool import Cell, Drawer, make_pools
    from genevolve.stages.backends import world

    drawer = Drawer(make_pools(world(dataset), settings.seeds.data_seed), 77)
    tracks = ("knowledge_anchored", "quality_anchored")
    return [drawer.draw(Cell(split, t)).request for _ in range(n // 2) for t in tracks]  # type: ignore[arg-type]


def score(settings: Any, dataset: Path, policy: Path, n: int, split: str, out: Path) -> None:
    """Write request id -> [reward, KScore or null] of one play each."""
    from genevolve.stages.crew import Crew, bench_sampling

    if out.exists():
        return
    requests = fresh(settings, dataset, n, split)
    with Crew(settings, dataset) as crew:
        played = crew.play(policy, requests, 1, bench_sampling(settings), 5)
    rows = {
        t.request_id: [t.reward.total, t.reward.image.overall if t.reward.image else None] for t in played if t.reward
    }
    out.write_text(json.dumps(rows))


def cold(args: argparse.Namespace, seed: int) -> None:
    from genevolve.ablation.arms import load_table, start_settings
    from genevolve.stages.runner import Job, run_job
    from genevolve.training.checkpoint import base_folder

    os.environ["TQDM_DISABLE"] = "1"
    out = WORK / f"cold-s{seed}" / "trained"
    if out.with_name(
        f"{args.split}.json"
    ).exists():  # whatever changed in the code since: one start for all that is compared
        return
    settings = start_settings(load_table(args.arms_file), args.profile, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.parent is None:
        inputs = {"dataset": args.data, "base": base_folder(settings.policy.base)}
        run_job(Job("cold_start", f"cold-s{seed}", settings, inputs, out, out.with_name("cold_start.json")))
    score(
        settings,
        args.data,
        args.parent or out / "policy",
        args.requests,
        args.split,
        out.with_name(f"{args.split}.json"),
    )


def evolve(args: argparse.Namespace, name: str, seed: int) -> None:
    from genevolve.ablation.arms import arm_settings, load_table
    from genevolve.stages.runner import Job, run_job

    os.environ["TQDM_DISABLE"] = "1"
    table = load_table(args.arms_file)
    settings = arm_settings(table, table.arms[name], args.profile, seed)
    folder = WORK / f"{name}-s{seed}"
    if (folder / f"{args.split}.json").exists():
        return
    parent = args.parent or WORK / f"cold-s{seed}" / "trained" / "policy"
    inputs = {"dataset": args.data, "parent": parent} | ({"earlier": args.earlier} if args.earlier else {})
    run_job(Job("evolve", folder.name, settings, inputs, folder / "trained", folder / "evolve.json"))
    policy = folder / "trained" / "policy"
    score(settings, args.data, policy, args.requests, args.split, folder / f"{args.split}.json")


def rows_of(name: str, seeds: range, split: str) -> list[dict[str, list[float | None]]]:
    return [json.loads((WORK / f"{name}-s{seed}" / f"{split}.json").read_text()) for seed in seeds]


def summary(rows: list[dict[str, list[float | None]]], to: list[dict[str, list[float | None]]]) -> dict[str, Any]:
    ids = sorted(rows[0])
    ours, theirs = (np.array([[r[i][0] for i in ids] for r in side], float) for side in (rows, to))
    seen = [x[1] for r in rows for x in r.values() if x[1] is not None]
    gain = np.nanmean(ours - theirs, axis=0)
    return {
        "reward": round(float(np.nanmean(ours)), 4),
        "kscore": round(float(np.mean(seen)), 4),
        "drawn": round(len(seen) / ours.size, 4),
        "by_seed": [round(float(v), 4) for v in np.nanmean(ours, axis=1)],
        "gain": round(float(gain.mean()), 4),
        "gain_by_seed": [round(float(v), 4) for v in np.nanmean(ours - theirs, axis=1)],
        "se": round(float(gain.std() / np.sqrt(len(gain))), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms-file", type=Path, default=Path("ablation.yaml"))
    parser.add_argument("--arms", required=True)
    parser.add_argument("--parent", type=Path, help="the policy all go on from, in place of each seed's cold start")
    parser.add_argument("--earlier", type=Path, help="the `trained` folder whose memory and history all go on with")
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--first-seed", type=int, default=101)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--split", choices=("validation", "evolve"), default="validation")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    names, seeds = args.arms.split(","), range(args.first_seed, args.first_seed + args.seeds)
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(cold, args, seed) for seed in seeds]:
            done.result()
        work = [pool.submit(evolve, args, name, seed) for name in names for seed in seeds]
        for done in work:
            done.result()
    starts, first = rows_of("cold", seeds, args.split), rows_of(names[0], seeds, args.split)
    found = {"start": summary(starts, first)} | {n: summary(rows_of(n, seeds, args.split), first) for n in names}
    print(json.dumps({"requests": args.requests, "seeds": list(seeds), "to": names[0], **found}))


if __name__ == "__main__":
    main()
