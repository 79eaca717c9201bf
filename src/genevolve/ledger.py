"""`cycles.yaml`, the append-only ledger: which cold starts and cycles there are, what each came from, and its pinned recipe.

A recipe holds the values of the sections that a stage depends on, so a changed default never reruns history: it opens a
new entry. dvc.yaml unrolls the ledger with `foreach`.
"""

from __future__ import annotations

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
    """One line of the ledger. A cold start has no parent."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    parent: str | None = None
    profile: str
    recipe: dict[str, Any]


class Ledger(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
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
        for name, entry in ledger.cycles.items():
            if entry.parent not in ledger.cold_starts and entry.parent not in ledger.cycles:
                raise SettingsError(f"{path}: cycle {name} has the parent {entry.parent}, which is not in the ledger")
        return ledger

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        values = self.model_dump(mode="json")
        for entry in values["cold_starts"].values():
            del entry["parent"]
        write_whole(path, HEADER + yaml.safe_dump(values, sort_keys=False, width=120))

    def entry(self, name: str) -> Entry:
        found = self.cycles.get(name) or self.cold_starts.get(name)
        if found is None:
            known = ", ".join([*self.cold_starts, *self.cycles]) or "empty"
            raise SettingsError(f"the ledger has no cycle '{name}' ({known})")
        return found

    def settings(self, name: str, params: str | Path = "params.yaml") -> Settings:
        """Return the settings a cycle was opened with: its profile, under its pinned recipe."""
        entry = self.entry(name)
        return load(entry.profile, recipe=entry.recipe, path=params)

    def root_of(self, name: str) -> str:
        """Return the cold start a cycle descends from."""
        while (parent := self.entry(name).parent) is not None:
            name = parent
        return name

    def open_cycle(self, settings: Settings, parent: str | None = None) -> tuple[Ledger, str]:
        """Return (ledger, cycle id) for a cycle with these settings, appending only what is not there yet.

        `parent` None: the cycle starts from the cold start of these settings (appended if need be), and an equal cycle
        is found again rather than opened twice. A given parent always opens a new cycle.
        """
        starts, cycles = dict(self.cold_starts), dict(self.cycles)
        again = parent is None
        if parent is None:
            start = Entry(profile=settings.profile, recipe=_recipe(settings, COLD_START_SECTIONS))
            parent = _find(starts, start) or _next([*starts, *cycles])
            starts[parent] = start
        else:
            self.entry(parent)
        cycle = Entry(parent=parent, profile=settings.profile, recipe=_recipe(settings, CYCLE_SECTIONS))
        name = (_find(cycles, cycle) if again else None) or _next([*starts, *cycles])
        cycles[name] = cycle
        return Ledger(cold_starts=starts, cycles=cycles), name


def _recipe(settings: Settings, sections: tuple[str, ...]) -> dict[str, Any]:
    return {**settings.section_values(*sections), "seeds": {"run_seed": settings.seeds.run_seed}}


def _find(entries: Mapping[str, Entry], wanted: Entry) -> str | None:
    return next((name for name, entry in entries.items() if entry == wanted), None)


def _next(names: list[str]) -> str:
    return f"c{max((int(name[1:]) for name in names), default=-1) + 1:03d}"
