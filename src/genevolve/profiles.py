"""Profiles: read one from `params.yaml`, merge what it extends, apply overrides, check it; every fault is one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from genevolve.errors import SettingsError
from genevolve.settings import OF_COMMANDS, Settings, silent_fields

DEFAULT = "embedded"
BUDGET_VARIABLE = "GENEVOLVE_BUDGET"
"""Dollars that the command may spend, told to the stages it runs: a recipe does not say (`settings.OF_COMMANDS`)."""


def load(
    profile: str | None = None,
    *,
    seed: int | None = None,
    overrides: Iterable[str] = (),
    recipe: Mapping[str, Any] | None = None,
    path: str | Path = "params.yaml",
) -> Settings:
    """Return the checked settings of a profile.

    `profile` defaults to $GENEVOLVE_PROFILE, then `embedded`. Later wins: the profile, a cycle's pinned `recipe`
    (sections; with it, the budget of the command that runs the cycle), `overrides` of the form "section.key=value" (value
    in YAML), `seed` (seeds.run_seed). Raises SettingsError (exit code 2) with one sentence.
    """
    name = profile or os.environ.get("GENEVOLVE_PROFILE") or DEFAULT
    values = _merged(read_yaml(path), name, path, ())
    for section, pinned in (recipe or {}).items():
        # what a recipe leaves out at its default must not be read as the profile's value, which may be another
        kept = {k: v for k, v in values.get(section, {}).items() if k not in silent_fields(section)}
        own = {k: v for k, v in pinned.items() if k not in OF_COMMANDS.get(section, ())}
        values = {**values, section: deep_merge(kept, own)}
    if recipe is not None and (told := os.environ.get(BUDGET_VARIABLE)):
        values = deep_merge(values, {"world": {"budget_usd": told}})
    for text in overrides:
        values = deep_merge(values, _override(text, values))
    if seed is not None:
        values = deep_merge(values, {"seeds": {"run_seed": seed}})
    try:
        return Settings.model_validate({**values, "profile": name})
    except ValidationError as e:
        raise SettingsError(f"{path}, profile '{name}': {_first(e)}") from e


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where there is one: the same values, ten times as fast."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping a YAML file holds; raise SettingsError naming the file and the line of the fault."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = yaml.load(text, Loader=_LOADER)
    except FileNotFoundError as e:
        raise SettingsError(f"{path} is missing here ({Path.cwd()}); run the command in the project's folder") from e
    except OSError as e:
        raise SettingsError(f"{path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise SettingsError(f"{path} is not UTF-8 text") from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{where}: is not YAML ({getattr(e, 'problem', None) or 'cannot be parsed'})") from e
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: holds no mapping at its top")
    return value


def deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` on top; mappings merge, everything else is replaced."""
    out = dict(base)
    for key, value in over.items():
        mine = out.get(key)
        out[key] = deep_merge(mine, value) if isinstance(mine, dict) and isinstance(value, Mapping) else value
    return out


def _merged(profiles: Mapping[str, Any], name: str, path: str | Path, seen: tuple[str, ...]) -> dict[str, Any]:
    values = profiles.get(name)
    if name in seen:
        raise SettingsError(f"{path}, profile '{name}': extends itself")
    if values is None:
        raise SettingsError(f"{path} has no profile '{name}'; it has {', '.join(map(str, profiles))}")
    if not isinstance(values, dict):
        raise SettingsError(f"{path}, profile '{name}': holds no sections")
    parent = values.get("extends")
    own = {k: v for k, v in values.items() if k != "extends"}
    return own if parent is None else deep_merge(_merged(profiles, str(parent), path, (*seen, name)), own)


def _override(text: str, values: Mapping[str, Any]) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    section, dot, field = key.strip().partition(".")
    if not (equals and dot and field):
        raise SettingsError(f"--set {text!r}: write section.key=value, for instance sampling.k=4")
    if section not in values:
        raise SettingsError(f"--set {text!r}: there is no section '{section}'; there are {', '.join(values)}")
    try:
        return {section: {field: yaml.safe_load(value)}}
    except yaml.YAMLError as e:
        raise SettingsError(f"--set {text!r}: the value cannot be read") from e


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(p) for p in first["loc"])
    given = f", not {first['input']!r}" if first["type"] not in ("missing", "extra_forbidden", "value_error") else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    return f"{field + ': ' if field else ''}{message}{given}{more}"
