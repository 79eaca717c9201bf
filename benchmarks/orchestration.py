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
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

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


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return str(held.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--plain", action="store_true", help="without Prefect")
    parser.add_argument("--keep", type=Path, default=None, help="folder of the clone and its logs; default: temporary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orchestration-") as temporary:
        root = args.keep or Path(temporary)
        clone, notes = root / "clone", root / "probe"
        notes.mkdir(parents=True)
        subprocess.run(["git", "clone", "--quiet", str(Path.cwd()), str(clone)], check=True)
        environment = surroundings(clone, notes)
        begin, end = plain(clone, environment, args.profile) if args.plain else night(clone, environment, args.profile)
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


def surroundings(clone: Path, notes: Path) -> dict[str, str]:
    """Return the environment of all that runs in the clone."""
    path = [clone / "benchmarks" / "probe", clone / "src", clone]
    strange = ("PREFECT_API", "MLFLOW_TRACKING", "GENEVOLVE_")
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(strange)},
        "GENEVOLVE_PREFECT_PORT": free_port(),
        "GENEVOLVE_MLFLOW_PORT": free_port(),
        "GENEVOLVE_PROBE": str(notes),
        "PREFECT_PROFILES_PATH": str(clone / ".genevolve" / "profiles.toml"),
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }


def plain(clone: Path, environment: dict[str, str], profile: str) -> tuple[float, float]:
    """Run `genevolve evolve`; return its begin and end."""
    begin = time.time()
    genevolve(clone, environment, "evolve", "--profile", profile)
    return begin, time.time()


def night(clone: Path, environment: dict[str, str], profile: str) -> tuple[float, float]:
    """Run the deployment `nightly` once on a server of its own; return when it was due and when it had ended."""
    from genevolve.operations.addresses import call

    api = f"http://127.0.0.1:{environment['GENEVOLVE_PREFECT_PORT']}/api"
    try:
        genevolve(clone, environment, "serve", "--no-pages")
        genevolve(clone, environment, "deploy")
        deployment = call(f"{api}/deployments/name/evolution-cycle/nightly")
        parameters = {**deployment["parameters"], "profile": profile, "parent": None}
        run = call(f"{api}/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        while run["state"]["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            time.sleep(2)
            run = call(f"{api}/flow_runs/{run['id']}") or run
        if run["state"]["type"] != "COMPLETED":
            log = next((clone / ".genevolve" / "logs").glob("worker*.log")).read_text(errors="replace")
            sys.exit(f"the night ended as {run['state']['type']}: {run['state']['message']}\n{log[-3000:]}")
        time.sleep(5)  # its processes write down what they noted as they end
        return tuple(datetime.fromisoformat(run[key]).timestamp() for key in ("expected_start_time", "end_time"))
    finally:
        genevolve(clone, environment, "stop")


def genevolve(clone: Path, environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "genevolve", *arguments]
    done = subprocess.run(command, cwd=clone, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"genevolve {' '.join(arguments)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
