"""What a profile needs: its base, its data, its services, its models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from genevolve.doctor.finding import Finding
from genevolve.errors import GenEvolveError, SettingsError
from genevolve.profiles import load
from genevolve.settings import Settings


def look(profile: str | None, overrides: Sequence[str]) -> Iterator[Finding]:
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
    from genevolve.render import ready

    for what, ok, said, blocks in ready.look(settings):
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
        found = in_cache(e.embedder_model, "config.json")
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
    from genevolve.services import ready
    from genevolve.services.endpoint import OPENAI_KEY, Endpoint

    what = f"{name} service"
    try:
        endpoint = Endpoint.from_environment(name, key=OPENAI_KEY)
    except SettingsError as e:
        return Finding(what, False, str(e), blocks)
    if not model:
        return Finding(what, False, f"{endpoint.url}, but {setting} is empty", blocks)
    ok, said = ready.look(endpoint, model)
    key = "with a key" if endpoint.key is not None else "without a key"
    price = (
        f"; no price is set: --budget counts nothing for it ({endpoint.variable('USD_IN')})"
        if endpoint.uncounted
        else ""
    )
    return Finding(what, ok, f"{endpoint.url} {said}; model {model}, {key}{price}", blocks)


def in_cache(model: str, file: str) -> bool:
    """Say whether a model, whose `file` is always a part of it, is a folder or lies in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(model).is_dir():
        return (Path(model) / file).is_file()
    try:
        return isinstance(try_to_load_from_cache(model, file), str)
    except ValueError:  # no name that a hub knows
        return False
