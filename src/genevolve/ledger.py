"""`cycles.yaml`, the append-only ledger: which cold starts and cycles there are, what each came from, and its pinned recipe.

A recipe holds the values of the sections that a stage depends on, so a changed default never reruns history: it opens a
new entry. dvc.yaml unrolls the ledger with `foreach`.

A cycle of a cold start stands for itself: equal settings find it again. A night is a further cycle, opened from a parent:
its recipe holds its number, and `after` names the cycle whose memory and records it goes on from. A root is the champion
of an archived ledger, from which a campaign begins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genevolve.errors import SettingsError
from genevolve.files import write_whole
from genevolve.profiles import load, read_yaml
from genevolve.settings import Settings

COLD_START_SECTIONS = ("world", "policy", "sampling", "render", "judge", "cold_start", "bench")
"""What the cold start and its bench depend on, besides the dataset and the run's seed."""
CYCLE_SECTIONS = (*COLD_START_SECTIONS[:-2], "experience", "distill", "bench", "cycle")
"""What a cycle and its bench depend on, besides its parent and the run's seed."""

HEADER = """\
# The ledger of cold starts and cycles: append only, written by `genevolve evolve`, unrolled by dvc.yaml.
# `recipe` pins all values an entry was run with, so that a changed default in params.yaml never reruns history.
"""


class Entry(BaseModel):
    """One line of the ledger. A cold start has no parent, nor has a root."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    parent: str | None = None
    after: str | None = None
    """cycles: whose memory and records the night goes on from, promoted or not; the parent where there was none before"""
    of: str | None = None
    """roots: the cycle of the archived ledger whose policy it is"""
    profile: str
    recipe: dict[str, Any]

    @property
    def night(self) -> int:
        """The night's number; 0 for the cycle of a cold start."""
        return int(self.recipe.get("cycle", {}).get("night", 0))


class Ledger(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    roots: dict[str, Entry] = Field(default_factory=dict)
    cold_starts: dict[str, Entry] = Field(default_factory=dict)
    cycles: dict[str, Entry] = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Return the ledger of a file, an empty one if there is none; raise SettingsError naming what is wrong."""
        if not path.exists():
            return cls()
        try:
            ledger = cls.model_validate(read_yaml(path))
        except ValidationError as e:
            first = e.errors()[0]
            raise SettingsError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
        known = ledger.names()
        for name, entry in ledger.cycles.items():
            for what in ("parent", "after"):
                if (other := getattr(entry, what)) not in known and (what == "parent" or other is not None):
                    raise SettingsError(f"{path}: cycle {name} has the {what} {other}, which is not in the ledger")
        cycles = {n: e if e.after else e.model_copy(update={"after": e.parent}) for n, e in ledger.cycles.items()}
        return ledger.model_copy(update={"cycles": cycles})

    def text(self) -> str:
        """Return the file's text. dvc.yaml needs all three sections, empty or not, and `after` in every cycle."""
        values = {
            section: {name: _plain(entry) for name, entry in getattr(self, section).items()}
            for section in ("roots", "cold_starts", "cycles")
        }
        return HEADER + yaml.safe_dump(values, sort_keys=False, width=120)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        write_whole(path, self.text())

    def names(self) -> list[str]:
        """Return all ids: roots, cold starts, cycles."""
        return [*self.roots, *self.cold_starts, *self.cycles]

    def entry(self, name: str) -> Entry:
        found = self.cycles.get(name) or self.cold_starts.get(name) or self.roots.get(name)
        if found is None:
            known = ", ".join(self.names()) or "empty"
            raise SettingsError(f"the ledger has no cycle '{name}' ({known})")
        return found

    def here(self, name: str) -> str | None:
        """Return the entry that holds a cycle's policy: itself, the root it became, or None where there is neither."""
        if name in self.names():
            return name
        return next((root for root, entry in self.roots.items() if entry.of == name), None)

    def settings(self, name: str, params: str | Path = "params.yaml") -> Settings:
        """Return the settings a cycle was opened with: its profile, under its pinned recipe."""
        entry = self.entry(name)
        return load(entry.profile, recipe=entry.recipe, path=params)

    def root_of(self, name: str) -> str:
        """Return the cold start or root that a cycle descends from."""
        return self.lineage(name)[-1]

    def lineage(self, name: str) -> list[str]:
        """Return a cycle, its parent, and so on to its cold start or root."""
        out = [name]
        while (parent := self.entry(out[-1]).parent) is not None:
            out.append(parent)
        return out

    def digest(self, name: str) -> str:
        """Return a digest of a cycle's entry and those of its lineage: the same id of another ledger has another one."""
        entries = [_plain(self.entry(ancestor)) for ancestor in self.lineage(name)]
        return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]

    def line(self, name: str) -> list[str]:
        """Return the cycles that descend from the same cold start or root as `name`, the oldest first."""
        root = self.root_of(name)
        return [cycle for cycle in self.cycles if self.root_of(cycle) == root]

    def open_cycle(self, settings: Settings) -> tuple[Ledger, str]:
        """Return (ledger, cycle id) for the cycle of these settings' own cold start, appending only what is not there yet.

        An equal cycle is found again rather than opened twice.
        """
        starts = dict(self.cold_starts)
        start = Entry(profile=settings.profile, recipe=_recipe(settings, COLD_START_SECTIONS))
        parent = _find(starts, start) or _next(self.names())
        starts[parent] = start
        cycle = Entry(parent=parent, after=parent, profile=settings.profile, recipe=_recipe(settings, CYCLE_SECTIONS))
        found = next((n for n, e in self.cycles.items() if e == cycle.model_copy(update={"after": e.after})), None)
        name = found or _next([*self.names(), parent])
        cycles = self.cycles if found else {**self.cycles, name: cycle}
        return self.model_copy(update={"cold_starts": starts, "cycles": cycles}), name

    def open_night(self, settings: Settings, parent: str, after: str) -> tuple[Ledger, str]:
        """Return (ledger, cycle id) with one more night from `parent`, going on from the memory and records of `after`."""
        self.entry(parent)
        self.entry(after)
        name = _next(self.names())
        night = settings.model_copy(update={"cycle": settings.cycle.model_copy(update={"night": int(name[1:])})})
        cycle = Entry(parent=parent, after=after, profile=settings.profile, recipe=_recipe(night, CYCLE_SECTIONS))
        return self.model_copy(update={"cycles": {**self.cycles, name: cycle}}), name

    def same_night(self, name: str, settings: Settings, parent: str) -> bool:
        """Say whether a cycle is a night from `parent` with these settings, whatever its number."""
        entry = self.entry(name)
        night = settings.model_copy(update={"cycle": settings.cycle.model_copy(update={"night": entry.night})})
        wanted = (parent, settings.profile, _recipe(night, CYCLE_SECTIONS))
        return bool(entry.night) and (entry.parent, entry.profile, entry.recipe) == wanted

    def new_campaign(self, champion: str) -> tuple[Ledger, str]:
        """Return (ledger, root id) that begins anew with the champion's policy as its only entry."""
        entry = self.entry(champion)
        name = _next(self.names())
        root = Entry(of=entry.of or champion, profile=entry.profile, recipe=entry.recipe)
        return Ledger(roots={name: root}), name


def _recipe(settings: Settings, sections: tuple[str, ...]) -> dict[str, Any]:
    return {**settings.section_values(*sections), "seeds": {"run_seed": settings.seeds.run_seed}}


def _plain(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain values; a null of its recipe is a value, one beside it is not there."""
    values = entry.model_dump(mode="json")
    return {k: v for k, v in values.items() if v is not None}


def _find(entries: Mapping[str, Entry], wanted: Entry) -> str | None:
    return next((name for name, entry in entries.items() if entry == wanted), None)


def _next(names: list[str]) -> str:
    return f"c{max((int(name[1:]) for name in names), default=-1) + 1:03d}"
