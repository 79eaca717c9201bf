"""Backends are chosen by name here and nowhere else: a profile's names in, working objects out."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve.errors import SettingsError
from genevolve.profiles import BUDGET_VARIABLE
from genevolve.render.ready import check_renderer
from genevolve.services.cache import CallCache, store

if TYPE_CHECKING:
    from genevolve.agent.session import Tools
    from genevolve.experience.embed import Embedder
    from genevolve.experience.summarise import Summariser
    from genevolve.judge.base import ImageJudge, ProgramJudge
    from genevolve.judge.vlm import Wording
    from genevolve.policy.base import Policy
    from genevolve.policy.openai import ServedPolicy
    from genevolve.policy.pictures import Eyes
    from genevolve.records import Program, Request
    from genevolve.render.base import Renderer
    from genevolve.services.chat import Chat
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
PICTURE = 320
"""Pixels a side of an embedded drawing as a model with eyes is shown it."""
JUDGES = ("pixels", "second", "vlm")
"""The judges of pictures that `genevolve bench --judge` knows."""
RENDERS = "renders"
"""Below the store: pictures of generators behind HTTP."""
COMMAND_VARIABLE = "GENEVOLVE_COMMAND"
"""Names the command on whose account calls are paid; its child processes inherit it."""


def check(settings: Settings) -> None:
    """Raise SettingsError, one sentence, for a backend that is not set up, before any process starts."""
    if settings.policy.backend == "openai":
        policy_client(settings.world.budget_usd, store())
        command()
    skill_folder(settings)
    check_renderer(settings)
    check_judges(settings)
    if uses_web(settings):
        from genevolve.tools.serper import Service

        Service.from_environment()
        command()


def check_dataset(settings: Settings, dataset: Path, requests: Iterable[Request] = ()) -> None:
    """Raise SettingsError, one sentence, where embedded back ends meet a dataset that is not theirs: an imported one has no
    embedded world, and its requests no scene that an embedded judge could check; or another generator's pictures."""
    check_sizes(settings)
    needs_world = {
        "world.search": settings.world.search == "embedded",
        "world.image_search": settings.world.image_search == "embedded",
        "judge.program": settings.judge.program == "constraints",
    }
    imported = (dataset / "requests.jsonl").is_file() and not (dataset / WORLD).is_dir()
    if imported and any(needs_world.values()):
        names = ", ".join(name for name, needed in needs_world.items() if needed)
        raise SettingsError(
            f"{dataset} was imported or made with web search and has no embedded world: set {names} to services (docs/data.md), "
            "or use another dataset."
        )
    if any(needs_world.values()):
        world(dataset)  # a missing one is told here, in a sentence, and not by a process that cannot start
    needs_scene = {"judge.image": settings.judge.image == "pixels", "judge.program": needs_world["judge.program"]}
    _check_scenes([name for name, needed in needs_scene.items() if needed], dataset, requests)


def check_image_judge(settings: Settings, dataset: Path, requests: Iterable[Request]) -> None:
    """Raise SettingsError where the judge of pictures is not set up, or meets pictures or requests that it does not know."""
    check_sizes(settings)
    if settings.judge.image == "vlm":
        make_image_judge("vlm", settings, dataset)
    else:
        _check_scenes(["judge.image"], dataset, requests)


def _check_scenes(embedded: list[str], dataset: Path, requests: Iterable[Request]) -> None:
    """`embedded`: the settings that name an embedded judge."""
    bare = next((r.id for r in requests if r.scene is None), None)
    if bare is not None and embedded:
        raise SettingsError(
            f"Request {bare} of {dataset} has no scene, and the embedded judges know no other requests: set "
            f"{' and '.join(embedded)} to a model."
        )


def check_sizes(settings: Settings) -> None:
    """Raise SettingsError where the pixel judge would be shown pictures that are not of the embedded generator's size."""
    from genevolve.render.style import CANVAS

    r = settings.render
    if settings.judge.image == "pixels" and (r.size != CANVAS or r.backend == "gemini"):
        size = "pictures of Gemini's own sizes" if r.backend == "gemini" else f"{r.size} (render.size)"
        raise SettingsError(
            f"The pixel judge knows the embedded world's pictures of {CANVAS} pixels a side, not {size}: set judge.image to "
            f"vlm (docs/judge.md), or draw with the compositor."
        )


def check_models(settings: Settings) -> None:
    """Raise SettingsError for a judge or summariser whose model, service, key, rubric or prompt is missing, and for a policy
    that could be sampled but not trained."""
    if settings.policy.backend == "openai" and settings.sampling.show_images:
        raise SettingsError(
            "A served policy that is shown pictures is asked in messages, which training cannot use: set sampling.show_images "
            "to 0, or policy.backend to local."
        )
    check_judges(settings)
    if settings.experience.summariser == "openai":
        make_summariser(settings)


def check_judges(settings: Settings) -> None:
    """As `check_models`, for a stage that only plays: a cold start's recipe says nothing of a summariser."""
    if "vlm" in (settings.judge.image, settings.judge.program):
        make_image_judge("vlm", settings, Path())
        _program_wording(settings)


def uses_web(settings: Settings) -> bool:
    """Return whether a profile asks a search service."""
    return "serper" in (settings.world.search, settings.world.image_search)


def command() -> str:
    """Return the name of this command's account, one for a process and all that it starts from now on."""
    return os.environ.setdefault(COMMAND_VARIABLE, uuid.uuid4().hex)


def pay_from(settings: Settings) -> None:
    """Let all that this process runs from now on, child processes too, spend `world.budget_usd` of these settings together."""
    command()
    os.environ[BUDGET_VARIABLE] = repr(settings.world.budget_usd)


@cache
def serper(budget: float, folder: Path) -> Serper:
    """Return the search service of the environment, one for all threads of a process."""
    from genevolve.tools.serper import Serper, Service

    return Serper(Service.from_environment(), CallCache(folder / "calls.sqlite"), budget=budget, account=command())


@cache
def client(
    name: str, budget: float, folder: Path, url: str = "", key: str = "", header: str = "authorization"
) -> Client:
    """Return the service that GENEVOLVE_{NAME}_URL and its fellows say (`url`, `key`: see Endpoint), one for a process."""
    from genevolve.services.client import Client
    from genevolve.services.endpoint import Endpoint

    endpoint = Endpoint.from_environment(name, url=url, key=key, header=header)
    return Client(endpoint, CallCache(folder / "calls.sqlite"), budget=budget, account=command())


@cache
def policy_client(budget: float, folder: Path) -> Client:
    """Return the policy's server (GENEVOLVE_POLICY_URL), one for a process: asked as much at a time as such servers batch,
    at any rate, and with patience for a long turn among many."""
    from genevolve.services.client import Client
    from genevolve.services.endpoint import OPENAI_KEY, Endpoint
    from genevolve.services.patience import Patience

    endpoint = Endpoint.from_environment("policy", key=OPENAI_KEY, concurrency=256, rate=0)
    patience = Patience(attempts=6, attempt=900, total=3600)
    return Client(endpoint, CallCache(folder / "calls.sqlite"), budget=budget, account=command(), patience=patience)


def make_served(settings: Settings, policy: Path, dataset: Path) -> ServedPolicy:
    """Return the policy of a folder as its server plays it; raises PolicyError or ServiceError where it cannot."""
    from genevolve.policy.openai import ServedPolicy

    client = policy_client(settings.world.budget_usd, store())
    return ServedPolicy.connect(client, settings.policy.base, policy, make_eyes(settings, dataset))


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
    """Return the three tools of a profile and how it tells their results; a removed one refuses every call."""
    from genevolve.agent.dialogue import DIALOGUES
    from genevolve.agent.session import Tools
    from genevolve.tools.embedded import SkillTexts
    from genevolve.tools.removed import Removed

    gone = settings.sampling.removed_tools
    return Tools(
        Removed() if "search" in gone else _search(settings, dataset),
        Removed() if "image_search" in gone else _image_search(settings, dataset),
        Removed() if "query_knowledge" in gone else SkillTexts(skill_folder(settings)),
        settings.world.top_k,
        settings.sampling.show_images,
        DIALOGUES[settings.policy.dialogue],
    )


def skill_folder(settings: Settings) -> Path | None:
    """Return the folder of `policy.skills`, None for ours; raise SettingsError, one sentence, where a skill has no text."""
    from genevolve.tools.embedded import missing_skills

    folder = settings.policy.skills
    if folder and (missing := missing_skills(folder)):
        raise SettingsError(
            f"policy.skills: {folder} has no {', '.join(missing)}; it needs a text for each of the eight skills."
        )
    return Path(folder) if folder else None


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

        return Diffusers(
            r.model, r.text_model, r.size, r.steps, r.true_cfg, device, CallCache(store() / "calls.sqlite")
        )
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
    from genevolve.services.client import Client

    budget = settings.world.budget_usd
    return Client(endpoint, CallCache(store() / "calls.sqlite"), budget=budget, account=command(), patience=patience)


def make_judges(settings: Settings, dataset: Path) -> tuple[ImageJudge, ProgramJudge]:
    """Return the judge of pictures and the judge of programs; only the embedded program judge opens the embedded world."""
    return make_image_judge(settings.judge.image, settings, dataset), _program_judge(settings, dataset)


def make_image_judge(name: str, settings: Settings, dataset: Path) -> ImageJudge:
    """Return a judge of pictures by its name, one of JUDGES; raise SettingsError for another."""
    if name == "vlm":
        from genevolve.judge.vlm import VlmImageJudge, Wording, rubric_text

        j = settings.judge
        chat = served_chat("judge", "judge.model", j.model, settings)
        return VlmImageJudge(chat, Wording(rubric_text(j.rubric, "kscore"), j.max_tokens, j.options))
    if name == "second":
        return make_second_judge(settings, dataset)
    if name == "pixels":
        from genevolve.judge.pixels import PixelJudge

        return PixelJudge()
    raise SettingsError(f"There is no judge '{name}'; there are {', '.join(JUDGES)}.")


def _program_judge(settings: Settings, dataset: Path) -> ProgramJudge:
    if settings.judge.program == "vlm":
        from genevolve.judge.vlm import VlmProgramJudge

        chat = served_chat("judge", "judge.model", settings.judge.model, settings)
        shown = partial(_program_pictures, dataset)
        return VlmProgramJudge(chat, _program_wording(settings), shown)
    from genevolve.judge.sufficiency import SufficiencyJudge

    return SufficiencyJudge({file: e.id for file, e in world(dataset).entity_of_file.items()})


def _program_wording(settings: Settings) -> Wording:
    from genevolve.judge.vlm import Wording, rubric_text

    j = settings.judge
    return Wording(rubric_text(j.program_rubric, "sufficiency"), j.max_tokens, j.options)


def _program_pictures(dataset: Path, request: Request, program: Program) -> list[tuple[str, bytes]]:
    """Return what a model that judges programs is shown: the ground truth, then the references."""
    truth = (dataset / request.gt_image).read_bytes() if request.gt_image else b""
    shown = [("Image 1, the ground truth:", truth)]
    for number, (ordinal, file) in enumerate(zip(("first", "second"), program.files, strict=False), 2):
        shown.append((f"Image {number}, the {ordinal} reference image:", picture_bytes(dataset, file)))
    return shown


def served_chat(service: str, setting: str, model: str, settings: Settings) -> Chat:
    """Return a model of the service that GENEVOLVE_{SERVICE}_URL names; raise SettingsError where one is not named."""
    from genevolve.services.chat import Chat
    from genevolve.services.endpoint import OPENAI_KEY

    if not model:
        raise SettingsError(f"{setting} is empty: name a model of the {service} service, --set {setting}=NAME.")
    return Chat(client(service, settings.world.budget_usd, store(), key=OPENAI_KEY), model)


def make_second_judge(settings: Settings, dataset: Path) -> ImageJudge:
    """Return the judge of pictures that no reward comes from (`bench.rescore`)."""
    from genevolve.judge.second import SecondJudge, references_of

    return SecondJudge(references_of(world(dataset)))


def make_embedder(settings: Settings) -> Embedder:
    """Return the embedder of the experience memory."""
    if settings.experience.embedder == "qwen3":
        from genevolve.experience.embed_qwen3 import Qwen3Embedder

        return Qwen3Embedder(settings.experience.embedder_model)
    from genevolve.experience.embed import MiniLMEmbedder

    return MiniLMEmbedder()


def make_summariser(settings: Settings) -> Summariser:
    """Return what turns best-worst pairs into bundles."""
    e = settings.experience
    if e.summariser == "openai":
        from genevolve.experience.summarise_llm import LlmSummariser, prompt_text

        return LlmSummariser(
            served_chat("summariser", "experience.model", e.model, settings), prompt_text(e.prompt), e.options
        )
    from genevolve.experience.summarise import ContrastSummariser

    return ContrastSummariser()


def reference_bytes(dataset: Path, file: str) -> bytes:
    """Return a reference picture as the generator takes it: of the web's store, or of the dataset's embedded world."""
    from genevolve.tools.picture import kept
    from genevolve.tools.serper import WEB

    if file.startswith(WEB):
        return kept(file.removeprefix(WEB), store() / "images")
    return world(dataset).image(file).encode()


def picture_bytes(dataset: Path, file: str) -> bytes:
    """Return a reference picture as a model with eyes is shown it, PNG or JPEG: the web's as it is kept, a drawing of the
    embedded world at PICTURE pixels a side, on white."""
    from genevolve.tools.serper import WEB

    if file.startswith(WEB):
        return reference_bytes(dataset, file)
    import resvg_py

    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=world(dataset).image(file),
            width=PICTURE,
            height=PICTURE,
            background="white",
            skip_system_fonts=True,
        )
    )


def embedded_engine(settings: Settings, policy: Path) -> bool:
    """Return whether our own engine plays this policy: Qwen3 without pictures, in float32 on the CPU."""
    from genevolve.policy.local import LocalPolicy

    p, shown = settings.policy, settings.sampling.show_images
    return p.device == "cpu" and p.dtype != "bfloat16" and not shown and LocalPolicy.plays(policy)


def make_policy(settings: Settings, policy: str | Path, dataset: Path, device: str | None = None) -> Policy:
    """Return the policy of a folder, or of a model's name; `device` takes the place of the settings' one.

    Raises SettingsError for a policy that needs a system prompt to be named, PolicyError when it cannot be played.
    """
    if settings.policy.backend == "openai":
        return make_served(settings, Path(policy), dataset)
    from genevolve.policy.local import LocalPolicy

    root = Path(policy)
    if embedded_engine(settings, root):
        return LocalPolicy.load(root)
    if not settings.policy.system and not LocalPolicy.plays(root):
        raise SettingsError(
            f"{policy} is not the embedded base: say which system prompt it reads, --set policy.system=system (ours) or "
            "--set policy.system=FILE.md (its own)."
        )
    from genevolve.policy.huggingface import HubPolicy

    p, eyes = settings.policy, make_eyes(settings, dataset)
    return HubPolicy.load(policy, device=device or p.device, dtype=p.dtype, attention=p.attention, eyes=eyes)


def make_eyes(settings: Settings, dataset: Path) -> Eyes | None:
    """Return how a policy is shown pictures, None where `sampling.show_images` is 0."""
    from genevolve.policy.pictures import Eyes

    s = settings.sampling
    return Eyes(lambda file: picture_bytes(dataset, file), s.image_pixels) if s.show_images else None


def system_text(settings: Settings) -> str:
    """Return the system prompt of a profile, guide mark included; the embedded one names no removed tool.

    Raises SettingsError when `policy.system` names no file.
    """
    from genevolve.agent.system import prompt_name, prompt_text

    name = prompt_name(settings.policy.system, settings.policy.backend)
    if name != "system_embedded":
        return prompt_text(name)
    gone = settings.sampling.removed_tools
    lines = prompt_text(name).splitlines()
    return "\n".join(_tool_line(line, gone) if gone and line.startswith("Tools: ") else line for line in lines)


def _tool_line(line: str, gone: tuple[str, ...]) -> str:
    names = line.removeprefix("Tools: ").rstrip(".").split(", ")
    return f"Tools: {', '.join(n for n in names if n not in gone) or 'none'}."
