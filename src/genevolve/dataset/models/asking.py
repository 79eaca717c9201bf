"""What the models that make data have in common: their prompts, marks from 1 to 5, and when to give up on a service (ours)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from genevolve.errors import SettingsError
from genevolve.judge.verdict import clean, refuse_foreign
from genevolve.services.chat import Ask, Chat, system, user
from genevolve.services.client import CallError
from genevolve.services.endpoint import variable
from genevolve.services.steady import Steady
from genevolve.settings import DatasetSizes

PROMPTS = Path(__file__).parent.parent / "prompts"
TRIES = 3
"""Questions until an answer can be used."""


def prompt_text(file: str, default: str) -> str:
    """Return a prompt: of `file`, or ours named `default` where it is empty. Raises SettingsError, one sentence."""
    path = Path(file) if file else PROMPTS / default
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as e:
        raise SettingsError(f"The prompt {path} cannot be read ({e.strerror}).") from e
    except UnicodeDecodeError as e:
        raise SettingsError(f"The prompt {path} is not UTF-8 text.") from e
    if not text:
        raise SettingsError(f"The prompt {path} is empty.")
    return text


def service_of(name: str, dataset: DatasetSizes) -> tuple[str, str]:
    """Return (service, model) of `teacher`, `writer` or `auditor`: the teacher's where the name has none of its own."""
    model = str(getattr(dataset, f"{name}_model"))
    if os.environ.get(variable(name, "URL"), "").strip():
        return name, model
    return "teacher", model or dataset.teacher_model


@dataclass(frozen=True)
class Asking:
    """One model, and how it is asked."""

    chat: Chat
    prompt: str
    temperature: float = 0.0
    max_tokens: int = 4096
    options: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, text: str, images: Sequence[tuple[str, bytes]] = ()) -> Ask:
        said = (system(self.prompt), user(text, images))
        return Ask(said, self.temperature, self.max_tokens, dict(self.options))


def _mark(value: Any) -> int:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
    except ValueError:
        number = 0.0
    if number not in (1, 2, 3, 4, 5):
        raise ValueError("a score must be a whole number from 1 to 5")
    return int(number)


Mark = Annotated[int, BeforeValidator(_mark)]


class Marks(BaseModel):
    """A rationale and whole numbers from 1 to 5, one field each."""

    model_config = ConfigDict(extra="ignore")
    rationale: str = Field(min_length=1)

    def snapped(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.scores().items()}

    def scores(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in type(self).model_fields if name != "rationale"}

    def said(self) -> str:
        return clean(self.rationale)


M = TypeVar("M", bound=Marks)


@dataclass(frozen=True)
class Marked(Generic[M]):
    """What a model made of one piece of work; `marks` None: nothing, and why."""

    marks: M | None
    reason: str = ""


async def marked(
    asking: Asking,
    form: type[M],
    family: str,
    text: str,
    images: Sequence[tuple[str, bytes]],
    judged: Sequence[str],
    steady: Steady,
) -> Marked[M]:
    """Ask for marks; `judged` are the strangers' texts in the question, whose own JSON is no answer (`refuse_foreign`).

    Raises ServiceError, BudgetError and TryLaterError, where the command cannot go on.
    """
    heard: list[str] = []

    def check(marks: M, raw: str) -> None:
        refuse_foreign(marks, raw, judged)

    try:
        ask = asking.ask(text, images)
        found, _ = await asking.chat.object(ask, form, family=family, tries=TRIES, check=check, heard=heard)
    except CallError as e:
        if heard:
            steady.answered()
        else:
            steady.failed(e)
        return Marked(None, e.reason)
    steady.answered()
    return Marked(found)
