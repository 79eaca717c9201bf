"""Reference files as drawable art: cleaned SVG in a 72-unit square and its tight box. (Ours.)

Files come from a search, so they are hostile: only plain shapes of an SVG are kept, pictures are decoded by Pillow
under a pixel limit, and whatever cannot be read becomes a grey placeholder.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from genevolve.render.guess import Alteration

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 400_000
MAX_ELEMENTS = 4000
MAX_DEPTH = 50
MAX_PIXELS = 30_000_000
PIXELS_PER_UNIT = 1.5
PAD = 8
"""Units around the 72-unit square that are looked at for stray art."""
UNITS = 72.0

_SVG = "{http://www.w3.org/2000/svg}"
_SHAPES = {"g", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon"}
_PAINT = {"defs", "linearGradient", "radialGradient", "stop", "clipPath"}
_NUMBER = re.compile(r"[-+0-9.eE]+")
_SAFE_URL = re.compile(r"url\(#([\w.-]{1,80})\)")

PLACEHOLDER = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    b'<rect x="8" y="8" width="56" height="56" rx="12" fill="#b9bcc4"/>'
    b'<path d="M14 56 30 34l10 12 7-8 12 18z" fill="#8d919c"/><circle cx="46" cy="25" r="6" fill="#e3e5ea"/></svg>'
)


@dataclass(frozen=True)
class Art:
    """One drawable reference in a 72-unit square."""

    body: str
    """SVG fragment in units; ids in it are unique to this file and alteration."""
    box: tuple[float, float, float, float]
    """Tight box of what is visible: x, y, width, height in units."""


@lru_cache(maxsize=512)
def load_art(data: bytes | None, alteration: Alteration = "none", variant: int = 0) -> Art:
    """Return the art of a reference file (None or unreadable: the placeholder), altered in one of four variants."""
    body = _body(data) if data else None
    try:
        visible = body is not None and _alpha(body).getbbox() is not None
    except ValueError:  # resvg refuses what was left of the file
        visible = False
    if body is None or not visible:
        body = _shapes(PLACEHOLDER) or ""
    if alteration == "recolour":
        body = _recolour(body, variant)
    elif alteration == "crop":
        body = _crop(body, _tight(body), variant)
    return Art(body, _tight(body))


def _body(data: bytes) -> str | None:
    """Return the file as an SVG fragment in a 72-unit square, or None if it cannot be read."""
    if len(data) > MAX_BYTES * 20:
        return None
    if data[:8].startswith((b"\x89PNG", b"\xff\xd8")):
        return _picture(data)
    return _shapes(data) if len(data) <= MAX_BYTES else None


def _picture(data: bytes) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            image.thumbnail((256, 256))
            small = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    scale = 62 / max(small.size)
    w, h = small.width * scale, small.height * scale
    return (
        f'<image x="{36 - w / 2:.3f}" y="{36 - h / 2:.3f}" width="{w:.3f}" height="{h:.3f}" href="{_png_uri(small)}"/>'
    )


def _shapes(data: bytes) -> str | None:
    """Keep the plain shapes of an SVG; no scripts, styles, links, text, nested uses or entities survive."""
    if b"<!DOCTYPE" in data.upper() and b"[" in data:
        return None  # an internal subset may define entities
    try:
        root = ElementTree.fromstring(data)
        if sum(1 for _ in root.iter()) > MAX_ELEMENTS:
            return None
        fit = _fit(root)
        prefix = f"a{_name(data)}-"
        inner = "".join(_clean(child, prefix) for child in root)
    except (ElementTree.ParseError, RecursionError, ValueError):
        return None
    return f'<g transform="{fit}" fill="{_attr(root.get("fill", "#000"))}">{inner}</g>' if inner else None


def _name(data: bytes) -> str:
    """Return a short name for the bytes, the same in every process."""
    return f"{zlib.crc32(data):x}"


def _fit(root: ElementTree.Element) -> str:
    """Return the transform that brings the file's view box into the 72-unit square."""
    numbers = [float(n) for n in _NUMBER.findall(root.get("viewBox", ""))]
    if len(numbers) != 4:
        numbers = [0.0, 0.0, *(float(_NUMBER.findall(root.get(k, "72"))[0]) for k in ("width", "height"))]
    x, y, w, h = numbers
    if not (0 < w < 1e6 and 0 < h < 1e6):
        raise ValueError("empty view box")
    s = UNITS / max(w, h)
    return f"translate({(UNITS - w * s) / 2 - x * s:.4f} {(UNITS - h * s) / 2 - y * s:.4f}) scale({s:.6f})"


def _clean(element: ElementTree.Element, prefix: str, depth: int = 0) -> str:
    """Return an element as SVG text, with all that is not a plain shape or paint left out and its ids made unique."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    tag = element.tag if isinstance(element.tag, str) else ""
    name = tag.removeprefix(_SVG)
    if name not in _SHAPES and name not in _PAINT:
        return ""
    attributes = []
    for key, value in element.attrib.items():
        local = key.rsplit("}", 1)[-1]
        if key.startswith("{") and not (local == "href" and value.startswith("#")):
            continue
        if local.startswith("on") or local in ("class", "filter", "mask", "style") or len(value) > 60_000:
            continue
        if local == "id":
            value = prefix + value
        elif local == "href":
            value = "#" + prefix + value[1:] if value.startswith("#") else ""
        elif "url(" in value:
            value = (
                _SAFE_URL.sub(lambda m: f"url(#{prefix}{m.group(1)})", value) if _SAFE_URL.fullmatch(value) else "none"
            )
        attributes.append(f' {local}="{_attr(value)}"')
    children = "".join(_clean(c, prefix, depth + 1) for c in element)
    return f"<{name}{''.join(attributes)}>{children}</{name}>"


def _attr(value: str) -> str:
    cleaned = "".join(c if c.isprintable() else " " for c in value)
    return cleaned.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def _recolour(body: str, variant: int) -> str:
    """Turn every hue by a third of the circle; tint white and lift black, so that a black and white subject changes."""
    white = ((1.0, 0.60, 0.95), (0.50, 0.95, 1.0), (1.0, 0.86, 0.40), (0.70, 1.0, 0.50))[variant % 4]
    black = ((0.42, 0.0, 0.40), (0.0, 0.30, 0.46), (0.46, 0.20, 0.0), (0.0, 0.38, 0.16))[variant % 4]
    turn = ((2, 0, 1), (1, 2, 0))[variant % 2]
    rows = []
    for out in range(3):
        row = [0.0] * 5
        row[turn[out]], row[4] = white[out] - black[out], black[out]
        rows.append(" ".join(f"{v:.2f}" for v in row))
    name = f"f{variant % 4}-{_name(body.encode())}"
    matrix = f'<feColorMatrix type="matrix" values="{" ".join(rows)} 0 0 0 1 0"/>'
    area = 'filterUnits="userSpaceOnUse" x="0" y="0" width="72" height="72" color-interpolation-filters="sRGB"'
    return f'<filter id="{name}" {area}>{matrix}</filter><g filter="url(#{name})">{body}</g>'


def _crop(body: str, box: tuple[float, float, float, float], variant: int) -> str:
    """Blow one part of the subject up and stretch it: the rest is cut off."""
    x, y, w, h = box
    cw, ch = (w * 0.66, h * 0.40) if variant % 2 else (w * 0.40, h * 0.62)
    cx = x if variant < 2 else x + w - cw
    cy = y if variant in (0, 3) else y + h - ch
    sx, sy = w / cw, h / ch
    clip = f"c{variant}-{_name(body.encode())}"
    return (
        f'<clipPath id="{clip}"><rect x="{x:.3f}" y="{y:.3f}" width="{w:.3f}" height="{h:.3f}"/></clipPath>'
        f'<g clip-path="url(#{clip})">'
        f'<g transform="translate({x - cx * sx:.3f} {y - cy * sy:.3f}) scale({sx:.4f} {sy:.4f})">{body}</g></g>'
    )


@lru_cache(maxsize=64)
def _alpha(body: str) -> Image.Image:
    """Return the art's coverage as a Pillow L image over the padded square."""
    import resvg_py
    from PIL import Image

    side = UNITS + 2 * PAD
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-PAD} {-PAD} {side} {side}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=round(side * PIXELS_PER_UNIT), skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA").getchannel("A")


def _tight(body: str) -> tuple[float, float, float, float]:
    """Return the box of everything that is not nearly transparent: x, y, width, height in units."""
    left, top, right, bottom = _alpha(body).point([0] * 24 + [255] * 232).getbbox() or (0, 0, 10, 10)
    s = PIXELS_PER_UNIT
    return (left / s - PAD, top / s - PAD, (right - left) / s, (bottom - top) / s)


def _png_uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
