"""The embedded generator: reads a program's English, decides what it leaves open, draws an illustrated poster. (Ours.)

Deterministic byte for byte: no system fonts, no clock, guesses from hashes only. Scenery, copies and banner are small
SVGs, rasterised by resvg once each and kept in process-wide caches, because the rollouts of a request share most
of them; Pillow lays them over each other at whole pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from genevolve.render import scenery
from genevolve.render.base import RenderJob
from genevolve.render.guess import Plan, decide
from genevolve.render.layout import cells, subject_boxes
from genevolve.render.pictures import png
from genevolve.render.program import parse_prompt
from genevolve.render.sprite import aspect, sprite
from genevolve.render.style import BANNER, subject_zone

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)


class Compositor:
    """A Renderer without state of its own."""

    def render(self, jobs: Sequence[RenderJob]) -> list[bytes | None]:
        """Return one PNG (CANVAS x CANVAS, RGB) per job; None, and a log line saying why, where drawing failed."""
        pictures: list[bytes | None] = []
        for job in jobs:
            try:
                pictures.append(png(draw(plan(job), job.references)))
            except ValueError as e:
                log.warning("request %s: the picture could not be drawn (%s)", job.request_id, e)
                pictures.append(None)
        return pictures


def plan(job: RenderJob) -> Plan:
    """Return what the job's picture will show, every guess made."""
    return decide(parse_prompt(job.gen_prompt), len(job.references), job.seed, job.request_id)


def draw(plan: Plan, references: Sequence[bytes]) -> Image.Image:
    """Return the picture of a plan, RGB."""
    canvas = scenery.picture(plan.light, plan.pattern, plan.material).copy()
    zone = subject_zone(plan.text_place if plan.text else None)
    boxes = subject_boxes([s.position for s in plan.subjects], zone)
    for subject, box in zip(plan.subjects, boxes, strict=True):
        data = None if subject.reference is None else references[subject.reference]
        look = (data, subject.alteration, subject.variant, subject.colour)
        for left, top, width, height in cells(subject.count, aspect(*look), subject.colour is not None, box):
            copy, margin = sprite(*look, width, height)
            _over(canvas, copy, left - margin, top - margin)
    if plan.text:
        left, top, _, _ = BANNER[plan.text_place]
        _over(canvas, scenery.banner(plan.text), left - scenery.BANNER_SHADOW, top - scenery.BANNER_SHADOW)
    return canvas.convert("RGB")


def _over(canvas: Image.Image, picture: Image.Image, left: int, top: int) -> None:
    """Lay a picture over the canvas; what reaches beyond its left or upper edge (shadow room only) is cut."""
    canvas.alpha_composite(picture, (max(0, left), max(0, top)), (max(0, -left), max(0, -top)))
