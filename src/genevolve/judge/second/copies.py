"""Counts copies as connected components: what differs from the empty scene falls apart into stickers and plates.

Copies of one subject come out pixel for pixel alike (the generator stamps one drawing at whole pixels), so components
are sorted into classes of equal size and looks; a class has as many members as there are copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genevolve.judge.second.frame import Lab, Rgb, banner_places, empty, open_picture, recognise, to_lab
from genevolve.judge.second.frame import Setting as Setting
from genevolve.render.style import BANNER, CANVAS, PLATES
from genevolve.scene import Colour, TextPlace

Box = tuple[int, int, int, int]
Mask = NDArray[np.bool_]

DIFFERENT = 4.5
"""Lab distance from the empty scene (or from its shade) at which a pixel belongs to a subject."""
SHADE = np.array([20, 10, 32], dtype=np.float32)
"""The colour every shadow of the world is drawn in (render/sprite.py)."""
DEEPEST = 0.8
"""Share of SHADE in the deepest shadow."""
SPECK = 30
"""Components of fewer pixels are leftovers of soft edges."""
THUMB = 16
"""Side of the thumbnails that components are compared by, in pixels."""
TWIN = 9.0
"""Lab distance (85th percentile over the thumbnail: edges may be lost) up to which two components show the same."""
PLATE = 14.0
"""Median Lab distance of a disc's ring up to which it is a plate of that colour."""


@dataclass(frozen=True, eq=False)
class Unit:
    """One connected component: its box (left, top, right, bottom; exclusive), plate, area in pixels and thumbnail."""

    box: Box
    colour: Colour | None
    area: int
    thumb: Lab = field(repr=False)


@dataclass(frozen=True, eq=False)
class Group:
    """Components that belong to one subject; all on plates of one colour, or all on none."""

    units: tuple[Unit, ...]

    @property
    def colour(self) -> Colour | None:
        return self.units[0].colour


@dataclass(frozen=True, eq=False)
class Picture:
    """What this judge read from one picture."""

    rgb: Rgb
    setting: Setting
    behind: Rgb
    """the empty scene; the picture itself when the setting is not known"""
    banners: tuple[TextPlace, ...]
    mask: Mask
    units: tuple[Unit, ...]


def read_picture(data: bytes) -> Picture:
    """Read a picture; raise JudgeError when the bytes are none."""
    rgb = open_picture(data)
    lab, setting = to_lab(rgb), recognise(rgb)
    banners = tuple(banner_places(lab))
    if not setting.known:
        return Picture(rgb, setting, rgb, banners, np.zeros(rgb.shape[:2], dtype=np.bool_), ())
    behind = empty(setting)
    mask = filled(subject_pixels(rgb, behind))
    for place in banners:
        left, top, right, bottom = BANNER[place]
        mask[top - 4 : bottom + 8, left - 4 : right + 4] = False
    return Picture(rgb, setting, behind, banners, mask, tuple(components(lab, mask)))


def subject_pixels(rgb: Rgb, behind: Rgb) -> Mask:
    """Return the pixels [H, W] that are neither the empty scene nor the empty scene in shade."""
    scene, seen = behind.astype(np.float32), rgb.astype(np.float32)
    bright, dark = scene.mean(axis=2), float(SHADE.mean())
    depth = np.clip((bright - seen.mean(axis=2)) / np.maximum(bright - dark, 1.0), 0.0, DEEPEST)[:, :, None]
    shaded = (scene + depth * (SHADE - scene)).round().astype(np.uint8)
    lab = to_lab(rgb)
    gaps = [np.linalg.norm(lab - to_lab(b), axis=2) for b in (behind, shaded)]
    return np.asarray(np.minimum(*gaps) > DIFFERENT, dtype=np.bool_)


def filled(mask: Mask) -> Mask:
    """Return a mask [H, W] with its holes: art in the backdrop's colour is no hole, its outline encloses it."""
    return ~reaching_the_edge(~mask)


def reaching_the_edge(mask: Mask) -> Mask:
    """Return those 4-connected parts of a mask [H, W] that touch its edge."""
    import cv2

    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    keep = np.zeros(count, dtype=np.bool_)
    keep[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    keep[0] = False  # label 0 is all that is not set
    return np.asarray(keep[labels], dtype=np.bool_)


def components(lab: Lab, mask: Mask) -> list[Unit]:
    """Return the connected components of a mask, in reading order."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    out = []
    for i in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[i])
        if area < SPECK:
            continue
        crop, part = lab[y : y + h, x : x + w], labels[y : y + h, x : x + w] == i
        colour = _plate(crop, part)
        shown = part
        if colour is not None:  # a pale rim in shadow may be lost on pale ground, at the foot; a plate is round
            w = h = max(w, h)
            crop, shown = lab[y : y + h, x : x + w], _radius(h, w) < 0.85
        masked = np.where(shown[:, :, None], crop, np.float32(0))
        thumb = np.asarray(cv2.resize(masked, (THUMB, THUMB), interpolation=cv2.INTER_AREA), dtype=np.float32)
        out.append(Unit((x, y, x + w, y + h), colour, area, thumb))
    return sorted(out, key=lambda u: (u.box[1], u.box[0]))


def _plate(lab: Lab, part: Mask) -> Colour | None:
    """Return the colour of the plate that a component is, or None: a filled disc with a ring of that colour."""
    h, w = part.shape
    if abs(w - h) > 4 or min(h, w) < 18:
        return None
    radius = _radius(h, w)
    if part[radius < 0.93].mean() < 0.97 or part[radius > 1.08].any():
        return None
    ring = lab[(radius > 0.85) & (radius < 0.9)]
    known = {c: to_lab(np.array([[rgb]], dtype=np.uint8))[0, 0] for c, rgb in PLATES.items()}
    gaps = {c: float(np.median(np.linalg.norm(ring - tone, axis=1))) for c, tone in known.items()}
    best = min(gaps, key=lambda c: gaps[c])
    return best if gaps[best] < PLATE else None


def _radius(h: int, w: int) -> NDArray[np.float64]:
    """Return how far each pixel [h, w] lies from the middle; 1 is half the longer side."""
    y, x = np.mgrid[0:h, 0:w]
    return np.asarray(np.hypot(2 * x + 1 - w, 2 * y + 1 - h) / max(h, w))


def twins(a: Unit, b: Unit) -> bool:
    """Return whether two components show the same at the same size."""
    if a.colour != b.colour:
        return False
    size_a, size_b = ((u.box[2] - u.box[0], u.box[3] - u.box[1]) for u in (a, b))
    if any(abs(p - q) > 2 + 0.03 * max(p, q) for p, q in zip(size_a, size_b, strict=True)):
        return False
    return float(np.percentile(np.linalg.norm(a.thumb - b.thumb, axis=2), 85)) < TWIN


def classes(units: Sequence[Unit]) -> list[list[Unit]]:
    """Return the components sorted into classes of twins, the class with the largest members first."""
    out: list[list[Unit]] = []
    for unit in units:
        home = next((c for c in out if twins(c[0], unit)), None)
        if home is None:
            out.append([unit])
        else:
            home.append(unit)
    return sorted(out, key=lambda c: -c[0].area)


def groups(units: Sequence[Unit], subjects: int) -> list[Group]:
    """Return the components sorted by what they may be copies of, when so many subjects are asked.

    Every class of plates is a group; what stands on no plate is one, or two when two subjects are asked, no plate is
    seen, and one of the picture's middle lines parts them.
    """
    plated = [Group(tuple(c)) for c in classes([u for u in units if u.colour is not None])]
    loose = [u for u in units if u.colour is None]
    if not loose:
        return plated
    parts = _parted(loose) if subjects == 2 and not plated else [loose]
    return plated + [Group(tuple(p)) for p in parts]


def _parted(units: Sequence[Unit]) -> list[list[Unit]]:
    """Return the components left and right of, or above and below, the middle line that parts unlike from unlike."""
    middle = CANVAS // 2
    kinds = classes(units)
    best, least = [list(units)], 0.5
    for axis in (0, 1):
        low = [u for u in units if u.box[axis + 2] <= middle + 3]
        high = [u for u in units if u.box[axis] >= middle - 3]
        if not low or not high or len(low) + len(high) != len(units):
            continue
        torn = sum(sum(u.area for u in k) for k in kinds if any(u in low for u in k) and any(u in high for u in k))
        share = torn / sum(u.area for u in units)
        if share < least:
            best, least = [low, high], share
    return best


def copies(group: Group, repeats: int = 1) -> list[Box]:
    """Return the box of each copy; `repeats`: how often the subject's own drawing repeats its largest part."""
    kinds = classes(group.units)
    n = len(kinds[0])
    if repeats > 1 and n % repeats == 0:
        n //= repeats
    boxes = [around([u.box for u in part]) for part in _chunks(kinds[0], n)]
    for kind in kinds[1:]:
        if len(kind) % n == 0:
            boxes = [around([b, *(u.box for u in p)]) for b, p in zip(boxes, _chunks(kind, n), strict=True)]
            continue
        for unit in kind:  # a part that is seen in some copies only: to the nearest one
            near = min(range(n), key=lambda i: _distance(boxes[i], unit.box))
            boxes[near] = around([boxes[near], unit.box])
    return boxes


def _chunks(units: Sequence[Unit], n: int) -> list[list[Unit]]:
    """Return the components, in reading order, in n equal runs."""
    size = len(units) // n
    return [list(units[i * size : (i + 1) * size]) for i in range(n)]


def around(boxes: Sequence[Box]) -> Box:
    """Return the box around boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _distance(a: Box, b: Box) -> float:
    """Return how far two boxes lie apart, in pixels."""
    return float(np.hypot(max(a[0] - b[2], b[0] - a[2], 0), max(a[1] - b[3], b[1] - a[3], 0)))
