"""How many processes may write into MLflow's books at once, in SQLite and in a team's PostgreSQL?

    python -m benchmarks.books [--writers 1 4 8 16] [--rounds 30]

Each writer is a process that writes what MLflow is told of a stage: a run of its own, a metric at a time and a batch of a curve.
SQLite in a temporary folder; PostgreSQL, too, where $MLFLOW_TRACKING_URI names one (an experiment of its own, left there).
A line per number of writers: rounds a second, the slowest round, and how many failed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from genevolve import store
from genevolve.tracking import MlflowTracker, init_db


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write is not None:
        print(json.dumps(write(args.write, args.rounds)))
        return
    given = os.environ.get(store.URI) if store.is_shared() else None
    rows = []
    for uri in ("", *([given] if given else [])):
        for writers in args.writers:
            rows.append(measure(uri, writers, args.rounds))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps(rows))


def measure(uri: str, writers: int, rounds: int) -> dict[str, Any]:
    """Return what so many writers at once came to; `uri` empty: SQLite."""
    with tempfile.TemporaryDirectory(prefix="books-") as folder:
        os.environ[store.URI] = uri or "sqlite:"
        os.environ[store.EXPERIMENT_NAME] = f"books-{os.getpid()}-{writers}"
        os.environ[store.ARTIFACTS] = folder
        init_db(Path(folder))
        command = [sys.executable, "-m", "benchmarks.books", "--rounds", str(rounds), "--write", folder]
        pipes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(writers)
        ]
        for process in pipes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        begin = time.monotonic()
        for process in pipes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [json.loads(process.communicate()[0]) for process in pipes]
        seconds = time.monotonic() - begin
    return {
        "books": "PostgreSQL" if uri else "SQLite",
        "writers": writers,
        "rounds_a_second": round(sum(s["done"] for s in said) / seconds, 1),
        "slowest_s": max(s["slowest"] for s in said),
        "failed": sum(s["failed"] for s in said),
        "said": next((s["said"] for s in said if s["said"]), ""),
    }


def write(folder: Path, rounds: int) -> dict[str, Any]:
    """Write so many rounds, once told to; return how many, the slowest one's seconds, and how many failed."""
    track, done, failed, slowest, said = MlflowTracker(folder), 0, 0, 0.0, ""
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(rounds):
        begin = time.monotonic()
        try:
            with track.stage(f"round {number}", {"number": number}):
                for name in "abcd":
                    track.log_metrics({name: number})
                track.log_curve([{"step": step, "reward": 0.5, "loss": 0.1} for step in range(50)])
            done += 1
        except Exception as error:
            failed, said = failed + 1, " ".join(str(error).split())[:120]
        slowest = max(slowest, time.monotonic() - begin)
    return {"done": done, "failed": failed, "slowest": round(slowest, 2), "said": said}


if __name__ == "__main__":
    main()
