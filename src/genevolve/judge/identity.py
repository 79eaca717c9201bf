"""Is it the very thing? Cuts a copy out of its picture and compares it with a copy cut out of the ground truth.

What stands around the subject (light, pattern, ground, plate, sticker outline, shadows) is cut away first, so that only
the subject itself is compared, at one size: Lab colour differences point by point, Lab histograms, and
EfficientNet-Lite0 cosines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genevolve.judge import features
from genevolve.judge.backdrop import EXACT, Image, Mask, outside, unlike
from genevolve.judge.layout import Cell, tight
from genevolve.render.style import PLATES, RIM_RGB

SIDE = 56
"""Copies are compared at most this large, in pixels."""
PLAY = 8
SCALES = (1.0, 0.96, 1.04, 0.92, 1.08, 0.86, 1.15)
"""Pixels and scales of play: a thin part lost at one size (an antenna, a stalk) shifts the bounds of the rest."""


@dataclass(frozen=True, eq=False)
class Cut:
    """One copy on white: RGB [h, w, 3], tight around the subject, and which pixels are subject."""

    picture: Image
    mask: Mask


@dataclass(frozen=True)
class Likeness:
    """How alike two copies are."""

    mean: float
    """mean Lab distance over both subjects"""
    worst: float
    """98th percentile of the Lab distance: one wrong star shows here"""
    histogram: float
    """intersection of the Lab histograms, 0-1"""
    cosine: float
    """of the deep features, -1 to 1"""


def cut(picture: Image, behind: NDArray[np.float32], cell: Cell) -> Cut | None:
    """Return the copy of a cell cut out; `behind` is the empty scene [H, W, 3]. None when nothing is left."""
    import cv2

    left, top, right, bottom = cell.bounds
    crop = np.ascontiguousarray(picture[top:bottom, left:right])
    h, w = crop.shape[:2]
    if cell.colour is None:
        back = behind[top:bottom, left:right]
        beyond = np.zeros((h, w), dtype=bool)
    else:
        back = np.broadcast_to(np.array(PLATES[cell.colour], dtype=np.float32), crop.shape)
        y, x = np.mgrid[0:h, 0:w]
        beyond = np.hypot((x + 0.5 - w / 2) / (w / 2), (y + 0.5 - h / 2) / (h / 2)) > 0.9
    like = ~unlike(crop, back) | beyond
    exact = (np.abs(crop.astype(np.float32) - back).max(axis=2) <= EXACT) | beyond
    out = outside(like, exact)
    white = np.abs(crop.astype(np.int16) - np.array(RIM_RGB)).max(axis=2) <= 5
    # The sticker's outline is at least three pixels wide: so much around the background is outline, soft edge included.
    reach = _pad(out, 2)
    count, labels = cv2.connectedComponents(white.astype(np.uint8), connectivity=8)
    touching = np.unique(labels[reach & white]) if count > 1 else np.empty(0, dtype=np.int32)
    out = _closed(reach | (np.isin(labels, touching) & white))
    mask = _without_specks(~out)
    bounds = tight(mask)
    if bounds is None:
        return None
    x0, y0, x1, y1 = bounds
    mask = mask[y0:y1, x0:x1]
    return Cut(np.where(mask[:, :, None], crop[y0:y1, x0:x1], np.uint8(255)), mask)


def _pad(mask: Mask, by: int) -> Mask:
    import cv2

    kernel = np.ones((2 * by + 1, 2 * by + 1), dtype=np.uint8)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)


def _closed(mask: Mask) -> Mask:
    """Close seams of up to two pixels: the soft edge between outline and background. Beyond the crop all is outside."""
    import cv2

    wide = np.pad(mask.astype(np.uint8), 3, constant_values=1)
    closed = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, np.ones((3, 3), dtype=np.uint8))
    return np.asarray(closed[3:-3, 3:-3] > 0)


def _without_specks(mask: Mask) -> Mask:
    """Drop specks and slivers of two pixels: left-overs of soft edges."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count == 1:
        return mask
    thick = np.zeros(count)
    np.maximum.at(thick, labels.ravel(), cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3).ravel())
    keep = (stats[:, cv2.CC_STAT_AREA] >= max(4, 0.004 * mask.size)) & (thick > 1.5)
    keep[0] = False
    return np.asarray(keep[labels] if keep.any() else mask, dtype=np.bool_)


def square(copy: Cut, side: int, most: int | None = None) -> Image:
    """Return the copy centred on a white square of `side` pixels (first brought down to `most`, so that blur is equal)."""
    import cv2

    picture = copy.picture
    for longest in (most, side):
        if longest is None:
            continue
        h, w = picture.shape[:2]
        scale = longest / max(h, w)
        if scale >= 1 and longest != side:
            continue
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    h, w = picture.shape[:2]
    out = np.full((side, side, 3), 255, dtype=np.uint8)
    y, x = (side - h) // 2, (side - w) // 2
    out[y : y + h, x : x + w] = picture
    return out


def lab(picture: Image) -> NDArray[np.float32]:
    """Return CIE Lab values [H, W, 3] of an RGB picture."""
    import cv2

    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB), dtype=np.float32)


def distance(a: Cut, b: Cut) -> tuple[float, float]:
    """Return (mean, 98th percentile) Lab distance of two copies at the smaller one's size, laid over each other."""
    import cv2

    smaller = min(SIDE, max(a.picture.shape[:2]), max(b.picture.shape[:2]))
    first = cv2.copyMakeBorder(square(a, smaller), PLAY, PLAY, PLAY, PLAY, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    second = square(b, smaller)
    best = (float("inf"), float("inf"))
    for scale in SCALES:
        laid = _laid_over(first, second, scale)
        best = min(best, _gap(first, laid))
        if best[0] < 4.0:  # as close as two sizes of one drawing come; no scale does better
            break
    return best


def _laid_over(first: Image, second: Image, scale: float) -> Image:
    """Return `second` scaled and moved to where it fits `first` best, on a white canvas of the size of `first`."""
    import cv2

    side = min(round(second.shape[0] * scale), first.shape[0])
    moved = cv2.resize(second, (side, side), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    y, x = np.unravel_index(
        int(cv2.matchTemplate(first, moved, cv2.TM_SQDIFF).argmin()), (first.shape[0] - side + 1,) * 2
    )
    laid = np.full_like(first, 255)
    laid[y : y + side, x : x + side] = moved
    return laid


def _gap(first: Image, second: Image) -> tuple[float, float]:
    import cv2

    x, y = (cv2.GaussianBlur(lab(p), (0, 0), 1.0) for p in (first, second))
    gap = np.sqrt(((x - y) ** 2).sum(axis=2))
    subject = (x[:, :, 0] < 99) | (y[:, :, 0] < 99)
    inside = gap[subject] if subject.any() else gap.ravel()
    return float(inside.mean()), float(np.quantile(inside, 0.98))


def histogram(copy: Cut) -> NDArray[np.float32]:
    """Return the Lab histogram of the subject, 6 x 8 x 8 bins, softened, sum 1."""
    values = lab(copy.picture)[copy.mask]
    edges = ((0, 100), (-90, 100), (-110, 100))
    counts, _ = np.histogramdd(values, bins=(6, 8, 8), range=edges)
    soft = counts.astype(np.float32)
    for axis in range(3):
        soft = 0.5 * soft + 0.25 * (np.roll(soft, 1, axis) + np.roll(soft, -1, axis))
    return np.asarray(soft / max(float(soft.sum()), 1e-6), dtype=np.float32)


def likenesses(pairs: list[tuple[Cut, Cut]]) -> list[Likeness]:
    """Return how alike the copies of each pair are; all pairs are embedded in one batch."""
    if not pairs:
        return []
    crops = []
    for a, b in pairs:
        smaller = max(24, min(max(a.picture.shape[:2]), max(b.picture.shape[:2])))
        crops += [square(a, features.SIDE, smaller), square(b, features.SIDE, smaller)]
    deep = features.embed(np.stack(crops))
    out = []
    for i, (a, b) in enumerate(pairs):
        mean, worst = distance(a, b)
        shared = float(np.minimum(histogram(a), histogram(b)).sum())
        out.append(Likeness(mean, worst, shared, float(deep[2 * i] @ deep[2 * i + 1])))
    return out


def same(x: Likeness) -> bool:
    """Return whether two copies show the very same thing (PROVISIONAL thresholds: not yet fitted on `sft` entities alone)."""
    return x.mean < 16 and x.histogram > 0.8 and x.cosine > 0.7 and x.worst < 28 + 2.2 * x.mean
