"""How agent and policy talk: which turns are read, how observations are worded. Ours is the default (`policy.dialogue`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from genevolve.agent.format import image_observation, search_observation, text_observation
from genevolve.agent.protocol import Answer, Call, FormatError, parse_turn
from genevolve.agent.release import Release
from genevolve.agent.rules import build_program
from genevolve.records import Program


class Dialogue(Protocol):
    """All methods but `parse` and `program` return an observation in `<tool_response>`, without tags from outside."""

    final_step: str
    """Follows the observation before the last round. Tool text cannot fake it: it stands outside the <tool_response>."""
    repeats: bool
    """Whether a query or skill may be asked for again; then a picture keeps its id."""

    def parse(self, text: str, final: bool) -> Call | Answer | FormatError: ...

    def program(self, answer: Answer, files: Mapping[str, str]) -> Program:
        """Raises RuleError, a sentence for the model."""
        ...

    def search(self, queries: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
        """`rows`: query, title, url, snippet."""
        ...

    def images(self, query: str, rows: Sequence[Mapping[str, str]]) -> str:
        """`rows`: img_id, title, url, file."""
        ...

    def skill(self, name: str, text: str) -> str: ...

    def failed(self, tool: str, how: str) -> str: ...

    def format_error(self, reason: str) -> str: ...

    def said(self, text: str) -> str: ...


class Ours:
    """A strict grammar (`protocol.py`, `rules.py`) and short observations (`format.py`)."""

    final_step = "Final step: no more tools. Write the <answer> now."
    repeats = False

    def parse(self, text: str, final: bool) -> Call | Answer | FormatError:
        return parse_turn(text, final)

    def program(self, answer: Answer, files: Mapping[str, str]) -> Program:
        return build_program(answer, files)

    def search(self, queries: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
        return search_observation((r["snippet"], r["title"]) for r in rows)

    def images(self, query: str, rows: Sequence[Mapping[str, str]]) -> str:
        return image_observation((r["title"], r["img_id"]) for r in rows)

    def skill(self, name: str, text: str) -> str:
        return text_observation(text)

    def failed(self, tool: str, how: str) -> str:
        return text_observation(f"{tool} {how}")

    def format_error(self, reason: str) -> str:
        return text_observation(f"Format error: {reason}")

    def said(self, text: str) -> str:
        return text_observation(text)


OURS = Ours()
DIALOGUES: dict[str, Dialogue] = {"ours": OURS, "release": Release()}
"""By the value of `policy.dialogue`."""
