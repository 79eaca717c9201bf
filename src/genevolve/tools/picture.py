"""Bytes from a stranger become a picture of ours: decoded, turned upright, bounded, written anew without metadata (ours)."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from genevolve.files import write_whole
from genevolve.tools.base import ToolError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""Each with a decoder that has been attacked for decades. SVG, TIFF, ICO, EPS, PDF and the rest are refused."""
LOSSLESS = ("PNG", "GIF")

_one_at_a_time = threading.Lock()
"""Downloads run side by side; of decoded pictures, at up to 4 bytes a pixel, only one is in memory."""


class Refused(Exception):
    """A picture is not taken. `reason` is one of a few fixed phrases, by which refusals are counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Size:
    """How large a picture may be."""

    pixels: int = 40_000_000
    """Width times height as its header says, before anything is decoded."""
    long_side: int = 1024
    """Pixels of the longer side as it is kept."""
    short_side: int = 32
    """A smaller one, as it would be kept, is refused: tracking dots and rules."""


def redraw(data: bytes, size: Size | None = None) -> tuple[bytes, str]:
    """Return (bytes, 'png' or 'jpg') of the first frame, upright, at most `long_side`, without metadata.

    The same input gives the same bytes. Raises Refused: 'not a picture', 'pixels', 'broken picture', 'too small'.
    """
    clean, lossless = decode(data, size)
    out = io.BytesIO()
    if lossless or clean.mode == "RGBA":
        clean.save(out, "PNG")
        return out.getvalue(), "png"
    clean.save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue(), "jpg"


def decode(data: bytes, size: Size | None = None) -> tuple[Image.Image, bool]:
    """Return the first frame as RGB or RGBA, upright, at most `long_side`; and whether its format was a lossless one.

    Raises Refused as `redraw` does.
    """
    size = size or Size()
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours, and lower
        return _decode(data, size)


def _decode(data: bytes, size: Size) -> tuple[Image.Image, bool]:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refused("pixels") from None
    except Exception:  # a decoder fed with hostile bytes may raise anything
        raise Refused("not a picture") from None
    with image:
        if image.width * image.height > size.pixels:
            raise Refused("pixels")
        lossless = image.format in LOSSLESS
        try:
            image.draft("RGB", (size.long_side, size.long_side))  # a JPEG is decoded at the scale that is needed
            image.load()
            clean = _plain(ImageOps.exif_transpose(image))
        except Exception:
            raise Refused("broken picture") from None
    clean.thumbnail((size.long_side, size.long_side), Image.Resampling.LANCZOS)
    if min(clean.size) < size.short_side:
        raise Refused("too small")
    # A new image of the same pixels: colour profile, comments and text chunks stay behind with the old one. A profile is
    # not applied either: it is a program for another parser, and web pictures are sRGB but for few.
    return Image.frombytes(clean.mode, clean.size, clean.tobytes()), lossless


def _plain(image: Image.Image) -> Image.Image:
    """Return the picture as RGBA if any of it is transparent, else as RGB, 8 bits a channel."""
    if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        if clear.getchannel("A").getextrema() != (255, 255):
            return clear
    return image.convert("RGB")


def keep(data: bytes, suffix: str, folder: Path) -> str:
    """Write a redrawn picture into `folder`, whole or not at all; return its name, the sha256 of its bytes."""
    name = f"{hashlib.sha256(data).hexdigest()}.{suffix}"
    path = folder / name
    if not path.exists():
        write_whole(path, data)
    return name


def kept(name: str, folder: Path) -> bytes:
    """Return a kept picture's bytes; raise ToolError when it is not there. The name may come from a record: it is checked."""
    if not re.fullmatch(r"[0-9a-f]{64}\.(png|jpg)", name):
        raise ToolError("This is no name of a downloaded picture.")
    try:
        return (folder / name).read_bytes()
    except OSError as e:
        raise ToolError(
            f"{folder / name}: the downloaded picture cannot be read ({e.strerror}); search for it again"
        ) from e
