"""`genevolve status`: how the project does on this machine, in ten lines, whatever is missing or down; nothing is changed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from genevolve import store
from genevolve.doctor.machine import NEEDED_GB
from genevolve.errors import GenEvolveError
from genevolve.operations import FOLDER, journal
from genevolve.operations.addresses import call, mlflow_ui, mlflow_version, prefect_api, prefect_version
from genevolve.operations.journal import Night
from genevolve.operations.spend import ledgers, lines
from genevolve.tracking import FOLDER as MLRUNS

NIGHTS, LOOK_BACK = 3, 100
"""How many are shown, and how many are asked for the last that was not skipped."""
NIGHTLY, GPU_STAGE = "evolution-cycle/nightly", "gpu-stage/gpu-stage"
PLACES = ("build", ".dvc/cache", "campaigns", "mlruns", ".cache")


@dataclass
class Report:
    """The lines, and what a human should do."""

    lines: list[str] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)

    def say(self, what: str, text: str) -> None:
        self.lines.append(f"{what:<12} {text}")


def status(line: str = "", folder: Path = FOLDER) -> list[str]:
    """Return the lines for a line of cycles ("": the project's own)."""
    report = Report()
    nights = journal.last_nights(line, NIGHTS, folder)
    report.say("champion", _champion(report, line))
    _nights(report, nights)
    _failed(report, nights, line, folder)
    _now(report, line, folder)
    _next(report)
    _disk(report)
    report.say("paid calls", _paid())
    report.say("needs you", "; ".join(report.todo) or "nothing")
    return report.lines


def _champion(report: Report, line: str) -> str:
    if not store.exists(MLRUNS):  # looking would create it
        return "none: no cycle has run here"
    from genevolve.tracking import MlflowTracker

    try:
        track = MlflowTracker()
        cycle = track.champion(line)
        if cycle is None:
            return "none yet: no policy has passed the gate"
        score = track.champion_score(line)
        moves = track.moves(line)
    except Exception as error:  # a locked or damaged database, in MLflow's many words for it
        report.todo.append(f"see that {store.name(MLRUNS)} can be read, or no night will run: locked, damaged, away?")
        return f"unknown: {store.name(MLRUNS)} cannot be read ({type(error).__name__})"
    kscore = "" if score is None else f", KScore {score:.4f} on the report half"
    since = _since(cycle, moves, line)
    return f"{cycle}{kscore}{f', since {since}' if since else ''}"


def _since(cycle: str, moves: list[dict[str, str]], line: str) -> str:
    """Return when the champion became champion: by the log of its moves, else by the night that promoted it."""
    if moves:
        return _day(datetime.fromisoformat(moves[-1]["time"]))
    nights = journal.last_nights(line, 10_000)
    own = (n for n in nights if n.outcome == "promoted" and n.cycle == cycle.rpartition("/")[2])
    return next((_day(n.ended) for n in own), "")


def _nights(report: Report, nights: list[Night]) -> None:
    for i, night in enumerate(nights):
        report.say("last nights" if i == 0 else "", f"{_day(night.began)}  {_outcome(night)}")
    if not nights:
        report.say("last nights", "none")


def _failed(report: Report, nights: list[Night], line: str, folder: Path) -> None:
    """Name a failure of the last night that ran: one that was skipped has mended nothing."""
    last = next((n for n in journal.last_nights(line, LOOK_BACK, folder) if n.outcome != "skipped"), None)
    if last is None or last.outcome != "failed":
        return
    after = "" if last == nights[0] else f" ({_day(last.began)}: {_short(last.said)}), and none has run since"
    report.todo.append(
        f"the last night failed{after}; what it says tells what to mend, and the next one goes on from there"
    )


def _outcome(night: Night) -> str:
    if night.outcome in ("promoted", "not promoted") and night.after is not None:
        low, high = night.ci or (0.0, 0.0)
        change = f", {night.diff:+.4f} [{low:+.4f}, {high:+.4f}]" if night.diff is not None else ""
        minutes = (night.ended - night.began).total_seconds() / 60
        return f"{night.cycle} {night.outcome}: KScore {night.after:.4f}{change}, {minutes:.0f} min"
    return f"{night.outcome}{f': {_short(night.said)}' if night.said else ''}"


def _now(report: Report, line: str, folder: Path) -> None:
    holder = journal.holder(line, folder)
    if journal.is_running(line, folder):
        since = f" since {_day(holder.began)}, process {holder.pid}" if holder else ""
        report.say("now", f"a cycle is running{since}")
    elif holder is not None:
        report.say("now", f"nothing is running; the cycle of {_day(holder.began)} was cut off")
        report.todo.append("a cycle was cut off: the same command, or the next night, goes on from there")
    else:
        report.say("now", "nothing is running")


def _next(report: Report) -> None:
    api = prefect_api()
    version = prefect_version(api)
    pages = mlflow_ui() if mlflow_version(mlflow_ui()) else "down"
    if version is None:
        report.say("next run", f"none: no Prefect server answers at {api}")
        report.say("servers", f"Prefect down, MLflow {pages}")
        report.todo.append("`make serve`, or no night will run")
        return
    report.say("next run", _scheduled(report, api))
    report.say("servers", f"Prefect {api.removesuffix('/api')}, MLflow {pages}")


def _scheduled(report: Report, api: str) -> str:
    deployment = call(f"{api}/deployments/name/{NIGHTLY}")
    if not isinstance(deployment, dict):
        report.todo.append("`make deploy`, or no night will run")
        return f"none: {NIGHTLY} is not deployed"
    pool = str(deployment.get("work_pool_name"))
    if not _served(api, pool):
        report.todo.append(f"no worker serves the pool {pool}: `make serve`")
    if deployment.get("parameters", {}).get("gpu"):
        _gpu_worker(report, api)
    if deployment.get("paused") or not any(s.get("active") for s in deployment.get("schedules", [])):
        report.todo.append(f"the schedule of {NIGHTLY} is off")
        return f"none: the schedule of {NIGHTLY} is off"
    wanted = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
        "limit": 1,
    }
    runs = call(f"{api}/flow_runs/filter", wanted)
    if not runs:
        return "not planned yet; the server plans within a minute"
    return f"{_day(datetime.fromisoformat(runs[0]['expected_start_time']))} ({NIGHTLY})"


def _served(api: str, pool: str) -> bool:
    """Say whether a worker of a pool is online."""
    return bool(call(f"{api}/work_pools/{pool}/workers/filter", {"workers": {"status": {"any_": ["ONLINE"]}}}))


def _gpu_worker(report: Report, api: str) -> None:
    """See that somebody takes the stage that the nights hand over."""
    handed = call(f"{api}/deployments/name/{GPU_STAGE}")
    pool = str(handed.get("work_pool_name")) if isinstance(handed, dict) else "gpu-process-pool"
    if not _served(api, pool):
        report.todo.append(
            f"the nights hand their training to the pool {pool}, which no worker serves: "
            f"`make serve POOL={pool}` on the GPU machine"
        )


def _disk(report: Report) -> None:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    sizes = [(place, _size(Path(place))) for place in PLACES]
    used = ", ".join(f"{place} {size / 2**30:.1f}" for place, size in sizes if size)
    report.say("disk", f"{free:.1f} GB free{f'; here, in GB: {used}' if used else ''}")
    if free < NEEDED_GB:
        report.todo.append(f"make room (`genevolve gc`): a cycle may need {NEEDED_GB:.0f} GB")


def _size(folder: Path) -> int:
    """Return the bytes of the files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


def _paid() -> str:
    """Return what the ledgers of paid calls hold and what they cost; `genevolve spend` has the table."""
    try:
        found = lines(ledgers())
    except GenEvolveError as error:
        return str(error)
    calls, cached, cost = sum(x.calls for x in found), sum(x.cached for x in found), sum(x.dollars for x in found)
    return f"{calls} made, {cached} from the cache, ${cost:.2f}" if found else "none"


def _day(when: datetime) -> str:
    return f"{when.astimezone():%Y-%m-%d %H:%M}"


def _short(text: str) -> str:
    return text if len(text) <= 140 else f"{text[:139]}…"
