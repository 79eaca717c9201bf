"""Everything of a picture but its subjects: light, pattern, ground, vignette, banner; as SVG fragments. (Ours.)"""

from __future__ import annotations

import io
import math
import random
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve.render.style import (
    BANNER,
    BANNER_RGB,
    CANVAS,
    DOT_PERIOD,
    DOT_RADIUS,
    GROUND_TOP,
    INK_RGB,
    LIGHTS,
    MATERIALS,
    RAY_CENTRE,
    RAYS,
    STRIPE_PERIOD,
    Rgb,
)
from genevolve.scene import Light, Material, Pattern

if TYPE_CHECKING:
    from PIL import Image, ImageFont

FONT = Path(__file__).parent / "assets" / "FredokaOne-Regular.ttf"
"""Fredoka One, SIL Open Font License 1.1 (assets/FredokaOne-OFL.txt)."""


def rgb(colour: Rgb) -> str:
    """Return an SVG colour."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """Return the colour that is `share` of the way from a to b."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


@cache
def backdrop(light: Light | None, pattern: Pattern | None) -> str:
    """Return the background with its pattern, edge to edge."""
    style = LIGHTS[light]
    stops = zip((0, 0.5, 1), (style.top, style.middle, style.bottom), strict=True)
    gradient = "".join(f'<stop offset="{o}" stop-color="{rgb(c)}"/>' for o, c in stops)
    return (
        f'<linearGradient id="sky" x1="0" y1="0" x2="0" y2="1">{gradient}</linearGradient>'
        f'<rect width="{CANVAS}" height="{CANVAS}" fill="url(#sky)"/>'
        f'<g fill="{rgb(style.ink)}" fill-opacity="{style.ink_opacity}">{_pattern(pattern)}</g>'
    )


def _pattern(pattern: Pattern | None) -> str:
    if pattern == "stripes":
        xs = range(0, CANVAS, STRIPE_PERIOD)
        return "".join(f'<rect x="{x}" y="0" width="{STRIPE_PERIOD // 2}" height="{CANVAS}"/>' for x in xs)
    if pattern == "dots":
        rows = range(CANVAS * 2 // DOT_PERIOD + 2)
        return "".join(
            f'<circle cx="{x + (DOT_PERIOD / 2 if row % 2 else 0)}" cy="{row * DOT_PERIOD / 2}" r="{DOT_RADIUS}"/>'
            for row in rows
            for x in range(0, CANVAS + DOT_PERIOD, DOT_PERIOD)
        )
    if pattern == "rays":
        return "".join(_ray(i) for i in range(0, RAYS, 2))
    if pattern == "confetti":
        return _confetti()
    return ""


def _ray(i: int) -> str:
    cx, cy = RAY_CENTRE
    a, b = (2 * math.pi * (i + d) / RAYS for d in (0, 1))
    far = CANVAS * 1.5
    corners = ((cx + far * math.cos(t), cy + far * math.sin(t)) for t in (a, b))
    return f'<path d="M{cx} {cy}L' + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + 'z"/>'


def _confetti() -> str:
    """Scatter small slips, the same ones in every picture, in four soft colours."""
    dice = random.Random(20260521)
    slips = []
    for gx in range(0, CANVAS, 20):
        for gy in range(0, CANVAS, 20):
            x, y, turn = gx + dice.uniform(3, 17), gy + dice.uniform(3, 17), dice.uniform(0, 180)
            colour = dice.choice(("#ff5d73", "#ffd23f", "#3bceac", "#5b8def"))
            slips.append(
                f'<rect x="-4" y="-1.8" width="8" height="3.6" rx="1" fill="{colour}" fill-opacity="0.62"'
                f' transform="translate({x:.1f} {y:.1f}) rotate({turn:.0f})"/>'
            )
    return "".join(slips)


@cache
def ground(material: Material | None) -> str:
    """Return the strip of ground along the lower edge."""
    if material is None:
        return ""
    main, grain = MATERIALS[material]
    height = CANVAS - GROUND_TOP
    strip = f'<rect x="0" y="{GROUND_TOP}" width="{CANVAS}" height="{height}" fill="{rgb(main)}"/>'
    detail = {"wooden": _planks, "marble": _veins, "sandy": _ripples, "grassy": _blades}[material](main, grain)
    edge = (
        '<linearGradient id="depth" x1="0" y1="0" x2="0" y2="1"><stop offset="0" stop-color="#000" stop-opacity="0.16"/>'
        '<stop offset="0.3" stop-color="#000" stop-opacity="0"/></linearGradient>'
        f'<rect x="0" y="{GROUND_TOP}" width="{CANVAS}" height="{height}" fill="url(#depth)"/>'
    )
    return strip + edge + detail


def _planks(main: Rgb, grain: Rgb) -> str:
    dice = random.Random(1)
    out, y, row = [], float(GROUND_TOP), 0
    while y < CANVAS:
        height = 14 + 4 * row
        tone = rgb(mix(main, (255, 232, 200), 0.10 * dice.random()))
        out.append(f'<rect x="0" y="{y}" width="{CANVAS}" height="{height - 1.6}" fill="{tone}" fill-opacity="0.8"/>')
        joints = range(40 + (row * 97) % 170, CANVAS, 190)
        out += [f'<rect x="{x}" y="{y}" width="1.6" height="{height}" fill="{rgb(grain)}"/>' for x in joints]
        for _ in range(7):
            x, dy, w = dice.uniform(-10, CANVAS), dice.uniform(3, height - 4), dice.uniform(24, 70)
            out.append(
                f'<path d="M{x:.1f} {y + dy:.1f}q{w / 2:.1f} {dice.uniform(-2, 2):.1f} {w:.1f} 0" fill="none"'
                f' stroke="{rgb(grain)}" stroke-opacity="0.45" stroke-width="0.9"/>'
            )
        out.append(f'<rect x="0" y="{y + height - 1.6}" width="{CANVAS}" height="1.6" fill="{rgb(grain)}"/>')
        y, row = y + height, row + 1
    return "".join(out)


def _veins(main: Rgb, grain: Rgb) -> str:
    dice = random.Random(2)
    out = []
    for i in range(15):
        x, y = dice.uniform(-30, CANVAS), dice.uniform(GROUND_TOP, CANVAS)
        path = f"M{x:.1f} {y:.1f}"
        for _ in range(5):
            bend = (dice.uniform(5, 20), dice.uniform(-9, 9), dice.uniform(16, 34), dice.uniform(-8, 10))
            path += "q" + " ".join(f"{v:.1f}" for v in bend)
        width, opacity = (0.9, 0.6) if i % 3 else (2.2, 0.4)
        out.append(
            f'<path d="{path}" fill="none" stroke="{rgb(grain)}" stroke-opacity="{opacity}" stroke-width="{width}"/>'
        )
    clip = (
        f'<clipPath id="slab"><rect x="0" y="{GROUND_TOP}" width="{CANVAS}" height="{CANVAS - GROUND_TOP}"/></clipPath>'
    )
    rim = f'<rect x="0" y="{GROUND_TOP}" width="{CANVAS}" height="4" fill="#fff" fill-opacity="0.75"/>'
    return clip + f'<g clip-path="url(#slab)">{"".join(out)}</g>' + rim


def _ripples(main: Rgb, grain: Rgb) -> str:
    dice = random.Random(3)
    out = []
    for row in range(7):
        level = GROUND_TOP + 9 + row * 14
        path = f"M-10 {level}" + "".join(f"q14 {-5 if i % 2 else 5} 28 0" for i in range(13))
        out.append(f'<path d="{path}" fill="none" stroke="{rgb(grain)}" stroke-opacity="0.42" stroke-width="1.5"/>')
    for _ in range(170):
        x, y = dice.uniform(0, CANVAS), dice.uniform(GROUND_TOP + 3, CANVAS)
        tone = rgb(grain) if dice.random() < 0.6 else "#fff3d6"
        out.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{dice.uniform(0.6, 1.3):.1f}" fill="{tone}" fill-opacity="0.75"/>'
        )
    return "".join(out)


def _blades(main: Rgb, grain: Rgb) -> str:
    dice = random.Random(4)
    out = []
    for row in range(5):
        y = GROUND_TOP + 1 + row * 19
        tone = rgb(mix(main, (190, 226, 120), 0.5)) if row % 2 else rgb(grain)
        path = ""
        for x in range(-2, CANVAS + 4, 7):
            h, lean = dice.uniform(6, 10), dice.uniform(-3, 3)
            foot, tip = y + 3, y + 3 - h
            path += f"M{x - 1.6:.1f} {foot}Q{x:.1f} {y - h / 2:.1f} {x + lean:.1f} {tip:.1f}"
            path += f"Q{x + 1:.1f} {y:.1f} {x + 1.8:.1f} {foot}z"
        colour = rgb(main) if row == 0 else tone
        out.append(f'<path d="{path}" fill="{colour}" fill-opacity="{1 if row == 0 else 0.55}"/>')
    return "".join(out)


@lru_cache(maxsize=125)
def picture(light: Light | None, pattern: Pattern | None, material: Material | None) -> Image.Image:
    """Return all the scenery behind the subjects as an RGBA image of the canvas; copy before drawing on it."""
    out = _layer(backdrop(light, pattern)).copy()
    if material:
        out.alpha_composite(_layer(ground(material)))
    out.alpha_composite(_layer(vignette()))
    return out


@lru_cache(maxsize=64)
def _layer(content: str) -> Image.Image:
    return raster(document(CANVAS, CANVAS, content))


def document(width: float, height: float, content: str) -> str:
    """Return an SVG document of so many pixels."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{content}</svg>'


def raster(svg: str) -> Image.Image:
    """Return an SVG document as an RGBA image; raise ValueError when resvg refuses it. No system font is ever used."""
    import resvg_py
    from PIL import Image

    fonts = [str(FONT)] if "<text" in svg else []
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, font_files=fonts)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


@cache
def vignette() -> str:
    """Return a faint darkening towards the corners."""
    return (
        '<radialGradient id="vignette" cx="0.5" cy="0.46" r="0.78">'
        '<stop offset="0.62" stop-color="#140a20" stop-opacity="0"/>'
        '<stop offset="1" stop-color="#140a20" stop-opacity="0.2"/></radialGradient>'
        f'<rect width="{CANVAS}" height="{CANVAS}" fill="url(#vignette)"/>'
    )


BANNER_SHADOW = 6
"""Pixels around the banner that its picture also covers."""


@lru_cache(maxsize=256)
def banner(text: str) -> Image.Image:
    """Return the banner, lettering as large as one line allows, with BANNER_SHADOW pixels of room around it."""
    left, top, right, bottom = BANNER["top"]
    width, height, edge = right - left, bottom - top, BANNER_SHADOW
    size = min(34.0, (width - 28) / max(_line_width(text), 0.01))
    # Half the letter spacing that follows the last letter is given back, so that the line stands in the middle.
    x, y = edge + width / 2 + 0.015 * size, edge + height / 2 + 0.355 * size
    shown = text.replace("&", "&amp;").replace("<", "&lt;")
    sheet = f'<rect width="{width}" height="{height}" rx="11"'
    return raster(
        document(
            width + 2 * edge,
            height + 2 * edge,
            f'<g transform="translate({edge} {edge})">{sheet} y="2.5" stroke="#140a20" stroke-opacity="0.1"'
            f' stroke-width="3" fill="#140a20" fill-opacity="0.2"/>{sheet} fill="{rgb(BANNER_RGB)}"/></g>'
            f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="middle" font-family="Fredoka One" font-size="{size:.2f}"'
            f' letter-spacing="{size * 0.03:.2f}" fill="{rgb(INK_RGB)}" xml:space="preserve">{shown}</text>',
        )
    )


@cache
def _font() -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(FONT), 100)


def _line_width(text: str) -> float:
    """Return the width of the lettering at font size 1."""
    return float(_font().getlength(text)) / 100 + 0.03 * len(text)
