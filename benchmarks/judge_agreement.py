"""Do the two image judges agree on pictures that policies drew? Scores stored bench pictures again with the second judge.

    python -m benchmarks.judge_agreement BEFORE AFTER --data DIR

BEFORE and AFTER are bench folders (blocks/*.jsonl with the reward judge's scores, images/). Prints the correlation of
KScore per picture and per dimension, and the paired difference AFTER - BEFORE by both judges; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genevolve.bench.rescore import judge_again
from genevolve.bench.score import DIMENSIONS, BenchRow, bench_rows, overall_values
from genevolve.bench.stats import paired_bootstrap
from genevolve.judge.second import SecondJudge, references_of
from genevolve.records import Score, Trajectory, read_jsonl
from genevolve.tools.world import World


def compare(before: Path, after: Path, data: Path) -> dict[str, Any]:
    """Return what both judges make of two bench folders."""
    judge = SecondJudge(references_of(World.open(data / "world")))
    start = time.process_time()
    second = [judge_again(folder, data, judge) for folder in (before, after)]
    seconds = time.process_time() - start
    first = [_known(folder, rows) for folder, rows in zip((before, after), second, strict=True)]
    pairs = [
        (a.score, b.score)
        for rows in zip(first, second, strict=True)
        for a, b in zip(*rows, strict=True)
        if a.score is not None and b.score is not None
    ]
    drawn = sum(r.trajectory is not None and r.trajectory.image is not None for rows in second for r in rows)
    return {
        "pictures": drawn,
        "judged_by_both": len(pairs),
        "cpu_ms_per_picture": round(1000 * seconds / max(1, drawn), 1),
        "overall": _agreement(pairs, "overall"),
        "dimensions": {d: _agreement(pairs, d) for d in DIMENSIONS},
        "difference": {
            name: paired_bootstrap(overall_values(rows[0]), overall_values(rows[1])).to_dict()
            for name, rows in (("reward judge", first), ("second judge", second))
        },
    }


def _known(folder: Path, rows: Sequence[BenchRow]) -> list[BenchRow]:
    """Return the rows of a bench folder as the reward judge scored them, in the order of `rows`."""
    played = [t for path in sorted((folder / "blocks").glob("*.jsonl")) for t in read_jsonl(path, Trajectory)]
    return bench_rows(list({r.request.id: r.request for r in rows}.values()), played)


def _agreement(pairs: Sequence[tuple[Score, Score]], field: str) -> dict[str, float | None]:
    """Return Pearson's r (None where a judge always says the same), means, and how often both say the same."""
    x, y = np.array([[getattr(s, field) for s in pair] for pair in pairs], dtype=float).T
    r = float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else None
    return {
        "r": None if r is None else round(r, 4),
        "same": round(float((np.abs(x - y) < 1e-9).mean()), 4),
        "reward_judge_mean": round(float(x.mean()), 4),
        "second_judge_mean": round(float(y.mean()), 4),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the dataset folder of both runs")
    options = parser.parse_args(arguments)
    result = compare(options.before, options.after, options.data)
    print(f"{result['judged_by_both']} of {result['pictures']} pictures judged by both")
    for name, row in {"KScore": result["overall"], **result["dimensions"]}.items():
        told = "  ".join(f"{k} {v}" for k, v in row.items())
        print(f"  {name:<20}{told}")
    for name, row in result["difference"].items():
        print(f"  {name}: {row['diff']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], n = {row['n']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
