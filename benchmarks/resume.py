"""Faults: `genevolve evolve` is cut off in every stage and started again; does it end with the same bytes?

    python -m benchmarks.resume [--profile tiny] [--faults 2] [--wait 0.4 6] [--folder FOLDER]
    python -m benchmarks.resume --fault full --folder SMALL_DISK
    python -m benchmarks.resume --profile embedded --faults 1 --wait 5 40 --against CLONE

Two clones of the last commit run the same cycle: one undisturbed, one that meets a fault `faults` times in every stage, a
random while after the stage has begun. `kill`: SIGKILL to its whole process group. `full`: the disk that FOLDER lies on is
filled to its last byte (mount a small one: `mount -t tmpfs -o size=700m tmpfs FOLDER`) until the command has given up; its
last sentence is reported. Every file of build/, data/ and reports/ is compared but for what holds times: .done.json notes,
latest.json's seconds and memory, and the MLflow database. The last line is one JSON object.
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
from pathlib import Path

TIMES = ("seconds", "peak_memory_mb")


def clone(target: Path) -> Path:
    """Clone the project's last commit."""
    subprocess.run(["git", "clone", "--quiet", str(Path.cwd()), str(target)], check=True)
    return target


def start(folder: Path, profile: str, log: Path) -> subprocess.Popen[bytes]:
    """Start the cycle in a process group of its own; what it says goes to `log`, on another disk than a full one."""
    environment = os.environ | {"PYTHONPATH": f"{folder / 'src'}:{folder}"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "genevolve", "evolve", "--profile", profile],
            cwd=folder,
            env=environment,
            stdout=stream,
            stderr=stream,
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


def kill(process: subprocess.Popen[bytes], folder: Path, log: Path) -> str:
    """Kill the whole process group at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "killed"


def fill(process: subprocess.Popen[bytes], folder: Path, log: Path) -> str:
    """Fill the disk, wait until the command gives up, make room again; return its last sentence."""
    ballast = folder.parent / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    stream.write(b"0" * size)
            except OSError:  # this size no longer fits
                continue
    code = process.wait()
    ballast.unlink()
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "genevolve: " in line]
    if code <= 0 or not said:
        raise SystemExit(f"on a full disk the run ended with {code}: see {log}")
    return said[-1]


FAULTS = {"kill": kill, "full": fill}


def run_with_faults(
    folder: Path, profile: str, log: Path, fault: str, faults: int, wait: tuple[float, float], dice: random.Random
) -> dict[str, list[str]]:
    """Run the cycle to its end, with `faults` faults a stage; return what came of each, by stage."""
    met: dict[str, list[str]] = {}
    while True:
        process = start(folder, profile, log)
        while process.poll() is None:
            stage = running(folder)
            if stage is not None and len(met.setdefault(stage, [])) < faults:
                time.sleep(dice.uniform(*wait))
                if process.poll() is None and running(folder) == stage:
                    met[stage].append(FAULTS[fault](process, folder, log))
                    print(f"{stage}: {met[stage][-1]}", file=sys.stderr, flush=True)
                    break
            time.sleep(0.05)
        else:
            if process.returncode:
                raise SystemExit(f"the disturbed run ended with {process.returncode}: see {log}")
            return met


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
    parser.add_argument("--fault", choices=sorted(FAULTS), default="kill")
    parser.add_argument("--faults", type=int, default=2, help="per stage")
    parser.add_argument(
        "--wait", type=float, nargs=2, default=(0.4, 6.0), help="seconds from a stage's start to the fault"
    )
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the two clones go; default: a temporary folder"
    )
    parser.add_argument(
        "--against", type=Path, default=None, help="a clone of the same commit whose cycle has run; default: run one"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the waits")
    args = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="resume-"))
    root = args.folder or logs
    hurt = clone(root / "disturbed")
    whole = args.against or clone(logs / "undisturbed")
    if not args.against and start(whole, args.profile, logs / "undisturbed.log").wait():
        raise SystemExit(f"the undisturbed run failed: see {logs / 'undisturbed.log'}")
    wait, dice = (args.wait[0], args.wait[1]), random.Random(args.seed)
    met = run_with_faults(hurt, args.profile, logs / "disturbed.log", args.fault, args.faults, wait, dice)
    a, b = digests(whole), digests(hurt)
    differing = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    print(json.dumps({"faults": met, "files": len(a), "differing": differing, "same_bytes": not differing}))


if __name__ == "__main__":
    main()
