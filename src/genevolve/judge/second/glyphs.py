"""Reads lettering without an OCR engine: dark components on the banner, each matched with the letters of the font.

The font is the world's own (render/assets), as the alphabet of a typewriter would be known to who compares two letters;
the reader knows capital letters only, which is all that requests ask for.
"""

from __future__ import annotations

import difflib
import string
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genevolve.judge.second.frame import Rgb
from genevolve.render.scenery import FONT
from genevolve.render.style import BANNER, BANNER_RGB, INK_RGB
from genevolve.scene import TextPlace

Plane = NDArray[np.float32]

ALPHABET = string.ascii_uppercase
GRID = 24
"""Glyphs are compared on a square of this many pixels a side."""
SURE = 0.75
"""Score below which a wide component is taken for two letters that touch."""
SIMILAR = 0.75
"""Ratio of matching letters (difflib) from which wrong lettering is a near miss."""


def read_banner(rgb: Rgb, place: TextPlace) -> str:
    """Return the letters on a banner from left to right, without spaces."""
    left, top, right, bottom = BANNER[place]
    light, dark = sum(BANNER_RGB), sum(INK_RGB)
    strip = rgb[top + 2 : bottom - 2, left + 4 : right - 4].astype(np.float32).sum(axis=2)
    return read_ink(np.clip((light - strip) / (light - dark), 0, 1))


def read_ink(ink: Plane) -> str:
    """Return the letters of a strip of ink [H, W] (0 paper, 1 ink), one line, from left to right."""
    import cv2

    large = np.asarray(cv2.resize(ink, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC), dtype=np.float32)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((large > 0.5).astype(np.uint8), connectivity=8)
    tall = max((int(s[cv2.CC_STAT_HEIGHT]) for s in stats[1:]), default=0)
    said = []
    for i in sorted(range(1, count), key=lambda i: int(stats[i][0])):
        x, y, w, h, _ = (int(v) for v in stats[i])
        if h < tall / 2:  # dots and dashes are no letters
            continue
        own = labels[y : y + h, x : x + w] == i
        said.append(_letters(np.where(own, large[y : y + h, x : x + w], 0).astype(np.float32)))
    return "".join(said)


def _letters(glyph: Plane) -> str:
    """Return the letter of a component, or those of its parts when it is too wide and unlike to be one."""
    score, letter = _best(glyph)
    h, w = glyph.shape
    if score >= SURE or w < 1.1 * h:
        return letter
    cut = w // 4 + int(glyph[:, w // 4 : w - w // 4].sum(axis=0).argmin())
    return _letters(_tight(glyph[:, :cut])) + _letters(_tight(glyph[:, cut:]))


def _best(glyph: Plane) -> tuple[float, str]:
    """Return the best score and its letter: correlation of the shapes, less a penalty for other proportions."""
    shape, proportion = _normal(glyph)
    scores = [(float((shape * s).sum()) - abs(proportion - p), letter) for letter, s, p in _font()]
    return max(scores)


def _normal(glyph: Plane) -> tuple[Plane, float]:
    """Return a glyph stretched to GRID x GRID with zero mean and unit length, and its log width / height."""
    import cv2

    flat = np.asarray(cv2.resize(glyph, (GRID, GRID), interpolation=cv2.INTER_AREA), dtype=np.float32)
    flat = flat - flat.mean()
    return flat / max(1e-6, float(np.linalg.norm(flat))), float(np.log(glyph.shape[1] / glyph.shape[0]))


def _tight(glyph: Plane) -> Plane:
    """Return a glyph without empty edges; as it is when it is all empty."""
    ys, xs = (np.flatnonzero((glyph > 0.5).any(axis=axis)) for axis in (1, 0))
    return glyph if not len(ys) else glyph[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]


@lru_cache(maxsize=1)
def _font() -> list[tuple[str, Plane, float]]:
    """Return (letter, normal shape, log proportion) of every capital letter."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(FONT), 96)
    out = []
    for letter in ALPHABET:
        sheet = Image.new("L", (160, 160))
        ImageDraw.Draw(sheet).text((20, 20), letter, fill=255, font=font)
        out.append((letter, *_normal(_tight((np.array(sheet) / 255).astype(np.float32)))))
    return out


def agreement(said: str, asked: str) -> float:
    """Return 1 when the letters are the asked ones (spaces and case aside), .5 for a near miss, else 0."""
    wanted = "".join(asked.upper().split())
    if said == wanted:
        return 1.0
    ratio = difflib.SequenceMatcher(None, said, wanted, autojunk=False).ratio()
    return 0.5 if ratio >= SIMILAR else 0.0
