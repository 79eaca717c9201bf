"""What a request can be about in the embedded world (ours)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genevolve.records import Record
from genevolve.tools.facts import Fact


class Entity(Record):
    """A thing with a picture that a request can be about."""

    id: str = Field(pattern=r"^(flag|object):[a-z0-9_]+$")
    name: str = Field(description="the words of an image search: 'flag of Bhutan', 'giraffe'")
    title: str = Field(
        description="title of its article or fact document as the search shows it; '' when there is none"
    )
    kind: Literal["flag", "object"]
    category: str
    svg: str = Field(description="OpenMoji file stem")
    facts: tuple[Fact, ...] = Field(default=(), description="each true of this entity alone; none: named requests only")
    lookalikes: tuple[str, ...] = Field(default=(), description="entity ids, most confusable first")

    @property
    def file(self) -> str:
        """Path of its picture, relative to the world folder."""
        return image_file(self.svg)


def image_file(stem: str) -> str:
    return f"images/{stem}.svg"
