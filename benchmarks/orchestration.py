"""Where does a night's wall time go: the stages' own work, or Prefect, DVC, MLflow and process starts?

    python -m benchmarks.orchestration [--profile embedded] [--plain] [--keep FOLDER]

A clone of the last commit runs one cycle as a night does: a Prefect server and a worker of its own on free ports, the
deployment `nightly` started once, the time counted from when the run is due until it has ended. `--plain` runs
`genevolve evolve` instead, without Prefect. A probe (benchmarks/probe) notes in every process what the time goes to:

    stages          the stage bodies; their worker processes work at the same time and are not counted apart
    process starts  interpreters and imports, inside the stages too
    dvc             `dvc repro`, but for the stage that it runs
    mlflow          its import, runs, metrics, artifacts, traces, registry
    prefect         the flow's process but for the above: pull step, states, tasks, artifacts, the gate's own arithmetic
    waiting         between due and the flow's first process: the worker's poll and what no watched process covers
    bookkeeping     our runner: fingerprints over code and inputs, locks, reports

At every instant the time belongs to what began last. `share` is what is not stages. The last line is one JSON object.
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
    parser.add_argument("--plain", action="store_true", help="without Prefect")
    parser.add_argument("--keep", type=Path, default=None, help="folder of the clone and its logs; default: temporary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestration-") as temporary:
        root = args.keep or Path(temporary)
        notes = root / "probe"
        notes.mkdir(parents=True)
        clone = Clone(root / "clone", notes)
        begin, end = plain(clone, args.profile) if args.plain else night(clone, args.profile)
        rows = [tuple(row) for path in notes.glob("*.json") for row in json.loads(path.read_text())]
    seconds = innermost(rows, begin, end)
    wall = end - begin
    if not seconds["stages"]:
        sys.exit("the probe saw no stage at work: nothing was measured")
    print(f"{args.profile}, {'plain' if args.plain else 'under Prefect'}: {wall:.1f} s")
    for what in KINDS:
        print(f"  {what:<16}{seconds[what]:>8.1f} s {seconds[what] / wall:>7.1%}")
    result = {
        "profile": args.profile,
        "prefect": not args.plain,
        "wall": round(wall, 1),
        "seconds": {what: round(value, 1) for what, value in seconds.items()},
        "share": round(1 - seconds["stages"] / wall, 4),
        "aim": AIM,
    }
    print(json.dumps(result))


def plain(clone: Clone, profile: str) -> tuple[float, float]:
    """Run `genevolve evolve`; return its begin and end."""
    begin = time.time()
    clone.run("genevolve", "evolve", "--profile", profile)
    return begin, time.time()


def night(clone: Clone, profile: str) -> tuple[float, float]:
    """Run the deployment `nightly` once on a server of its own; return when it was due and when it had ended."""
    try:
        clone.run("genevolve", "serve", "--no-pages")
        clone.run("genevolve", "deploy")
        deployment = clone.ask(f"deployments/name/{NIGHTLY}")
        parameters = {**deployment["parameters"], "profile": profile, "parent": None}
        run = clone.ask(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        while run["state"]["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            time.sleep(2)
            run = clone.ask(f"flow_runs/{run['id']}")
        if run["state"]["type"] != "COMPLETED":
            sys.exit(f"the night ended as {run['state']['type']}: {run['state']['message']}\n{clone.worker_log()}")
        time.sleep(5)  # its processes write down what they noted as they end
        return tuple(datetime.fromisoformat(run[key]).timestamp() for key in ("expected_start_time", "end_time"))
    finally:
        clone.run("genevolve", "stop")


if __name__ == "__main__":
    main()
