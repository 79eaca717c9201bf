"""Which thing is it? A copy against the reference pictures of the world, by orientation and hue histograms.

A reference is drawn as the sticker that the copy would be (on the same background, at the same size) and both are
described cell by cell: how strong are edges of each direction (HOG; Dalal and Triggs, 2005), and how much of each hue, of
black and of white. The nearest reference among the asked entity and its look-alikes is what the copy shows.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from genevolve.judge.second.copies import Box, Mask, Picture, classes, components, reaching_the_edge, subject_pixels
from genevolve.judge.second.frame import Rgb, to_lab
from genevolve.render.style import PLATES, RIM_RGB
from genevolve.scene import Colour

Rgba = NDArray[np.uint8]
Maps = NDArray[np.float32]

SIDE = 64
"""Patches are compared at this size, in pixels."""
CELLS = 16
"""Cells a side."""
DIRECTIONS = 9
HUES = 6
SPREAD = 1.2
"""How far a sticker's edge lies beyond its art, in units of its line (the larger side / 48, at least 1.6)."""
OUTLINE = 1.15
"""How far its outline is more white than clear, in the same units; the rest is a soft edge."""
ART = 192
"""Longer side of a rasterised reference, in pixels."""
TRIES = (1.0, 0.97, 1.03)
"""Scales that are tried: the edge of a sticker is found to a pixel or two."""


@dataclass(frozen=True, eq=False)
class Patch:
    """One copy: its sticker [h, w, 3], what is behind it, and the width of its outline's line in pixels."""

    seen: Rgb
    behind: Rgb
    line: float

    @cached_property
    def maps(self) -> Maps:
        """Its descriptor."""
        return describe(self.seen)


def patch(picture: Picture, box: Box, colour: Colour | None) -> Patch | None:
    """Return the sticker of a copy; None when nothing lies on its plate."""
    left, top, right, bottom = box
    line = max(1.6, max(right - left, bottom - top) / 48)
    seen = picture.rgb[top:bottom, left:right]
    if colour is None:
        behind = picture.behind[top:bottom, left:right]
        return Patch(_without_shadow(seen, behind, picture.mask[top:bottom, left:right]), behind, line)
    h, w = seen.shape[:2]
    y, x = np.mgrid[0:h, 0:w]
    on_plate = np.hypot(2 * x + 1 - w, 2 * y + 1 - h) / max(h, w) < 0.9
    behind = np.broadcast_to(np.array(PLATES[colour], dtype=np.uint8), seen.shape)
    ink = subject_pixels(seen, behind) & on_plate
    ys, xs = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if len(ys) < 6 or len(xs) < 6:
        return None
    part = (slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1))
    return Patch(_without_shadow(seen[part], behind[part], ink[part]), behind[part], line)


def _without_shadow(seen: Rgb, behind: Rgb, ink: Mask) -> Rgb:
    """Return a copy with what is behind it where its ink does not reach; enclosed pixels may be art and stay."""
    return np.where(reaching_the_edge(~ink)[:, :, None], behind, seen)


@lru_cache(maxsize=1024)
def art(svg: str) -> Rgba:
    """Return a reference picture, RGBA [h, w, 4], cut to what is visible; the longer side has about ART pixels."""
    import resvg_py
    from PIL import Image

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=ART, height=ART, skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as image:
        rgba = np.array(image.convert("RGBA"), dtype=np.uint8)
    ys, xs = (np.flatnonzero((rgba[:, :, 3] > 24).any(axis=axis)) for axis in (1, 0))
    if not len(ys):
        return rgba
    return rgba[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]


@lru_cache(maxsize=1024)
def repeats(svg: str) -> int:
    """Return how many twins the largest part of a reference has, itself included: 2 for a pair of chopsticks."""
    stamp = sticker(art(svg), np.full((ART, ART, 3), 0, dtype=np.uint8), ART / 48, 1.0)
    lab = to_lab(stamp)
    kinds = classes(components(lab, lab[:, :, 0] > 10))
    return len(kinds[0]) if kinds else 1


def sticker(rgba: Rgba, behind: Rgb, line: float, scale: float) -> Rgb:
    """Return the reference as a sticker that fills a patch [h, w, 3], laid on what is behind."""
    import cv2

    h, w = behind.shape[:2]
    fit = scale * _fit(rgba, behind, line)
    move = np.array([[fit, 0, (w - fit * rgba.shape[1]) / 2], [0, fit, (h - fit * rgba.shape[0]) / 2]])
    clear = rgba.astype(np.float32) / 255
    clear[:, :, :3] *= clear[:, :, 3:]
    clear = np.asarray(cv2.GaussianBlur(clear, (0, 0), max(0.01, 0.3 / fit)), dtype=np.float32)  # against aliasing
    move[:, 2] += 0.5 * fit - 0.5  # pixel centres
    laid = cv2.warpAffine(clear, move, (w, h), flags=cv2.INTER_LINEAR)
    gap = cv2.distanceTransform((laid[:, :, 3] < 0.5).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    edge = np.clip(OUTLINE * line + 0.5 - gap, 0, 1)[:, :, None]
    out = behind.astype(np.float32) * (1 - edge) + np.array(RIM_RGB, dtype=np.float32) * edge
    out = out * (1 - laid[:, :, 3:]) + 255 * laid[:, :, :3]
    return np.clip(out, 0, 255).round().astype(np.uint8)


def _fit(rgba: Rgba, behind: Rgb, line: float) -> float:
    """Return the scale at which a reference, outline included, fills a patch."""
    h, w = behind.shape[:2]
    room = 2 * SPREAD * line
    return min(max(4.0, w - room) / rgba.shape[1], max(4.0, h - room) / rgba.shape[0])


def covered(rgba: Rgba, behind: Rgb, line: float) -> float:
    """Return the share of a patch that the art of a reference covers."""
    art_pixels = float(rgba[:, :, 3].sum()) / 255 * _fit(rgba, behind, line) ** 2
    return min(1.0, art_pixels / (behind.shape[0] * behind.shape[1]))


def distance(copy: Patch, rgba: Rgba, scales: Sequence[float] = TRIES) -> float:
    """Return how unlike a copy is to a reference laid over it where it fits best, at the best of the scales.

    Three parts: the summed absolute differences of a cell's histograms, mean over the cells; the same, mean over the worst
    3 x 3 cells, where one missing emblem shows; the difference of the whole patch's hues per area of art, where another
    tint shows that is thinly spread. 0: alike; unlike things are 3 to 7 apart.
    """
    import cv2

    found = []
    for scale in scales:
        expected = _shifted(sticker(rgba, copy.behind, copy.line, scale), copy.seen)
        gap = describe(expected) - copy.maps
        local = np.abs(gap).sum(axis=2)
        tint = np.abs(gap[:, :, DIRECTIONS:-2].mean(axis=(0, 1))).sum() / max(
            0.1, covered(rgba, copy.behind, copy.line)
        )
        found.append(float(local.mean() + cv2.blur(local, (3, 3)).max() + tint))
    return min(found)


def _shifted(expected: Rgb, seen: Rgb) -> Rgb:
    """Return the expected patch moved by up to three pixels to where its middle fits best."""
    import cv2

    play = 3
    h, w = seen.shape[:2]
    if min(h, w) < 6 * play:
        return expected
    fit = cv2.matchTemplate(seen, expected[play : h - play, play : w - play].copy(), cv2.TM_SQDIFF)
    dy, dx = (int(v) - play for v in np.unravel_index(int(fit.argmin()), fit.shape))
    move = np.array([[1, 0, dx], [0, 1, dy]], dtype=np.float64)
    return np.asarray(cv2.warpAffine(expected, move, (w, h), borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8)


def describe(rgb: Rgb) -> Maps:
    """Return the descriptor of a patch [CELLS, CELLS, DIRECTIONS + HUES + 2], every map a mean over its cell."""
    import cv2

    small = (cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA) / 255).astype(np.float32)
    maps = np.concatenate([_directions(small), _hues(small)], axis=2)
    cells = cv2.resize(maps, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    # Cells share with their neighbours, so that a pixel of misfit counts little.
    return np.asarray(cv2.GaussianBlur(cells, (0, 0), 0.7), dtype=np.float32)


def _directions(rgb: NDArray[np.float32]) -> Maps:
    """Return the strength of edges [H, W, DIRECTIONS] by direction (half a turn), of the channel with the strongest."""
    import cv2

    gx, gy = (cv2.Sobel(rgb, cv2.CV_32F, *d, ksize=3, scale=0.25) for d in ((1, 0), (0, 1)))
    strength = np.hypot(gx, gy)
    top = strength.argmax(axis=2)[:, :, None]
    gx, gy, strength = (np.take_along_axis(v, top, axis=2)[:, :, 0] for v in (gx, gy, strength))
    return _soft(np.arctan2(gy, gx) / np.pi, 4 * strength, DIRECTIONS)


def _hues(rgb: NDArray[np.float32]) -> Maps:
    """Return how much of each hue, of black and of white a pixel has [H, W, HUES + 2]; they sum to 1."""
    import cv2

    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    colour = hsv[:, :, 1] * hsv[:, :, 2]
    grey = np.stack([1 - hsv[:, :, 2], hsv[:, :, 2] - colour], axis=2)
    return np.concatenate([_soft(hsv[:, :, 0] / 360, colour, HUES), grey], axis=2).astype(np.float32)


def _soft(turn: NDArray[np.floating], weight: NDArray[np.floating], bins: int) -> Maps:
    """Return weights [H, W, bins] shared between the two nearest bins of a circle; `turn` in circles."""
    place = (turn % 1.0).astype(np.float32)[:, :, None] * bins
    gap = np.abs(place - np.arange(bins, dtype=np.float32))
    return (np.clip(1 - np.minimum(gap, bins - gap), 0, 1) * weight[:, :, None]).astype(np.float32)
