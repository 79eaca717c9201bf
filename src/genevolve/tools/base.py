"""What a tool is: one small Protocol per family, the records they return, and the error they raise."""

from __future__ import annotations

from typing import Protocol

from pydantic import Field

from genevolve.records import Record


class ToolError(RuntimeError):
    """A tool could not answer. The message is one sentence that may be shown to the policy or to the user."""


class SearchHit(Record):
    title: str = Field(description="the article: what the snippet is about")
    url: str
    snippet: str = Field(description="a few words that end at the match")


class ImageHit(Record):
    title: str = Field(description="what the picture shows, e.g. 'flag of Bhutan'")
    url: str
    file: str = Field(description="path relative to the world folder, e.g. 'images/1F992.svg'")


class Search(Protocol):
    """Text search: facts live here."""

    def search(self, query: str, top_k: int = 5) -> list[SearchHit]: ...


class ImageSearch(Protocol):
    """Image search: looks live here."""

    def search(self, query: str, top_k: int = 5) -> list[ImageHit]: ...


class Knowledge(Protocol):
    """Guidance on one generation skill."""

    def read(self, skill_name: str) -> str: ...
