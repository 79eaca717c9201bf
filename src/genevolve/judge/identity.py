"""Is it the very thing? Cuts a copy out of its picture and compares it with a copy cut out of the ground truth.

What stands around the sticker (light, pattern, ground, plate, shadows) is made white first, like the sticker's outline,
so that only the subject is compared, at one size: Lab colours point by point, and, where these say that it is not the
same, EfficientNet-Lite0 cosines (is it that thing, altered?).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genevolve.judge import features
from genevolve.judge.backdrop import SHADOW, Image, Mask, outside, unlike
from genevolve.judge.layout import Cell, tight
from genevolve.render.style import PLATES, RIM_RGB

SIDE = 56
"""Copies are compared at most this large, in pixels."""
PLAY = 6
"""Pixels of play when one copy is laid over the other."""
SCALES = (1.0, 0.97, 1.03, 0.94, 1.06)
"""Scales that are tried: a lost edge shifts the bounds a little."""
CLOSE = 6.0
"""Local distance at which no other scale is tried."""
OUTLINE = 1.1
"""The sticker's outline in units of the line that the compositor blurs it by."""
TINT = 10.0
"""Largest difference per channel of a pixel that is the outline's white laid over what is behind."""
PATCH = 5
"""Side of the patch that a local distance is averaged over, in pixels."""
SAME = 23.4
"""Local distance below which two copies show the same thing. Fitted on `sft` entities (docs/judge.md): copies of one thing
reach 22.6, look-alikes and altered copies begin at 24.4."""


@dataclass(frozen=True, eq=False)
class Cut:
    """One copy on white: RGB [h, w, 3], as large as its art."""

    picture: Image
    maybe: Mask
    """pixels that look like what is behind the copy: holes, or art that happens to have that colour"""


@dataclass(frozen=True)
class Likeness:
    """How alike two copies are."""

    mean: float
    """mean Lab distance over both subjects, a pixel of play allowed"""
    local: float
    """largest mean Lab distance over a patch: one missing emblem shows here"""
    size: int
    """side in pixels at which they were compared"""


def cut(picture: Image, behind: NDArray[np.float32], cell: Cell) -> Cut | None:
    """Return the copy of a cell cut out; `behind` is the empty scene [H, W, 3]. None when nothing is left."""
    import cv2

    left, top, right, bottom = cell.bounds
    crop = np.ascontiguousarray(picture[top:bottom, left:right])
    h, w = crop.shape[:2]
    beyond = np.zeros((h, w), dtype=bool)
    back = behind[top:bottom, left:right]
    if cell.colour is not None:
        back = np.broadcast_to(np.array(PLATES[cell.colour], dtype=np.float32), crop.shape)
        y, x = np.mgrid[0:h, 0:w]
        beyond = np.hypot((x + 0.5 - w / 2) / (w / 2), (y + 0.5 - h / 2) / (h / 2)) > 0.9
    like = ~unlike(crop, back) | beyond
    sticker = _without_specks(~outside(like))
    bounds = tight(sticker)
    if bounds is None:
        return None
    inset = round(OUTLINE * max(1.6, max(h, w) / 48))
    x0, y0, x1, y1 = bounds
    if min(x1 - x0, y1 - y0) > 4 * inset:
        x0, y0, x1, y1 = x0 + inset, y0 + inset, x1 - inset, y1 - inset
    # One pixel inwards lies the soft edge between outline and background.
    shape = cv2.erode(np.pad(sticker, 1).astype(np.uint8), np.ones((3, 3), dtype=np.uint8))[1:-1, 1:-1] > 0
    # A hole's edge is as soft, and belongs to it; so does a slit so narrow that the outline half covers it.
    maybe = cv2.dilate((shape & like).astype(np.uint8), np.ones((5, 5), dtype=np.uint8)) > 0
    maybe |= _slits(crop, back)
    shape, maybe = shape[y0:y1, x0:x1], maybe[y0:y1, x0:x1]
    return Cut(np.where(shape[:, :, None], crop[y0:y1, x0:x1], np.uint8(255)), shape & maybe)


def _slits(crop: Image, back: NDArray[np.float32]) -> Mask:
    """Return the pixels where a half-clear white outline lies over what is behind, in spots less than 5 pixels thick."""
    import cv2

    tinted = np.zeros(crop.shape[:2], dtype=bool)
    white = np.array(RIM_RGB, dtype=np.float32)
    for shade in (0.0, 0.2, 0.4):
        dark = back + shade * (SHADOW - back)
        gap, towards = crop - dark, white - dark
        share = (gap * towards).sum(axis=2) / np.maximum((towards * towards).sum(axis=2), 1.0)
        off = np.abs(gap - share[:, :, None] * towards).max(axis=2)
        tinted |= (off < TINT) & (share > 0) & (share < 0.95)
    thick = cv2.morphologyEx(tinted.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), dtype=np.uint8)) > 0
    return tinted & ~thick


def _without_specks(mask: Mask) -> Mask:
    """Drop specks: left-overs of soft edges. Every part of a sticker is as thick as its outline at least."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    keep = (stats[:, cv2.CC_STAT_AREA] >= 12) & (stats[:, 2] > 3) & (stats[:, 3] > 3)
    keep[0] = False
    return np.asarray(keep[labels] if keep.any() else mask, dtype=np.bool_)


def square(picture: Image, side: int, most: int | None = None) -> Image:
    """Return a picture centred on a white square of `side` pixels (first brought down to `most`, so that blur is equal)."""
    import cv2

    for longest in (most, side):
        if longest is None:
            continue
        h, w = picture.shape[:2]
        scale = longest / max(h, w)
        if scale >= 1 and longest != side:
            continue
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        picture = np.asarray(cv2.resize(picture, size, interpolation=how), dtype=np.uint8)
    h, w = picture.shape[:2]
    out = np.full((side, side, 3), 255, dtype=np.uint8)
    y, x = (side - h) // 2, (side - w) // 2
    out[y : y + h, x : x + w] = picture
    return out


def lab(picture: Image) -> NDArray[np.float32]:
    """Return CIE Lab values [H, W, 3] of an RGB picture."""
    import cv2

    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB), dtype=np.float32)


def _bare(copy: Cut) -> Image:
    """Return the copy with white where its background may show."""
    return np.where(copy.maybe[:, :, None], np.uint8(255), copy.picture)


def likeness(a: Cut, b: Cut) -> Likeness:
    """Return how alike two copies are, compared at the smaller one's size and laid over each other where they fit best."""
    import cv2

    side = max(16, min(SIDE, max(a.picture.shape[:2]), max(b.picture.shape[:2])))
    white = (255, 255, 255)
    bare, full = (
        np.asarray(
            cv2.copyMakeBorder(square(p, side), PLAY, PLAY, PLAY, PLAY, cv2.BORDER_CONSTANT, value=white),
            dtype=np.uint8,
        )
        for p in (_bare(a), a.picture)
    )
    bare_b, full_b = square(_bare(b), side), square(b.picture, side)
    best = (float("inf"), float("inf"))
    inked = max(1, int((bare.min(axis=2) < 250).sum()))
    holes = a.maybe.any() or b.maybe.any()
    for scale in SCALES:
        moved, moved_full = _scaled(bare_b, scale), _scaled(full_b, scale)
        spots = {_fit(bare, moved)} | ({_fit(full, moved_full)} if holes else set())
        for y, x in sorted(spots):
            gap = _gap(bare, _laid(moved, bare.shape[0], y, x))
            if holes:  # a hole in one may be art in the other that has the plate's colour
                gap = np.minimum(gap, _gap(full, _laid(moved_full, full.shape[0], y, x)))
            local = float(cv2.blur(gap, (PATCH, PATCH)).max())
            best = min(best, (local, float(gap.sum()) / inked))
        if best[0] < CLOSE:
            break
    return Likeness(best[1], best[0], side)


def _scaled(picture: Image, scale: float) -> Image:
    import cv2

    if scale == 1:
        return picture
    side = round(picture.shape[0] * scale)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (side, side), interpolation=how), dtype=np.uint8)


def _fit(first: Image, second: Image) -> tuple[int, int]:
    """Return where (y, x) `second` fits `first` best."""
    import cv2

    fit = cv2.matchTemplate(first, second, cv2.TM_SQDIFF)
    y, x = divmod(int(fit.argmin()), fit.shape[1])
    return y, x


def _laid(picture: Image, side: int, y: int, x: int) -> Image:
    out = np.full((side, side, 3), 255, dtype=np.uint8)
    out[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return out


def _gap(first: Image, second: Image) -> NDArray[np.float32]:
    """Return the Lab distance [H, W] of two pictures, each pixel to the nearest of the other's 3 x 3 pixels; the worse way."""
    import cv2

    one, two = (cv2.GaussianBlur(lab(p), (0, 0), 0.7) for p in (first, second))
    there, back = np.full((2, *one.shape[:2]), np.inf, dtype=np.float32)
    h, w = one.shape[:2]
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            p = (slice(max(0, dy), h + min(0, dy)), slice(max(0, dx), w + min(0, dx)))
            q = (slice(max(0, -dy), h + min(0, -dy)), slice(max(0, -dx), w + min(0, -dx)))
            gap = one[p] - two[q]
            square = np.einsum("ijk,ijk->ij", gap, gap)
            there[p] = np.minimum(there[p], square)
            back[q] = np.minimum(back[q], square)
    return np.sqrt(np.maximum(there, back))


def cosine(a: Cut, b: Cut) -> float:
    """Return the cosine of two copies' deep features."""
    smaller = max(24, min(max(a.picture.shape[:2]), max(b.picture.shape[:2])))
    x, y = (features.embed_one(square(c.picture, features.SIDE, smaller).tobytes()) for c in (a, b))
    return float(x @ y)


def same(x: Likeness) -> bool:
    """Return whether two copies show the very same thing."""
    return x.local < SAME
