"""Backends are chosen by name here and nowhere else: a profile's names in, working objects out."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve.errors import SettingsError

if TYPE_CHECKING:
    from genevolve.agent.session import Tools
    from genevolve.experience.embed import Embedder
    from genevolve.judge.base import ImageJudge, ProgramJudge
    from genevolve.render.base import Renderer
    from genevolve.settings import Settings
    from genevolve.tools.world import World

WORLD = "world"
"""Where the dataset folder keeps the embedded world."""


def _missing(what: str, name: str) -> SettingsError:
    return SettingsError(
        f"The {what} '{name}' is not built yet: this version runs the embedded backends (--profile embedded or tiny)."
    )


def check(settings: Settings) -> None:
    """Raise SettingsError, one sentence, for a backend that this version does not have, before any process starts."""
    wanted = {
        "policy": (settings.policy.backend, "local"),
        "search": (settings.world.search, "embedded"),
        "image search": (settings.world.image_search, "embedded"),
        "generator": (settings.render.backend, "compositor"),
        "image judge": (settings.judge.image, "pixels"),
        "program judge": (settings.judge.program, "constraints"),
        "summariser": (settings.experience.summariser, "contrast"),
        "embedder": (settings.experience.embedder, "minilm"),
    }
    for what, (name, built) in wanted.items():
        if name != built:
            raise _missing(what, name)


@cache
def world(dataset: Path) -> World:
    """Return the dataset's embedded world, opened once in a process."""
    from genevolve.tools.world import World

    return World.open(dataset / WORLD)


def make_tools(settings: Settings, dataset: Path) -> Tools:
    """Return the three tools of a profile."""
    from genevolve.agent.session import Tools
    from genevolve.tools.embedded import EmbeddedImageSearch, EmbeddedSearch, SkillTexts

    here = world(dataset)
    return Tools(EmbeddedSearch(here), EmbeddedImageSearch(here), SkillTexts(), settings.world.top_k)


def make_renderer(settings: Settings) -> Renderer:
    """Return the generator of a profile."""
    from genevolve.render.compositor import Compositor
    from genevolve.render.style import CANVAS

    if settings.render.size != CANVAS:
        raise SettingsError(
            f"The compositor draws {CANVAS} pixels a side, not {settings.render.size}; set render.size to {CANVAS}."
        )
    return Compositor()


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
    """Return a reference picture as the generator takes it."""
    return world(dataset).image(file).encode()


def system_text(settings: Settings) -> str:
    """Return the system prompt file of a profile, guide mark included."""
    from genevolve.agent.system import load_system

    return load_system("system_embedded" if settings.policy.backend == "local" else "system")
