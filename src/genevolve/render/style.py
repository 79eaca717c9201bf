"""Public constants of the embedded pictures: canvas, zones, palettes. A judge may rely on every one of them.

Boxes are (left, top, right, bottom) in pixels, right and bottom exclusive; colours are sRGB triples 0-255. (Ours.)
"""

from __future__ import annotations

from typing import NamedTuple

from genevolve.scene import Colour, Light, Material, Pattern, Position, TextPlace

Rgb = tuple[int, int, int]
Box = tuple[int, int, int, int]

CANVAS = 320
"""Width and height of every picture in pixels."""

MARGIN = 14
"""No subject, plate or banner comes closer to the edge of the picture."""

BANNER: dict[TextPlace, Box] = {"top": (14, 14, 306, 64), "bottom": (14, 256, 306, 306)}
"""The plain banner that carries the lettering. Nothing else is ever drawn inside it."""

BANNER_RGB: Rgb = (255, 252, 244)
INK_RGB: Rgb = (34, 37, 46)
"""Lettering on the banner."""

GROUND_TOP = 222
"""The ground (material), when there is one, fills rows GROUND_TOP..CANVAS over the whole width, behind all else."""


class LightStyle(NamedTuple):
    """A vertical background gradient and the tint that patterns are drawn with."""

    top: Rgb
    middle: Rgb
    bottom: Rgb
    ink: Rgb
    ink_opacity: float


LIGHTS: dict[Light | None, LightStyle] = {
    "warm sunset": LightStyle((226, 88, 62), (247, 148, 72), (255, 206, 120), (255, 240, 205), 0.30),
    "cool moonlight": LightStyle((19, 28, 66), (38, 58, 112), (84, 112, 166), (176, 202, 255), 0.24),
    "bright daylight": LightStyle((88, 184, 240), (150, 214, 250), (226, 244, 255), (255, 255, 255), 0.52),
    "pink dawn": LightStyle((222, 126, 176), (246, 176, 204), (255, 220, 226), (255, 250, 252), 0.46),
    None: LightStyle((232, 228, 218), (240, 237, 229), (247, 245, 239), (158, 150, 132), 0.26),
}
"""Background from the top row over the middle to the bottom row. None: plain paper."""

PLATES: dict[Colour, Rgb] = {
    "red": (214, 48, 49),
    "blue": (41, 98, 208),
    "green": (34, 153, 84),
    "yellow": (250, 205, 40),
    "purple": (126, 62, 178),
    "orange": (243, 124, 22),
}
"""The solid colour of a plate (a round disc behind each copy, with a thin pale rim outside)."""

RIM_RGB: Rgb = (255, 253, 248)

MATERIALS: dict[Material, tuple[Rgb, Rgb]] = {
    "wooden": ((168, 110, 62), (122, 74, 38)),
    "marble": ((228, 227, 232), (160, 162, 174)),
    "sandy": ((228, 198, 138), (190, 152, 92)),
    "grassy": ((104, 168, 74), (62, 122, 48)),
}
"""Ground: (main colour, colour of its grain: planks, veins, ripples, blades)."""

PATTERNS: tuple[Pattern, ...] = ("stripes", "dots", "rays", "confetti")
STRIPE_PERIOD = 32
"""Upright stripes: ink and gap are each half of this wide; the first ink stripe begins at x = 0."""
DOT_PERIOD = 26
"""Dots sit on a staggered grid of this spacing; DOT_RADIUS is their radius."""
DOT_RADIUS = 4.5
RAYS = 24
"""Rays: this many wedges around RAY_CENTRE, every second one inked."""
RAY_CENTRE = (160.0, 222.0)

MAX_COPY = 168
"""No cell that holds one copy (with its plate) is larger than this, in pixels."""
GAP = 8
"""Free pixels between two cells, and between the two subjects' boxes."""


def subject_zone(text_place: TextPlace | None) -> Box:
    """Return the box that all copies of all subjects stay in."""
    top = BANNER["top"][3] + GAP if text_place == "top" else MARGIN
    bottom = BANNER["bottom"][1] - GAP if text_place == "bottom" else CANVAS - MARGIN
    return (MARGIN, top, CANVAS - MARGIN, bottom)


def half(position: Position, zone: Box) -> Box:
    """Return the part of the zone that lies entirely in one half of the picture."""
    left, top, right, bottom = zone
    middle = CANVAS // 2
    return {
        "left": (left, top, middle - GAP // 2, bottom),
        "right": (middle + GAP // 2, top, right, bottom),
        "upper": (left, top, right, middle - GAP // 2),
        "lower": (left, middle + GAP // 2, right, bottom),
    }[position]
