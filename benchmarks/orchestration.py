"""Where does a night's wall time go: the stages' own work, or Prefect, DVC, MLflow and process starts?

    python -m benchmarks.orchestration [--profile embedded] [--nights 2] [--plain] [--keep FOLDER]

A clone of the last commit runs cycles as nights do: a Prefect server and a worker of its own on free ports, the deployment
`nightly` started once for each, the time counted from when the run is due until it has ended. The first night builds the
dataset and the cold start as well; those behind it begin at the champion, and take half as long. `--plain` runs
`genevolve evolve` once instead, without Prefect. A probe (benchmarks/probe) notes in every process what the time goes to:

    stages          the stage bodies; their worker processes work at the same time and are not counted apart
    process starts  interpreters and imports, inside the stages too
    dvc             `dvc repro`, but for the stage that it runs
    mlflow          its import, runs, metrics, artifacts, traces, registry
    prefect         the flow's process but for the above: pull step, states, tasks, artifacts, the gate's own arithmetic
    waiting         between due and the flow's first process: the worker's poll and what no watched process covers
    bookkeeping     our runner: fingerprints over code and inputs, locks, reports

At every instant the time belongs to what began last, in the main thread of some process: the traces that MLflow writes in
the background of a flow take no time of their own here. `share` is what is not stages. One JSON object a line, a night each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from benchmarks.clones import NIGHTLY, Clone

AIM = 0.10
KINDS = ("stages", "process starts", "dvc", "mlflow", "prefect", "waiting", "bookkeeping")
Row = tuple[float, float, str]


def innermost(rows: Iterable[Row], begin: float, end: float) -> dict[str, float]:
    """Return seconds by kind between begin and end: each instant belongs to the interval that began last, else to waiting."""
    clipped = [(max(a, begin), min(b, end), a, what) for a, b, what in rows if b > begin and a < end]
    edges = sorted({begin, end, *(a for a, *_ in clipped), *(b for _, b, *_ in clipped)})
    total = dict.fromkeys(KINDS, 0.0)
    for left, right in itertools.pairwise(edges):
        open_now = [(true_begin, what) for a, b, true_begin, what in clipped if a <= left and b >= right]
        total[max(open_now)[1] if open_now else "waiting"] += right - left
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--nights", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="without Prefect")
    parser.add_argument("--keep", type=Path, default=None, help="folder of the clone and its logs; default: temporary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestration-") as temporary:
        root = args.keep or Path(temporary)
        notes = root / "probe"
        notes.mkdir(parents=True)
        clone = Clone(root / "clone", notes)
        spans = plain(clone, args.profile) if args.plain else nights(clone, args.profile, args.nights)
        rows = [tuple(row) for path in notes.glob("*.json") for row in json.loads(path.read_text())]
    for number, (begin, end) in enumerate(spans, 1):
        say(args, number, innermost(rows, begin, end), end - begin)


def say(args: argparse.Namespace, number: int, seconds: dict[str, float], wall: float) -> None:
    if not seconds["stages"]:
        sys.exit("the probe saw no stage at work: nothing was measured")
    print(f"{args.profile}, {'plain' if args.plain else f'night {number}, under Prefect'}: {wall:.1f} s")
    for what in KINDS:
        print(f"  {what:<16}{seconds[what]:>8.1f} s {seconds[what] / wall:>7.1%}")
    result = {
        "profile": args.profile,
        "prefect": not args.plain,
        "night": number,
        "wall": round(wall, 1),
        "seconds": {what: round(value, 1) for what, value in seconds.items()},
        "share": round(1 - seconds["stages"] / wall, 4),
        "aim": AIM,
    }
    print(json.dumps(result))


def plain(clone: Clone, profile: str) -> list[tuple[float, float]]:
    """Run `genevolve evolve`; return its begin and end."""
    begin = time.time()
    clone.run("genevolve", "evolve", "--profile", profile)
    return [(begin, time.time())]


def nights(clone: Clone, profile: str, number: int) -> list[tuple[float, float]]:
    """Run the deployment `nightly` on a server of its own; return when each run was due and when it had ended."""
    try:
        clone.run("genevolve", "serve", "--no-pages")
        clone.run("genevolve", "deploy")
        return [night(clone, profile) for _ in range(number)]
    finally:
        clone.run("genevolve", "stop")


def night(clone: Clone, profile: str) -> tuple[float, float]:
    deployment = clone.ask(f"deployments/name/{NIGHTLY}")
    parameters = {**deployment["parameters"], "profile": profile}
    run = clone.ask(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    while run["state"]["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
        time.sleep(2)
        run = clone.ask(f"flow_runs/{run['id']}")
    if run["state"]["type"] != "COMPLETED":
        sys.exit(f"the night ended as {run['state']['type']}: {run['state']['message']}\n{clone.worker_log()}")
    time.sleep(5)  # its processes write down what they noted as they end
    begin, end = (datetime.fromisoformat(run[key]).timestamp() for key in ("expected_start_time", "end_time"))
    return begin, end


if __name__ == "__main__":
    main()
