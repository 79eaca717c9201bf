"""The arms of an ablation, read from `ablation.yaml`, and the settings each of them runs with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from genevolve.errors import SettingsError
from genevolve.profiles import deep_merge, load, read_yaml
from genevolve.settings import Settings

Sections = dict[str, dict[str, Any]]
"""section -> field -> value, as in params.yaml"""

NAME = r"^[a-z0-9][a-z0-9.+-]*$"
"""Names of arms and benchmarks are part of file names and of MLflow's run names."""
ONE_WORKER: Sections = {"sampling": {"workers": 1}}
"""Arms run side by side, one process each. Always 1, whatever --jobs says: the last bits of a gradient depend on the
number of threads, and so would the results."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Arm(_Part):
    """One line of the table."""

    label: str
    """What a reader is shown."""
    policy: Literal["base", "sft", "evolved"] = "evolved"
    """What is scored: the base as it is, the seed's cold start, or what evolves from that cold start."""
    overrides: Sections = Field(default_factory=dict)
    """What differs from the profile."""
    seeds: int = Field(default=3, ge=1)
    """How many seeds, unless --seeds says."""
    core: bool = False
    """Belongs to the table that answers the question; runs first, and `--arms core` names these."""


class Quick(_Part):
    """What `--quick` runs."""

    arms: tuple[str, ...]
    overrides: Sections = Field(default_factory=dict)


class Table(_Part):
    """The whole of `ablation.yaml`."""

    common: Sections = Field(default_factory=dict)
    """Overrides of every arm, under its own."""
    references: tuple[str, ...] = Field(min_length=1)
    """Arms that differences are taken to; the first one's final validation score is what others have to reach."""
    quick: Quick
    benchmarks: dict[str, Path] = Field(default_factory=dict)
    """Name -> GenEvolve-Data folder whose bench every run's policy plays too, beside that of the dataset it learns from."""
    arms: dict[str, Arm]

    @model_validator(mode="after")
    def _names_are_known(self) -> Table:
        import re

        for name in (*self.arms, *self.benchmarks):
            if not re.match(NAME, name):
                raise ValueError(f"'{name}' needs a name of a-z, 0-9, '.', '+' and '-'")
        for name in (*self.references, *self.quick.arms):
            if name not in self.arms:
                raise ValueError(f"'{name}' is named, but there is no such arm")
        return self

    def select(self, names: str | None) -> dict[str, Arm]:
        """Return the arms of "a,b", of "core", or all, core first; raises SettingsError naming the known ones."""
        core = {name: arm for name, arm in self.arms.items() if arm.core}
        if not names:
            return core | self.arms
        if names == "core":
            return core
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        unknown = [name for name in wanted if name not in self.arms]
        if unknown:
            raise SettingsError(f"there is no arm '{unknown[0]}'; there are {', '.join(self.arms)} (and 'core')")
        return {name: self.arms[name] for name in wanted}


def load_table(path: str | Path = "ablation.yaml") -> Table:
    """Return the checked table; raises SettingsError, one sentence, naming the place of a fault."""
    try:
        return Table.model_validate(read_yaml(path))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingsError(
            f"{path}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from e


def arm_settings(
    table: Table,
    arm: Arm,
    profile: str | None,
    seed: int,
    quick: bool = False,
    params: str | Path = "params.yaml",
) -> Settings:
    """Return the settings of an arm and seed: profile, common, quick, the arm's own, and the common budget of rollouts."""
    shared = deep_merge(_shared(table), table.quick.overrides if quick else {})
    recipe = deep_merge(shared, arm.overrides)
    own = load(profile, seed=seed, recipe=recipe, path=params)
    if arm.policy != "evolved" or recipe == shared:
        return own
    budget = rollouts(load(profile, seed=seed, recipe=shared, path=params))
    if rollouts(own) == budget:
        return own
    return load(profile, seed=seed, recipe=deep_merge(recipe, _split(budget, own)), path=params)


def start_settings(table: Table, profile: str | None, seed: int, params: str | Path = "params.yaml") -> Settings:
    """Return the settings of a seed's cold start, which all its arms share: nothing of an arm, nothing of `--quick`."""
    return load(profile, seed=seed, recipe=_shared(table), path=params)


def _shared(table: Table) -> Sections:
    return deep_merge(table.common, ONE_WORKER)


def rollouts(settings: Settings) -> int:
    """Return how many training rollouts an evolution draws."""
    return settings.sampling.k * settings.cycle.requests_per_step * settings.cycle.steps


def _split(budget: int, own: Settings) -> Mapping[str, Any]:
    """Return steps and requests a step that make K * requests * steps the budget, with steps nearest to the arm's own."""
    k, wanted = own.sampling.k, own.cycle.steps
    fits = [steps for steps in range(1, budget // k + 1) if budget % (k * steps) == 0]
    if not fits:
        raise SettingsError(f"K = {k} does not divide the budget of {budget} rollouts: take another sampling.k")
    steps = min(fits, key=lambda n: (abs(n - wanted), n))
    return {"cycle": {"steps": steps, "requests_per_step": budget // (k * steps)}}
