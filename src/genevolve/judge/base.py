"""What a judge is: two small Protocols. A judge that fails leaves a sample missing (None), never 0 (method.md, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from genevolve.records import Program, Request, Score


class JudgeError(ValueError):
    """A picture or a request could not be judged; the message is a sentence that names what was wrong."""


@dataclass(frozen=True)
class JudgeJob:
    """One picture to judge: the request, the generated picture and the ground truth, both as PNG bytes."""

    request: Request
    image: bytes
    gt: bytes


@dataclass(frozen=True)
class ProgramJob:
    """One program to judge: the request, what the policy answered it with, and the skills it asked for."""

    request: Request
    program: Program | None
    skills: tuple[str, ...] = ()


class ImageJudge(Protocol):
    """R_img: pictures against requests."""

    reasons: list[str]
    """Of the last `score` call, one per job: why it is missing, or an empty string."""
    notes: list[dict[str, Any]]
    """Of the last `score` call, one per job: what an audit needs beside the score (raw answers of a model); else empty."""

    def score(self, jobs: Sequence[JudgeJob]) -> list[Score | None]:
        """Return one Score per job, in order; None where this judge failed (see `reasons`)."""
        ...


class ProgramJudge(Protocol):
    """R_text: could a perfect generator make the ground truth from this program? Five bins."""

    reasons: list[str]
    notes: list[dict[str, Any]]
    """Both as an ImageJudge's."""

    def score(self, jobs: Sequence[ProgramJob]) -> list[float | None]:
        """Return R_text in {0, .25, .5, .75, 1} per job, in order; None where this judge cannot tell."""
        ...
