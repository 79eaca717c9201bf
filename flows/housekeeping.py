"""`genevolve gc`: what retention does not keep, out of stage folders, registry and DVC's cache."""

from __future__ import annotations

from pathlib import Path

from flows import dvc
from flows.plain import task
from genevolve.housekeeping import Gone, dropped_objects, everything, kept, plan, remove
from genevolve.settings import Settings
from genevolve.tracking import Tracker
from genevolve.workspace import Workspace


def to_go(workspace: Workspace, settings: Settings, track: Tracker, use_dvc: bool) -> tuple[list[Gone], str]:
    """Return what may go and, where DVC's cache is not ours alone, a sentence that says why it is left out."""
    out = plan(workspace, track, settings.retention)
    if not use_dvc:
        return out, ""
    cache = dvc.cache()
    if not cache.resolve().is_relative_to(Path.cwd().resolve()):
        return out, f"DVC's cache {cache} lies outside this project, and others may use it: it is left as it is"
    dropped = set(everything(workspace)) - kept(workspace, track, settings.retention)
    tracked = [p for folder in (Path(), workspace.campaign("")) for p in sorted(folder.glob("*.dvc")) if p.is_file()]
    return out + dropped_objects(Path("dvc.lock"), cache, dropped, tracked), ""


@task(name="collect-garbage")
def collect_garbage(workspace: Workspace, settings: Settings, track: Tracker, use_dvc: bool) -> float:
    """Remove what may go, and with DVC what no branch, tag or file of the working tree refers to; return the MB listed."""
    gone, foreign = to_go(workspace, settings, track, use_dvc)
    removed = remove(gone)
    if use_dvc and not foreign:
        dvc.collect()
    return removed
