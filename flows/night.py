"""How a night begins: is there room, is it time for a new campaign, is last night's to be gone on with, from whom?"""

from __future__ import annotations

import shutil

from flows import dvc
from flows.gate import published
from flows.plain import task
from flows.stages import RETRIES
from genevolve.errors import SettingsError, StageError
from genevolve.files import write_whole
from genevolve.housekeeping import ARCHIVE, room, was_promoted
from genevolve.ledger import Ledger
from genevolve.records import write_jsonl
from genevolve.settings import Settings
from genevolve.tracking import NullTracker, Tracker
from genevolve.workspace import Workspace


@task(name="open-cycle", **RETRIES)
def open_cycle(settings: Settings, workspace: Workspace, parent: str | None, track: Tracker, use_dvc: bool) -> str:
    """Return the id of the cycle to run, appended to the ledger where it is not there yet.

    `parent` None: the cycle of these settings' own cold start. Otherwise a night from that cycle or from "champion" (from
    the cold start where nobody is champion yet): the last one, if it was the same and never came to its end, else a new
    one. It goes on from the memory and records of the line's latest night that trained. Raises StageError where the disk
    has no room for it.
    """
    ledger = Ledger.read(workspace.ledger)
    if parent is None:
        longer, cycle = ledger.open_cycle(settings)
    else:
        room(workspace, settings.retention, copies=2 if use_dvc else 1)
        longer, cycle = _open_night(settings, workspace, ledger, parent, track)
        full = 0 < settings.cycle.campaign <= len(ledger.cycles)
        if full and cycle not in ledger.cycles and parent == "champion" and track.champion(workspace.line):
            start_campaign(workspace, track, settings, use_dvc)
            longer, cycle = _open_night(settings, workspace, Ledger.read(workspace.ledger), parent, track)
    if not workspace.ledger.exists() or workspace.ledger.read_text(encoding="utf-8") != longer.text():
        longer.write(workspace.ledger)
    return cycle


def _open_night(
    settings: Settings, workspace: Workspace, ledger: Ledger, parent: str, track: Tracker
) -> tuple[Ledger, str]:
    if parent != "champion":
        name: str | None = parent
    elif champion := track.champion(workspace.line):
        name = ledger.here(champion.rpartition("/")[2])
        if name is None:
            raise SettingsError(
                f"the champion {champion} is not in {workspace.ledger}: say which cycle to go on from (--parent cNNN), or "
                "make one of this ledger champion (genevolve promote cNNN --reason ...)"
            )
    else:
        promoted = [*ledger.roots, *(c for c in ledger.cycles if was_promoted(workspace, c))]
        longer, first = ledger.open_cycle(settings)
        came_with_git = promoted == [first] and not _was_here(workspace, first, track)
        if promoted and not came_with_git and not isinstance(track, NullTracker):
            lost = promoted[-1]
            raise SettingsError(
                f"the registry names no champion, though the gate made {lost} one: bring mlruns/mlflow.db back, make a "
                f"champion here (`make evolve`), or say which cycle to go on from (--parent {lost})"
            )
        ledger = longer
        if came_with_git or not published(workspace, first):
            return ledger, first
        name = ledger.entry(first).parent
    assert name is not None
    ledger.entry(name)
    for last in ledger.line(name)[-1:]:
        if not published(workspace, last) and _same(ledger, last, settings, name, parent):
            return ledger, last
    after = latest(workspace, ledger, name)
    return ledger.open_night(settings, name, after)


def _was_here(workspace: Workspace, cycle: str, track: Tracker) -> bool:
    """Say whether a cycle came to its gate on this machine; in a fresh clone there are only the notes that git keeps of it.

    A policy of it lies here and these books never heard of the cycle: they are not the books of the time.
    """
    title = workspace.title(cycle)
    known = any(registered == title for _, registered, _ in track.policies())
    return known or (workspace.trained(cycle).is_dir() and not track.knows_cycle(title))


def _same(ledger: Ledger, last: str, settings: Settings, name: str, parent: str) -> bool:
    """Say whether a line's last cycle, which never came to its end, is the night that is asked for: from `name`, or, made
    champion before it was published, itself `name`."""
    if parent != "champion" or last != name:
        return ledger.same_night(last, settings, name)
    before = ledger.entry(last).parent
    assert before is not None
    return ledger.same_night(last, settings, before) or ledger.open_cycle(settings)[1] == last


def latest(workspace: Workspace, ledger: Ledger, name: str) -> str:
    """Return the line's latest cycle whose training ended, promoted or not; `name` itself where there is none."""
    trained = [c for c in ledger.line(name) if (workspace.trained(c) / "memory.jsonl").exists()]
    return trained[-1] if trained else name


def start_campaign(workspace: Workspace, track: Tracker, settings: Settings, use_dvc: bool) -> str:
    """Archive the ledger and begin a new one whose only entry, a root, is the champion; return the root's id.

    The root takes along the champion's policy and what the line's latest night knew: memory, records, fresh requests.
    Killed at any point and started again, it does the same again; the ledger is replaced last. Raises SettingsError
    where there is no champion in the ledger.
    """
    from genevolve.stages.curriculum import FRESH, HISTORY, records_of

    ledger = Ledger.read(workspace.ledger)
    champion = track.champion(workspace.line)
    here = ledger.here(champion.rpartition("/")[2]) if champion else None
    if here is None:
        raise SettingsError(f"a campaign begins with the champion, and {workspace.ledger} has none")
    if here in ledger.roots and not ledger.cycles:
        return here  # it has begun already
    if not workspace.policy(here).is_dir():
        raise StageError(
            f"the champion's policy {workspace.policy(here)} is not here; `dvc checkout` may bring it back"
        )
    newer, root = ledger.new_campaign(here)
    folder = workspace.campaign(root)
    known = workspace.trained(latest(workspace, ledger, here))
    history, fresh = records_of(known, settings.judge.alpha)
    partial = folder.with_name(f".{root}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(workspace.policy(here), partial / "policy")
    if (known / "memory.jsonl").exists():
        shutil.copy(known / "memory.jsonl", partial / "memory.jsonl")
    write_jsonl(partial / HISTORY, history)
    write_jsonl(partial / FRESH, fresh)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    if use_dvc:
        dvc.add(folder)
    write_whole(workspace.campaign(ARCHIVE.format(root)), workspace.ledger.read_text(encoding="utf-8"))
    newer.write(workspace.ledger)
    return root
