"""Kills: `genevolve evolve` is cut off with SIGKILL in every stage and started again; does it end with the same bytes?

    python -m benchmarks.resume [--profile tiny] [--kills 2] [--wait 0.4 6] [--folder FOLDER]

Two clones of the last commit run the same cycle: one undisturbed, one whose whole process group is killed `kills` times in
every stage, a random while after the stage has begun. Every file of build/, data/ and reports/ is compared but for what
holds times: .done.json notes, latest.json's seconds and memory, and the MLflow database. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TIMES = ("seconds", "peak_memory_mb")


def clone(target: Path) -> Path:
    """Clone the project's last commit."""
    subprocess.run(["git", "clone", "--quiet", str(Path.cwd()), str(target)], check=True)
    return target


def start(folder: Path, profile: str) -> subprocess.Popen[bytes]:
    """Start the cycle in a process group of its own; what it says goes to evolve.log."""
    environment = os.environ | {"PYTHONPATH": f"{folder / 'src'}:{folder}"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "evolve.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "genevolve", "evolve", "--profile", profile],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def running(folder: Path) -> str | None:
    """Return the stage at work: its partial folder lies there and its lock is held."""
    for partial in (folder / "build").rglob(".*.partial"):
        with partial.with_suffix(".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return str(partial.relative_to(folder / "build").with_suffix(""))
    return None


def run_with_kills(
    folder: Path, profile: str, kills: int, wait: tuple[float, float], dice: random.Random
) -> Counter[str]:
    """Run the cycle to its end, killing it `kills` times a stage; return how often each stage was killed."""
    done: Counter[str] = Counter()
    while True:
        process = start(folder, profile)
        while process.poll() is None:
            stage = running(folder)
            if stage is not None and done[stage] < kills:
                time.sleep(dice.uniform(*wait))
                if process.poll() is None and running(folder) == stage:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    done[stage] += 1
                    print(f"killed in {stage} ({done[stage]})", file=sys.stderr, flush=True)
                    break
            time.sleep(0.05)
        else:
            if process.returncode:
                raise SystemExit(f"the killed run ended with {process.returncode}: see {folder / 'evolve.log'}")
            return done


def digests(folder: Path) -> dict[str, str]:
    """Return sha256 by path of everything a cycle leaves, times taken out."""
    found: dict[str, str] = {}
    for path in sorted(p for top in ("build", "data", "reports") for p in (folder / top).rglob("*") if p.is_file()):
        if path.name.startswith("."):
            continue
        data = path.read_bytes()
        if path.name == "latest.json":
            data = json.dumps({k: v for k, v in json.loads(data).items() if k not in TIMES}).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--kills", type=int, default=2, help="per stage")
    parser.add_argument(
        "--wait", type=float, nargs=2, default=(0.4, 6.0), help="seconds from a stage's start to the kill"
    )
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the two clones go; default: a temporary folder"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    root = args.folder or Path(tempfile.mkdtemp(prefix="resume-"))
    whole, killed = clone(root / "whole"), clone(root / "killed")
    if start(whole, args.profile).wait():
        raise SystemExit(f"the undisturbed run failed: see {whole / 'evolve.log'}")
    done = run_with_kills(killed, args.profile, args.kills, tuple(args.wait), random.Random(args.seed))
    a, b = digests(whole), digests(killed)
    differing = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    print(json.dumps({"kills": done, "files": len(a), "differing": differing, "same_bytes": not differing}))


if __name__ == "__main__":
    main()
