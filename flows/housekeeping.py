"""`genevolve gc`: what retention does not keep, out of stage folders, registry, DVC's cache and the logs of runs."""

from __future__ import annotations

import sys
from pathlib import Path

from flows import dvc
from flows.plain import task
from genevolve.errors import GenEvolveError
from genevolve.housekeeping import Gone, dropped_objects, everything, kept, plan, remove, size_mb
from genevolve.operations import FOLDER, journal
from genevolve.settings import Settings
from genevolve.tracking import Tracker
from genevolve.workspace import Workspace


def to_go(
    workspace: Workspace, settings: Settings, track: Tracker, use_dvc: bool, strays: bool = True
) -> tuple[list[Gone], str]:
    """Return what may go and, where DVC's cache is not ours alone, a sentence that says why it is left out.

    Without `strays` that cache is looked at only where some cycle is not kept, or was not once.
    """
    out = plan(workspace, track, settings.retention) + old_logs(settings.retention.cycles)
    if not use_dvc:
        return out, ""
    dropped = set(everything(workspace)) - kept(workspace, track, settings.retention)
    if not (dropped or strays):
        return out, ""
    cache = dvc.cache()
    if not cache.resolve().is_relative_to(Path.cwd().resolve()):
        return out, f"DVC's cache {cache} lies outside this project, and others may use it: it is left as it is"
    tracked = [p for folder in (Path(), workspace.campaign("")) for p in sorted(folder.glob("*.dvc")) if p.is_file()]
    return out + dropped_objects(Path("dvc.lock"), cache, dropped, tracked), ""


def old_logs(keep: int, folder: Path = FOLDER) -> list[Gone]:
    """Return the logs of runs that are older than the last `keep` nights of every line; all stay where none of those has one."""
    logs = {log.stem.removeprefix("run-"): log for log in sorted((folder / "logs").glob("run-*.log"))}
    recent = journal.runs(folder, keep)
    oldest = min((log.stat().st_mtime for run, log in logs.items() if run in recent), default=0.0)
    old = [log for run, log in logs.items() if run not in recent and log.stat().st_mtime < oldest]
    return [Gone(log, size_mb(log), f"log of a run before the last {keep} nights") for log in old]


@task(name="collect-garbage")
def collect_garbage(
    workspace: Workspace, settings: Settings, track: Tracker, use_dvc: bool, strays: bool = True
) -> float:
    """Remove what may go; return the MB listed. With DVC and `strays` also all in its cache that no branch, tag or file of
    the working tree refers to, older versions of the user's own data included."""
    gone, foreign = to_go(workspace, settings, track, use_dvc, strays)
    removed = remove(gone)
    if use_dvc and strays and not foreign:
        dvc.collect()
    return removed


def tidy(workspace: Workspace, settings: Settings, track: Tracker, use_dvc: bool) -> None:
    """Remove after a night what retention does not keep of nights, and nothing else; a night that went well stays so."""
    try:
        removed = collect_garbage(workspace, settings, track, use_dvc, strays=False)
        print(f"housekeeping: removed {removed:.1f} MB", file=sys.stderr)
    except (GenEvolveError, OSError) as error:
        print(f"housekeeping: {error}", file=sys.stderr)
