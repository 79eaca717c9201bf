"""Types of the flows' parameters as Prefect's pages show them: with examples, choices, and what is refused before a run starts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema

from genevolve.errors import GenEvolveError
from genevolve.profiles import read_yaml


def profiles() -> list[str]:
    """Return the profiles that params.yaml has, a user's own among them; they are offered when a flow is deployed."""
    try:
        return [str(name) for name in read_yaml("params.yaml")]
    except GenEvolveError:  # imported outside a project's folder
        return []


Profile = (
    Annotated[str, WithJsonSchema({"type": "string", **({"enum": names} if (names := profiles()) else {})})] | None
)
Overrides = Annotated[
    list[Annotated[str, Field(pattern=r"^[a-z_]+\.[a-z0-9_]+=.*$")]] | None,
    Field(json_schema_extra={"examples": [["sampling.k=4", "cycle.steps=5"]]}),
]
Entry = Annotated[str, Field(pattern=r"^(champion|c[0-9]{3,})$", examples=["champion", "c001"])]
Parent = Annotated[
    Annotated[str, Field(pattern=r"^(champion|c[0-9]{3,})$")] | None, Field(examples=["champion", "c001"])
]
