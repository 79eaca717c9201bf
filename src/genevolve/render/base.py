"""What every generator G(g, R) offers: jobs in, PNG bytes out (method.md, section 1)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from genevolve.errors import GenEvolveError


class RenderError(GenEvolveError):
    """A generator will draw nothing at all: a model that does not load or fails on every program. It ends the command."""


@dataclass(frozen=True)
class Options:
    """What a caller of the renderer server may ask for beside the program; None: what the generator is set to."""

    width: int | None = None
    height: int | None = None
    """pixels"""
    steps: int | None = None
    true_cfg: float | None = None
    negative: str | None = None


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
    options: Options = Options()
    """Left alone by everything but the renderer server; the compositor ignores it."""


def noise_seed(job: RenderJob) -> int:
    """Return the 32-bit seed of a job's noise: one per (request id, run seed); the seed itself where there is no id."""
    if not job.request_id:
        return job.seed
    return int.from_bytes(hashlib.sha256(f"{job.request_id}\0{job.seed}".encode()).digest()[:4], "big")


class Renderer(Protocol):
    """A reference-conditioned generator."""

    def render(self, jobs: Sequence[RenderJob]) -> list[bytes | None]:
        """Return one PNG per job, in order; None where the generator failed (the sample is missing, never 0)."""
        ...
