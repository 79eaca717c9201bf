"""The models that make GenEvolve-Data, out of a profile's names (`dataset.teacher: openai`); see `backends` for all others."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve.dataset.models.asking import Asking, prompt_text, service_of
from genevolve.errors import SettingsError
from genevolve.render.ready import check_renderer
from genevolve.stages.backends import command, picture_bytes, served_chat, system_text, uses_web

if TYPE_CHECKING:
    from genevolve.dataset.models.auditor import Auditor, VisualFilter
    from genevolve.dataset.models.writer import Writer
    from genevolve.policy.openai import ServedPolicy
    from genevolve.records import Program
    from genevolve.services.chat import Chat
    from genevolve.settings import Settings


def check_data_models(settings: Settings) -> None:
    """Raise SettingsError, one sentence, where `dataset.teacher: openai` misses something, before anything is paid."""
    if settings.dataset.guide_fraction:
        raise SettingsError(
            "dataset.guide_fraction: guides are the scripted teacher's; set it to 0 with dataset.teacher=openai."
        )
    if settings.judge.image != "vlm":
        raise SettingsError(
            f"judge.image: {settings.judge.image} knows the requests of the embedded world alone; set it to vlm with "
            "dataset.teacher=openai."
        )
    make_teacher(settings)
    make_writer(settings)
    make_auditor(settings, Path())
    make_filter(settings, Path())
    teacher_text(settings)
    check_renderer(settings, processes=1)
    if uses_web(settings):
        from genevolve.tools.serper import Service

        Service.from_environment()
    command()


def make_teacher(settings: Settings) -> ServedPolicy:
    """Return the chat model that plays the trajectories of GenEvolve-Data; its turns are paid once."""
    from genevolve.policy.openai import ServedPolicy
    from genevolve.policy.probe import Ability

    chat = _data_chat("teacher", settings)
    plain = Ability(None, "a teacher speaks in messages")
    options = settings.dataset.teacher_options
    return ServedPolicy(chat.client, chat.model, plain, None, ("", ""), family="teacher", options=options)


def teacher_text(settings: Settings) -> str:
    """Return the teacher's system prompt: the student's, and behind it what the student is not told."""
    return f"{system_text(settings)}\n\n{prompt_text(settings.dataset.teacher_prompt, 'teacher.md')}"


def make_writer(settings: Settings) -> Writer:
    """Return the model that writes recipes and requests."""
    from genevolve.dataset.models.writer import Writer, lists

    d = settings.dataset
    chat, prompt = _data_chat("writer", settings), prompt_text(d.writer_prompt, "writer.md")
    asking = Asking(chat, prompt, d.writer_temperature, options=d.writer_options)
    return Writer(asking, lists(d.seeds), settings.seeds.data_seed)


def make_auditor(settings: Settings, dataset: Path) -> Auditor:
    """Return the model that audits the teacher's trajectories."""
    from genevolve.dataset.models.auditor import Auditor

    d = settings.dataset
    chat, prompt = _data_chat("auditor", settings), prompt_text(d.auditor_prompt, "auditor.md")
    return Auditor(Asking(chat, prompt, options=d.auditor_options), partial(_shown_references, dataset))


def make_filter(settings: Settings, dataset: Path) -> VisualFilter:
    """Return the judge's model as the visual filter of ground truths."""
    from genevolve.dataset.models.auditor import VisualFilter

    j, prompt = settings.judge, prompt_text(settings.dataset.filter_prompt, "filter.md")
    asking = Asking(served_chat("judge", "judge.model", j.model, settings), prompt, 0.0, j.max_tokens, j.options)
    return VisualFilter(asking, partial(_shown_references, dataset))


def _data_chat(name: str, settings: Settings) -> Chat:
    service, model = service_of(name, settings.dataset)
    return served_chat(service, f"dataset.{name}_model", model, settings)


def _shown_references(dataset: Path, program: Program) -> list[bytes]:
    return [picture_bytes(dataset, file) for file in program.files]
