"""What may go and what must stay: retention of cycles, of registered policies and of DVC's copies, and room for a night.

Nothing here deletes but `remove`. What the lineage of the champion, or of the champion before, needs is never listed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve.errors import StageError
from genevolve.ledger import Ledger
from genevolve.profiles import read_yaml
from genevolve.settings import Retention
from genevolve.tracking import Tracker
from genevolve.workspace import Workspace

ARCHIVE = "until-{}.yaml"
"""Name of an archived ledger below campaigns/, after the root that took its place."""

BESIDE = (Path(".dvc/cache"), Path("mlruns"))
"""What a night fills beside the folders of its stages."""
GC = "`genevolve gc` says what can go, `genevolve gc --yes` removes it"


@dataclass(frozen=True)
class Gone:
    """One thing that may go."""

    path: Path
    mb: float
    why: str

    def line(self) -> str:
        return f"{self.mb:9.1f} MB  {self.path}  ({self.why})"


def everything(workspace: Workspace) -> dict[str, Ledger]:
    """Return id -> the ledger that names it, archived ledgers included; of two, the newer."""
    folder = workspace.campaign("")
    ledgers = [Ledger.read(p) for p in sorted(folder.glob(ARCHIVE.format("*")), key=lambda p: _number(p.stem[6:]))]
    return {name: ledger for ledger in [*ledgers, Ledger.read(workspace.ledger)] for name in ledger.names()}


def kept(workspace: Workspace, track: Tracker, retention: Retention) -> set[str]:
    """Return the ids that stay: lineages of champion and previous champion, and the last cycles with theirs.

    Of the last cycles the night before each stays, too: it is an input of theirs. Raises StageError where nobody can say
    who is champion.
    """
    known = everything(workspace)
    cycles = sorted((n for n, ledger in known.items() if n in ledger.cycles), key=_number)
    recent = cycles[-retention.cycles :]
    roots = [*recent, *(str(known[c].entry(c).after) for c in recent)]
    titles = [track.champion(workspace.line), track.previous(workspace.line)]
    if not any(titles) and any(was_promoted(workspace, c) for c in cycles):
        raise StageError(
            "the registry names no champion, though the gate let one through: nothing is removed without it"
        )
    current = Ledger.read(workspace.ledger)
    for title in titles:
        name = title.rpartition("/")[2] if title else ""
        roots += [n for n in (name, current.here(name)) if n in known]
    return {ancestor for name in roots for ancestor in known[name].lineage(name)}


def was_promoted(workspace: Workspace, cycle: str) -> bool:
    """Say whether a cycle's gate made its policy champion; one that was cut off behind its decision has not yet."""
    path = workspace.report(cycle, "gate")
    note = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return bool(note.get("promoted") and note.get("done", True))


def plan(workspace: Workspace, track: Tracker, retention: Retention) -> list[Gone]:
    """Return the stage folders and the registry's copies of cycles that are not kept."""
    stay, known = kept(workspace, track, retention), everything(workspace)
    out = []
    for name in sorted(set(known) - stay, key=_number):
        folder = workspace.root / name
        if folder.is_dir():
            out.append(Gone(folder, size_mb(folder), _why(name, known[name])))
    titles = {workspace.title(name): name for name in known}
    for version, title, folder in track.policies():
        if title in titles and titles[title] not in stay and folder.is_dir():
            out.append(Gone(folder, size_mb(folder), f"registered version {version} of {title}"))
    return out


def _why(name: str, ledger: Ledger) -> str:
    kind = "cycle" if name in ledger.cycles else "cold start" if name in ledger.cold_starts else "root"
    return f"{kind}, in no champion's lineage and not among the last"


def dropped_objects(lock: Path, cache: Path, dropped: Iterable[str], tracked: Sequence[Path]) -> list[Gone]:
    """Return the objects of DVC's cache that outputs of dropped cycles name and nothing else does.

    `lock`: dvc.lock; `tracked`: the .dvc files, whose data stay. An object that any other stage names stays, too; of what
    nobody names nothing is listed (that is `dvc gc`'s).
    """
    gone, stages = set(dropped), read_yaml(lock).get("stages", {}) if lock.exists() else {}
    named: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for title, stage in stages.items():
        cycle = str(title).rpartition("@")[2]
        for out in stage.get("outs", ()):
            named[cycle in gone].update(dict.fromkeys(_objects(out, cache), str(title)))
    for path in tracked:
        for out in read_yaml(path).get("outs", ()):
            named[False].update(dict.fromkeys(_objects(out, cache), str(path)))
    found = []
    for md5, title in sorted(named[True].items()):
        path = _object(cache, md5)
        if md5 not in named[False] and path.exists():
            found.append(Gone(path, path.stat().st_size / 2**20, f"DVC's copy, {title}"))
    return found


def _objects(out: Mapping[str, Any], cache: Path) -> set[str]:
    """Return the hashes of an output: its own and, of a folder, those of its files."""
    md5 = str(out.get("md5", ""))
    if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
        return set()
    listed = _object(cache, md5)
    if not md5.endswith(".dir") or not listed.exists():
        return {md5}
    return {md5, *(str(row["md5"]) for row in json.loads(listed.read_text(encoding="utf-8")))}


def _object(cache: Path, md5: str) -> Path:
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def remove(gone: Iterable[Gone]) -> float:
    """Delete what a plan lists; return the megabytes."""
    total = 0.0
    for item in gone:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.chmod(0o644)  # DVC writes its objects read-only
            item.path.unlink()
        total += item.mb
    return total


def size_mb(path: Path) -> float:
    """Return what a folder or file holds, in MB of 2^20 bytes."""
    total = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(FileNotFoundError):  # of another run, gone meanwhile
            total += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
    return total / 2**20


def room(workspace: Workspace, retention: Retention, copies: int) -> None:
    """Raise StageError where the disk, or `retention.budget_gb` of it, does not hold another night: the largest of the last
    ones, `copies` times, and on the disk `retention.free_gb` beyond it."""
    cycles = sorted(Ledger.read(workspace.ledger).cycles, key=_number)[-3:]
    largest = max((size_mb(workspace.root / c) for c in cycles if (workspace.root / c).is_dir()), default=0.0)
    needed = largest * copies / 1024 + retention.free_gb
    place = next(p for p in (workspace.root, *workspace.root.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    if free < needed:
        raise StageError(
            f"a night needs {needed:.1f} GB of disk ({largest * copies / 1024:.1f} for itself and retention.free_gb beyond) "
            f"and {free:.1f} are free: {GC}"
        )
    if not retention.budget_gb:
        return
    used = sum(size_mb(p) for p in (workspace.root, *BESIDE) if p.exists()) / 1024
    if retention.budget_gb < used + largest * copies / 1024:
        raise StageError(
            f"a night needs {largest * copies / 1024:.1f} GB and {used:.1f} of the {retention.budget_gb:.1f} GB of "
            f"retention.budget_gb are used: {GC}, or raise it"
        )


def _number(name: str) -> int:
    return int(name[1:])
