"""Unattended nights: the schedule runs them, nobody helps; was the champion ever worse, and is it better than the cold start?

    python -m benchmarks.nights [--nights 5] [--every 2] [--profile embedded] [--seed 1] [--keep FOLDER]

A clone of the last commit is served and deployed as a user does it, with a cron of `--every` minutes in its prefect.yaml.
All runs come from Prefect's schedule. A time that falls into a running night is cancelled by Prefect and counted. Once as
many nights as wanted have begun, the schedule is paused; when the last one has ended, everything is stopped and looked for.
The same `--keep` again goes on counting, also after Ctrl-C. It holds `clone/`, `nights.json` and `nights.png`. The last
line is one JSON object; KScores are by half of the bench: the gate decides on `gate` alone, which therefore flatters whom it
picked, and `met` is read on `report`. Exits with 1 where a night was not begun by the schedule or something was left behind.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.clones import NIGHTLY, Clone
from genevolve.files import write_whole
from genevolve.ledger import Ledger
from genevolve.operations.journal import Night, last_nights
from genevolve.profiles import load
from genevolve.tracking import MlflowTracker
from genevolve.workspace import Workspace

HALVES = ("gate", "report", "all")
AIM = 0.05
"""KScore on the report half that the champion should be above the cold start in the end."""
LOOK_EVERY = 5.0
GIVE_UP = 3
"""So many nights that fail or crash one after the other end the benchmark."""
ENDED = ("COMPLETED", "FAILED", "CRASHED")
AT_WORK = ("PENDING", "RUNNING", "CANCELLING")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nights", type=int, default=5)
    parser.add_argument("--every", type=int, default=2, help="minutes between two scheduled times, 1 to 59")
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--seed", type=int, default=1, help="run seed")
    parser.add_argument("--keep", type=Path, default=None, help="folder that stays; given again, it goes on")
    args = parser.parse_args()
    settings = load(args.profile)
    if args.nights > settings.retention.cycles:
        parser.error(f"housekeeping keeps {settings.retention.cycles} nights, and all are read in the end")
    with tempfile.TemporaryDirectory(prefix="nights-") as temporary:
        folder = args.keep or Path(temporary)
        new = not (folder / "clone").exists()
        clone = Clone(folder / "clone")
        other = args.seed != settings.seeds.run_seed
        for note in clone.folder.glob("reports/c*/gate.json") if new and other else ():
            note.unlink()  # came with git: of the default seed's champion, which is not here and is not to begin from
        schedule(clone.folder / "prefect.yaml", args.every, args.profile, args.seed)
        runs: list[dict[str, Any]] = []
        try:
            clone.run("genevolve", "serve")
            bury(clone)
            clone.run("genevolve", "deploy")
            runs = watch(clone, args.nights)
        finally:
            clone.run("genevolve", "stop")
        result = {
            **told(clone.folder, args.profile, runs),
            "seed": args.seed,
            "every": args.every,
            "left": clone.left(),
        }
        publish(result, folder)


def publish(result: dict[str, Any], folder: Path) -> None:
    """Write and print what the nights came to, with the parts of the aim that were met; end with 1 where it proves nothing."""
    result["met"] = met(result)
    write_whole(folder / "nights.json", json.dumps(result, indent=1) + "\n")
    plot(result, folder / "nights.png")
    print(json.dumps(result))
    faults = {"by_schedule": "a night was not begun by the schedule", "nothing_left": "something was left behind"}
    if found := [sentence for part, sentence in faults.items() if not result["met"][part]]:
        sys.exit("; ".join(found))


def met(result: dict[str, Any]) -> dict[str, bool]:
    """Say which parts of the aim were met. The gate half picked the winners: its numbers are too good, and not asked."""
    return {
        "gain": result["gain"]["report"] >= AIM,
        "falls": result["falls"]["report"] == 0,
        "by_schedule": all(night["by_schedule"] for night in result["nights"]),
        "nothing_left": not result["left"],
    }


def schedule(file: Path, minutes: int, profile: str, seed: int) -> None:
    """Write cron, profile and seed of `nightly` into a prefect.yaml, as a user would."""
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    (nightly,) = (d for d in values["deployments"] if d["name"] == NIGHTLY.partition("/")[2])
    nightly["parameters"] |= {"profile": profile, "seed": seed}
    nightly["schedules"] = [{"cron": f"*/{minutes} * * * *", "timezone": "UTC", "active": True}]
    write_whole(file, yaml.safe_dump(values, sort_keys=False))


def bury(clone: Clone) -> None:
    """Tell the server of runs that were at work when this benchmark was killed: nobody else will, and one at a time may run."""
    from genevolve.operations.addresses import call

    for run in found(clone, AT_WORK):
        state = {"state": {"type": "CRASHED", "message": "the benchmark was stopped"}, "force": True}
        call(f"{clone.api}/flow_runs/{run['id']}/set_state", state)


def found(clone: Clone, states: Sequence[str]) -> list[dict[str, Any]]:
    """Return the runs of `nightly` in some states, the first first."""
    wanted = {
        "deployments": {"name": {"any_": [NIGHTLY.partition("/")[2]]}},
        "flow_runs": {"state": {"type": {"any_": list(states)}}},
        "sort": "START_TIME_ASC",
    }
    rows: list[dict[str, Any]] = []
    while page := clone.ask("flow_runs/filter", {**wanted, "offset": len(rows), "limit": 200}):
        rows += page
    return rows


def watch(clone: Clone, nights: int) -> list[dict[str, Any]]:
    """Wait until so many nights have ended; return all runs of `nightly` that are over, the cancelled ones too.

    Crashed ones are none: the next night goes on with them. The schedule is off from the time at which enough have begun.
    """
    active, told_of = True, 0
    while True:
        ended = found(clone, ENDED)
        if [run["state"]["type"] != "COMPLETED" for run in ended[-GIVE_UP:]] == [True] * GIVE_UP:
            print(clone.worker_log(), file=sys.stderr)
            sys.exit(f"the last {GIVE_UP} nights failed: {ended[-1]['state']['message']}")
        over = [run for run in ended if run["state"]["type"] != "CRASHED"]
        for run in over[told_of:]:
            print(f"night {over.index(run) + 1} of {nights}: {run['state']['name']}", file=sys.stderr, flush=True)
        told_of = len(over)
        at_work = found(clone, AT_WORK)
        if len(over) >= nights and not at_work:
            return [*ended, *found(clone, ["CANCELLED"])]
        if (wanted := len(over) + len(at_work) < nights) != active:
            how = "resume" if wanted else "pause"
            clone.run("prefect", "--no-prompt", "deployment", "schedule", how, "--all")
            active = wanted
        time.sleep(LOOK_EVERY)


def told(folder: Path, profile: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the nights of a checkout came to, out of its ledger, reports, journal and registry, and Prefect's runs."""
    with_dvc, place = Workspace.of(profile, None)
    place = Workspace.with_dvc() if with_dvc else Workspace.private(folder / place.root)
    place = Workspace(*(folder / p for p in (place.root, place.dataset, place.ledger, place.reports)), place.line)
    journal = last_nights(place.line, 10_000, folder / ".genevolve")[::-1]
    moves = MlflowTracker(folder / "mlruns").moves(place.line)
    ledger, rows = Ledger.read(place.ledger), []
    for run in (r for r in runs if r["state"]["type"] in ("COMPLETED", "FAILED")):
        begin, end = (datetime.fromisoformat(run[key] or run["end_time"]) for key in ("start_time", "end_time"))
        night = next((n for n in journal if begin <= n.began and n.ended <= end), None)
        if night is None:  # it failed before there was a cycle
            night = Night(line=place.line, began=begin, ended=end, outcome="failed", said=run["state"]["message"] or "")
        before = [move["to"] for move in moves if datetime.fromisoformat(move["time"]) <= end]
        champion = before[-1].rpartition("/")[2] if before else None
        row = {"due": run["expected_start_time"], "by_schedule": run["auto_scheduled"], "seconds": seconds(run)}
        rows.append(row | of_night(night, place, ledger, champion) | work(place, begin.timestamp(), end.timestamp()))
    start = next((ledger.root_of(row["cycle"]) for row in rows if row["cycle"]), None)
    if start is None:
        sys.exit("no night came to its end")
    first = kscores(place, start)
    for row in rows:
        row["kscore"] = kscores(place, row["champion"] or start)
    curve = [first, *(row["kscore"] for row in rows)]
    cancelled = [run["state"]["name"] for run in runs if run["state"]["type"] == "CANCELLED"]
    return {
        "profile": profile,
        "start": start,
        "cold_start": first,
        "nights": rows,
        "promoted": sum(bool(row["promoted"]) for row in rows),
        "gain": {half: round(curve[-1][half] - first[half], 4) for half in HALVES},
        "falls": {half: sum(b[half] < a[half] for a, b in itertools.pairwise(curve)) for half in HALVES},
        "cancelled": cancelled.count("Cancelled"),
        "skipped": cancelled.count("Skipped"),
        "crashed": sum(run["state"]["type"] == "CRASHED" for run in runs),
    }


def seconds(run: dict[str, Any]) -> float:
    return round(float(run["total_run_time"]), 1)


def of_night(night: Night, place: Workspace, ledger: Ledger, champion: str | None) -> dict[str, Any]:
    """Return a night's cycle, its parent, the gate's words, its paired difference to the parent on the report half, and who
    is champion after it (None: nobody yet)."""
    row: dict[str, Any] = {"outcome": night.outcome, "cycle": night.cycle, "champion": champion}
    if not night.cycle:
        return row | {"parent": None, "promoted": False, "gate": night.said, "own": None, "report": None}
    gate = json.loads(place.report(night.cycle, "gate").read_text())
    parent, own = ledger.entry(night.cycle).parent, kscores(place, night.cycle)
    paired = json.loads(place.report(night.cycle, "bench").read_text())["report"]
    report = {key: paired[key] for key in ("n", "diff", "low", "high")}
    return row | {"parent": parent, "promoted": gate["promoted"], "gate": gate["words"], "own": own, "report": report}


def work(place: Workspace, begin: float, end: float) -> dict[str, Any]:
    """Return the stages that ran between two times, with their seconds, and the peak memory of the greediest."""
    known = [*place.root.glob(".*.done.json"), *place.root.glob("*/.*.done.json")]
    notes = [p for p in known if begin <= p.stat().st_mtime <= end]
    done = {str(p.relative_to(place.root)).removesuffix(".done.json"): json.loads(p.read_text()) for p in sorted(notes)}
    stages = {name.replace("/.", "/").lstrip("."): note["seconds"] for name, note in done.items()}
    return {"stages": stages, "peak_memory_mb": max((note["peak_memory_mb"] for note in done.values()), default=None)}


def kscores(place: Workspace, cycle: str) -> dict[str, float]:
    """Return a policy's KScore by half of the bench, a request without a valid program counting 0."""
    scores = json.loads((place.bench(cycle) / "scores.json").read_text())
    known = {half: [v for v in scores[half].values() if v is not None] for half in HALVES}
    return {half: round(sum(values) / len(values), 4) for half, values in known.items()}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the champion's KScore on each half after each night, the cold start as night 0."""
    from matplotlib.figure import Figure

    nights = result["nights"]
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for half, label in (("gate", "gate half"), ("report", "report half (decides nothing)"), ("all", "all requests")):
        points = [result["cold_start"][half], *(night["kscore"][half] for night in nights)]
        axes.plot(range(len(points)), points, marker=".", label=f"champion, {label}")
    for promoted, marker, label in ((True, "^", "night's policy, promoted"), (False, "x", "night's policy, rejected")):
        own = [(i, n["own"]["gate"]) for i, n in enumerate(nights, 1) if n["own"] and n["promoted"] is promoted]
        if own:
            axes.scatter(
                *zip(*own, strict=True), marker=marker, s=60, color="black", label=f"{label} (gate half)", zorder=3
            )
    axes.set_xticks(
        range(len(nights) + 1), [f"cold start\n{result['start']}", *(n["cycle"] or "failed" for n in nights)]
    )
    axes.set_ylabel("KScore")
    axes.set_title(
        f"{len(nights)} nights by the schedule, profile {result['profile']}, seed {result['seed']}", fontsize=10
    )
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
