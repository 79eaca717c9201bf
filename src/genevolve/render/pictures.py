"""Pictures on their way into and out of the generators that are models: decoded strictly, measured, written as PNG (ours)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from genevolve.tools.picture import Refused, Size, decode

if TYPE_CHECKING:
    from PIL import Image

MULTIPLE = 16
"""Width and height of a generated picture are multiples of this: 8 pixels a latent, 2 latents a patch. [R]"""
DRAWING_SIDE = 1024
"""Pixels a side at which a drawing (SVG) of the embedded world is shown to a model."""


class Sent(NamedTuple):
    """A reference as a service takes it."""

    data: bytes
    kind: str
    """its media type"""
    size: tuple[int, int]
    """width and height in pixels"""


REFERENCE = Size(long_side=2048, short_side=16)
RENDERED = Size(long_side=4096, short_side=16)


def reference(data: bytes) -> Image.Image:
    """Return a reference file (PNG, JPEG, WebP, GIF, or a plain SVG drawing) as RGB on white; raise Refused."""
    return _on_white(_drawing(data) if data.lstrip()[:1] == b"<" else decode(data, REFERENCE)[0])


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB":
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _drawing(data: bytes) -> Image.Image:
    from genevolve.render.art import UNITS, load_art
    from genevolve.render.scenery import document, raster

    art = load_art(data)
    if art == load_art(None):
        raise Refused("not a picture")
    scale = DRAWING_SIDE / UNITS
    return raster(document(DRAWING_SIDE, DRAWING_SIDE, f'<g transform="scale({scale:.6f})">{art.body}</g>'))


def for_wire(data: bytes) -> Sent:
    """Return a reference in a form that any service reads: PNG and JPEG as they are, the rest as PNG.

    Raises Refused for what is no sound picture, so that no call is made in vain.
    """
    image = reference(data)
    if data.startswith(b"\x89PNG"):
        return Sent(data, "image/png", image.size)
    if data.startswith(b"\xff\xd8"):
        return Sent(data, "image/jpeg", image.size)
    return Sent(png(image), "image/png", image.size)


def rendered(data: bytes) -> bytes:
    """Return what a service says is a picture as a PNG of ours, whatever it was labelled; raise Refused."""
    return png(_on_white(decode(data, RENDERED)[0]))


def png(image: Image.Image) -> bytes:
    """Return the PNG of a picture; the same encoder settings everywhere, so that equal pixels are equal bytes."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=3)
    return out.getvalue()


def output_size(first: tuple[int, int] | None, long_side: int) -> tuple[int, int]:
    """Return (width, height): the first reference's shape (None: a square), `long_side` at most, multiples of 16. [R]"""
    width, height = first or (1, 1)
    scale = long_side / max(width, height)
    return _multiple(width * scale), _multiple(height * scale)


def _multiple(pixels: float) -> int:
    return max(MULTIPLE, round(pixels / MULTIPLE) * MULTIPLE)
