"""One copy of a subject as an RGBA image: contact shadow, plate, sticker outline, art. (Ours.)"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from genevolve.render.art import load_art
from genevolve.render.guess import Alteration
from genevolve.render.scenery import document, mix, raster, rgb
from genevolve.render.style import PLATES, RIM_RGB
from genevolve.scene import Colour

if TYPE_CHECKING:
    from PIL import Image

PLATE_FILL = 0.93
"""Share of the plate's coloured diameter that the diagonal of the art takes."""
RIM = 0.94
"""Share of the plate's radius that is coloured; the pale rim is outside."""


def aspect(data: bytes | None, alteration: Alteration, variant: int, colour: Colour | None) -> tuple[float, float]:
    """Return (width, height) of one copy, the larger one 1."""
    if colour:
        return 1.0, 1.0
    _, _, w, h = load_art(data, alteration, variant).box
    return w / max(w, h), h / max(w, h)


@lru_cache(maxsize=256)
def sprite(
    data: bytes | None, alteration: Alteration, variant: int, colour: Colour | None, width: int, height: int
) -> tuple[Image.Image, int]:
    """Return the picture of one copy in a cell of so many pixels, and the margin around it that the picture covers."""
    from PIL import Image, ImageFilter

    art = load_art(data, alteration, variant)
    x, y, aw, ah = art.box
    size = max(width, height)
    margin = 4 + size // 12
    line = max(1.6, size / 48)  # width of the white outline
    if colour:
        radius = size / 2 - 1
        scale = PLATE_FILL * 2 * radius * RIM / math.hypot(aw, ah)
    else:
        scale = min((width - 2 * line) / aw, (height - 2 * line) / ah)
    full = (width + 2 * margin, height + 2 * margin)
    cx, cy = full[0] / 2, full[1] / 2
    move = f"translate({cx - (x + aw / 2) * scale:.3f} {cy - (y + ah / 2) * scale:.3f}) scale({scale:.4f})"
    drawn = raster(document(*full, f'<g transform="{move}">{art.body}</g>'))
    out = _below(colour, width, height, margin).copy()
    alpha = drawn.getchannel("A")
    outline = alpha.filter(ImageFilter.GaussianBlur(line)).point([min(255, max(0, (v - 18) * 6)) for v in range(256)])
    shadow = outline.filter(ImageFilter.GaussianBlur(line * 1.1)).point([round(v * 0.36) for v in range(256)])
    dark = Image.new("RGBA", full, (20, 10, 32, 0))
    dark.paste(Image.merge("RGBA", [*Image.new("RGB", full, (20, 10, 32)).split(), shadow]), (0, round(line * 0.7)))
    white = Image.merge("RGBA", [*Image.new("RGB", full, RIM_RGB).split(), outline])
    for layer in (dark, white, drawn):
        out.alpha_composite(layer)
    return out, margin


@lru_cache(maxsize=256)
def _below(colour: Colour | None, width: int, height: int, margin: int) -> Image.Image:
    """Return what lies under the art of a copy: contact shadow and plate."""
    cx, cy = width / 2 + margin, height / 2 + margin
    shapes = _contact(cx, cy + height / 2, width, height)
    if colour:
        shapes += _plate(cx, cy, width / 2 - 1, colour)
    return raster(document(width + 2 * margin, height + 2 * margin, shapes))


def _contact(cx: float, foot: float, width: float, height: float) -> str:
    """Return the soft shadow that a copy throws on what it stands on."""
    stops = "".join(
        f'<stop offset="{o}" stop-color="#140a20" stop-opacity="{a}"/>' for o, a in ((0, 0.55), (0.5, 0.34), (1, 0))
    )
    low = max(3.0, height * 0.07)
    return (
        f'<radialGradient id="contact">{stops}</radialGradient>'
        f'<ellipse cx="{cx}" cy="{foot - low * 0.15:.2f}" rx="{width * 0.47:.2f}" ry="{low:.2f}" fill="url(#contact)"/>'
    )


def _plate(cx: float, cy: float, r: float, colour: Colour) -> str:
    main = PLATES[colour]
    rings = ((1.0, RIM_RGB), (RIM, mix(main, (20, 10, 32), 0.22)), (RIM - 0.03, main))
    return "".join(f'<circle cx="{cx}" cy="{cy}" r="{r * share:.2f}" fill="{rgb(tone)}"/>' for share, tone in rings)
