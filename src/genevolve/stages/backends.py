"""Backends are chosen by name here and nowhere else: a profile's names in, working objects out."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve.errors import SettingsError
from genevolve.render.ready import check_renderer

if TYPE_CHECKING:
    from genevolve.agent.session import Tools
    from genevolve.experience.embed import Embedder
    from genevolve.judge.base import ImageJudge, ProgramJudge
    from genevolve.policy.openai import ServedPolicy
    from genevolve.records import Request
    from genevolve.render.base import Renderer
    from genevolve.services.client import Client
    from genevolve.services.endpoint import Endpoint
    from genevolve.services.patience import Patience
    from genevolve.settings import Settings
    from genevolve.tools.base import ImageSearch, Search
    from genevolve.tools.fetch import Fetcher
    from genevolve.tools.serper import Serper
    from genevolve.tools.world import World

WORLD = "world"
"""Where the dataset folder keeps the embedded world."""
STORE_VARIABLE, STORE = "GENEVOLVE_WEB", ".cache/web"
"""Where paid answers (calls.sqlite) and pictures from the web (images/) lie: beside the stages, for all of them."""
RENDERS = "renders"
"""Below the store: pictures of generators behind HTTP."""
COMMAND_VARIABLE = "GENEVOLVE_COMMAND"
"""Names the command on whose account calls are paid; its child processes inherit it."""


def _missing(what: str, name: str) -> SettingsError:
    return SettingsError(
        f"The {what} '{name}' is not built yet: this version runs the embedded backends (--profile embedded or tiny), "
        "'serper' for search and image search, 'openai' for the policy, and every generator."
    )


def check(settings: Settings) -> None:
    """Raise SettingsError, one sentence, for a backend that this version does not have, before any process starts."""
    wanted = {
        "image judge": (settings.judge.image, "pixels"),
        "program judge": (settings.judge.program, "constraints"),
        "summariser": (settings.experience.summariser, "contrast"),
        "embedder": (settings.experience.embedder, "minilm"),
    }
    for what, (name, built) in wanted.items():
        if name != built:
            raise _missing(what, name)
    if settings.policy.backend == "openai":
        policy_client(settings.world.budget_usd, store())
        command()
    check_renderer(settings)
    if uses_web(settings):
        from genevolve.tools.serper import Service

        Service.from_environment()
        command()


def check_dataset(settings: Settings, dataset: Path, requests: Iterable[Request] = ()) -> None:
    """Raise SettingsError, one sentence, where embedded back ends meet a dataset that is not theirs: an imported one has no
    embedded world, and its requests no scene that an embedded judge could check."""
    needs_world = {
        "world.search": settings.world.search == "embedded",
        "world.image_search": settings.world.image_search == "embedded",
        "judge.program": settings.judge.program == "constraints",
    }
    needs_scene = {"judge.image": settings.judge.image == "pixels", "judge.program": needs_world["judge.program"]}
    imported = (dataset / "requests.jsonl").is_file() and not (dataset / WORLD).is_dir()
    if imported and any(needs_world.values()):
        names = ", ".join(name for name, needed in needs_world.items() if needed)
        raise SettingsError(
            f"{dataset} was imported and has no embedded world: set {names} to services (docs/data.md), or use a built dataset."
        )
    if any(needs_world.values()):
        world(dataset)  # a missing one is told here, in a sentence, and not by a process that cannot start
    bare = next((r.id for r in requests if r.scene is None), None)
    if bare is not None and any(needs_scene.values()):
        names = " and ".join(name for name, needed in needs_scene.items() if needed)
        raise SettingsError(
            f"Request {bare} of {dataset} has no scene, and the embedded judges know no other requests: set {names} to a model."
        )


def uses_web(settings: Settings) -> bool:
    """Return whether a profile asks a search service."""
    return "serper" in (settings.world.search, settings.world.image_search)


def command() -> str:
    """Return the name of this command's account, one for a process and all that it starts from now on."""
    return os.environ.setdefault(COMMAND_VARIABLE, uuid.uuid4().hex)


def store() -> Path:
    """Return the folder of paid answers and downloaded pictures."""
    return Path(os.environ.get(STORE_VARIABLE) or STORE)


@cache
def serper(budget: float, folder: Path) -> Serper:
    """Return the search service of the environment, one for all threads of a process."""
    from genevolve.services.cache import CallCache
    from genevolve.tools.serper import Serper, Service

    return Serper(Service.from_environment(), CallCache(folder / "calls.sqlite"), budget=budget, account=command())


@cache
def client(
    name: str, budget: float, folder: Path, url: str = "", key: str = "", header: str = "authorization"
) -> Client:
    """Return the service that GENEVOLVE_{NAME}_URL and its fellows say (`url`, `key`: see Endpoint), one for a process."""
    from genevolve.services.cache import CallCache
    from genevolve.services.client import Client
    from genevolve.services.endpoint import Endpoint

    endpoint = Endpoint.from_environment(name, url=url, key=key, header=header)
    return Client(endpoint, CallCache(folder / "calls.sqlite"), budget=budget, account=command())


@cache
def policy_client(budget: float, folder: Path) -> Client:
    """Return the policy's server (GENEVOLVE_POLICY_URL), one for a process: asked as much at a time as such servers batch,
    at any rate, and with patience for a long turn among many."""
    from genevolve.services.cache import CallCache
    from genevolve.services.client import Client
    from genevolve.services.endpoint import Endpoint
    from genevolve.services.patience import Patience

    endpoint = Endpoint.from_environment("policy", key="OPENAI_API_KEY", concurrency=256, rate=0)
    patience = Patience(attempts=6, attempt=900, total=3600)
    return Client(endpoint, CallCache(folder / "calls.sqlite"), budget=budget, account=command(), patience=patience)


def make_policy(settings: Settings, policy: Path | None) -> ServedPolicy:
    """Return the policy of a folder as its server plays it; None: whatever is served."""
    from genevolve.policy.openai import ServedPolicy

    return ServedPolicy.connect(policy_client(settings.world.budget_usd, store()), settings.policy.base, policy)


def server_card(settings: Settings) -> Path:
    """Return a policy folder that says which model the policy's server serves now: what `--policy server` names."""
    from genevolve.policy.server import CARDS, write_card

    check(settings)
    return write_card(policy_client(settings.world.budget_usd, store()), settings.policy.base, CARDS)


@cache
def fetcher() -> Fetcher:
    """Return what downloads pictures."""
    from genevolve.tools.fetch import Fetcher

    return Fetcher()


@cache
def world(dataset: Path) -> World:
    """Return the dataset's embedded world, opened once in a process."""
    from genevolve.tools.world import World

    return World.open(dataset / WORLD)


def make_tools(settings: Settings, dataset: Path) -> Tools:
    """Return the three tools of a profile; a removed one refuses every call."""
    from genevolve.agent.session import Tools
    from genevolve.tools.embedded import SkillTexts
    from genevolve.tools.removed import Removed

    gone = settings.sampling.removed_tools
    return Tools(
        Removed() if "search" in gone else _search(settings, dataset),
        Removed() if "image_search" in gone else _image_search(settings, dataset),
        Removed() if "query_knowledge" in gone else SkillTexts(),
        settings.world.top_k,
    )


def _search(settings: Settings, dataset: Path) -> Search:
    if settings.world.search == "serper":
        from genevolve.tools.serper import SerperSearch

        return SerperSearch(serper(settings.world.budget_usd, store()))
    from genevolve.tools.embedded import EmbeddedSearch

    return EmbeddedSearch(world(dataset))


def _image_search(settings: Settings, dataset: Path) -> ImageSearch:
    if settings.world.image_search == "serper":
        from genevolve.tools.serper import SerperImageSearch

        return SerperImageSearch(serper(settings.world.budget_usd, store()), fetcher(), store() / "images")
    from genevolve.tools.embedded import EmbeddedImageSearch

    return EmbeddedImageSearch(world(dataset))


def make_renderer(settings: Settings, device: str = "auto") -> Renderer:
    """Return the generator of a profile; `device` is for those that draw in this process."""
    r = settings.render
    if r.backend == "diffusers":
        from genevolve.render.diffusers import Diffusers

        return Diffusers(r.model, r.text_model, r.size, r.steps, r.true_cfg, device)
    if r.backend == "service":
        from genevolve.render import service

        servers = [_paid_client(e, settings, service.PATIENCE) for e in service.endpoints()]
        folder = store() / RENDERS
        return service.Service(servers, folder, model=r.model, size=r.size, steps=r.steps, true_cfg=r.true_cfg)
    if r.backend == "gemini":
        from genevolve.render import gemini

        api = _paid_client(gemini.endpoint(os.environ), settings, gemini.PATIENCE)
        return gemini.Gemini(api, store() / RENDERS, model=r.model)
    from genevolve.render.compositor import Compositor

    check_renderer(settings)
    return Compositor()


def _paid_client(endpoint: Endpoint, settings: Settings, patience: Patience) -> Client:
    from genevolve.services.cache import CallCache
    from genevolve.services.client import Client

    budget = settings.world.budget_usd
    return Client(endpoint, CallCache(store() / "calls.sqlite"), budget=budget, account=command(), patience=patience)


def make_judges(settings: Settings, dataset: Path) -> tuple[ImageJudge, ProgramJudge]:
    """Return the judge of pictures and the judge of programs."""
    from genevolve.judge.pixels import PixelJudge
    from genevolve.judge.sufficiency import SufficiencyJudge

    entity_of = {file: e.id for file, e in world(dataset).entity_of_file.items()}
    return PixelJudge(), SufficiencyJudge(entity_of)


def make_second_judge(settings: Settings, dataset: Path) -> ImageJudge:
    """Return the judge of pictures that no reward comes from (`bench.rescore`)."""
    from genevolve.judge.second import SecondJudge, references_of

    return SecondJudge(references_of(world(dataset)))


def make_embedder(settings: Settings) -> Embedder:
    """Return the embedder of the experience memory."""
    from genevolve.experience.embed import MiniLMEmbedder

    return MiniLMEmbedder()


def reference_bytes(dataset: Path, file: str) -> bytes:
    """Return a reference picture as the generator takes it: of the web's store, or of the dataset's embedded world."""
    from genevolve.tools.picture import kept
    from genevolve.tools.serper import WEB

    if file.startswith(WEB):
        return kept(file.removeprefix(WEB), store() / "images")
    return world(dataset).image(file).encode()


def system_text(settings: Settings) -> str:
    """Return the system prompt file of a profile, guide mark included; the embedded one names no removed tool."""
    from genevolve.agent.system import load_system

    if settings.policy.backend != "local":
        return load_system("system")
    gone = settings.sampling.removed_tools
    lines = load_system("system_embedded").splitlines()
    return "\n".join(_tool_line(line, gone) if gone and line.startswith("Tools: ") else line for line in lines)


def _tool_line(line: str, gone: tuple[str, ...]) -> str:
    names = line.removeprefix("Tools: ").rstrip(".").split(", ")
    return f"Tools: {', '.join(n for n in names if n not in gone) or 'none'}."
