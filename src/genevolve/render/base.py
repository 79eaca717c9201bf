"""What every generator G(g, R) offers: jobs in, PNG bytes out (method.md, section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class RenderJob:
    """One program to render. A generator sees this and nothing else: no scene, no request, no answer."""

    request_id: str
    """Seeds the guesses together with `seed`, so that two programs of one request are guessed alike."""
    gen_prompt: str
    """The generator-facing English `g`."""
    references: tuple[bytes, ...] = ()
    """The reference files `R` in order, as bytes (the compositor takes SVG, PNG and JPEG)."""
    seed: int = 0
    """The run seed."""


class Renderer(Protocol):
    """A reference-conditioned generator."""

    def render(self, jobs: Sequence[RenderJob]) -> list[bytes | None]:
        """Return one PNG per job, in order; None where the generator failed (the sample is missing, never 0)."""
        ...
