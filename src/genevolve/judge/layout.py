"""Where the copies stand: from the foreground of a picture to cells, one per copy, with the colour of its plate.

A copy on a plate is a disc of one of the six plate colours. Copies without plates are told apart by what every picture
of the world keeps: copies of one subject are alike, of one size, in rows, GAP pixels apart, and two subjects are parted
by one of the picture's middle lines. Several readings can be possible (a fork and a knife, or one pair of them?), so
all are returned, the one with most copies first.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from genevolve.judge.backdrop import Image, Mask, unlike
from genevolve.render.style import CANVAS, GAP, PLATES
from genevolve.scene import Colour

Bounds = tuple[int, int, int, int]

MOST = 4
"""Copies of one subject that a request can ask for."""
LEAST = 12
"""No copy is smaller than this in both directions, in pixels; what is smaller is left-over of a drawing."""
ALIKE = 28.0
"""Root mean square difference per channel (0-255) up to which two cells show the same."""
RING = (0.84, 0.895)
"""Share of a plate's radius where only plate is seen, corners of large art aside."""


@dataclass(frozen=True)
class Cell:
    """One copy: its bounds (left, top, right, bottom; exclusive), its plate, and its group (copies read together)."""

    bounds: Bounds
    colour: Colour | None
    group: int

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.bounds
        return (left + right) / 2, (top + bottom) / 2


def readings(picture: Image, mask: Mask) -> list[list[Cell]]:
    """Return every way to read the foreground as cells; the likeliest first; [[]] when nothing is there."""
    discs: list[Cell] = []
    loose: list[Bounds] = []
    rest = mask.copy()
    for bounds, region in _components(mask):
        colour = _plate_colour(picture, bounds, region)
        if colour is None:
            loose.append(bounds)
        else:
            left, top, right, bottom = bounds
            rest[top:bottom, left:right] &= ~region
            discs.append(Cell(bounds, colour, -1))
    inside = [p for p in _merged(loose) if max(p[2] - p[0], p[3] - p[1]) >= LEAST]
    pieces = [p for p in inside if not any(_holds(d.bounds, p) for d in discs)]
    plated = _numbered(picture, mask, discs)
    return [plated + cells for cells in _unplated(picture, rest, pieces)] if pieces else [plated]


def _numbered(picture: Image, mask: Mask, discs: list[Cell]) -> list[Cell]:
    """Group discs: copies of one subject share plate, size and looks."""
    groups: list[Cell] = []
    out = []
    for disc in sorted(discs, key=lambda c: c.bounds):
        fits = (
            i
            for i, first in enumerate(groups)
            if first.colour == disc.colour and _alike(picture, mask, [first.bounds, disc.bounds])
        )
        number = next(fits, len(groups))
        if number == len(groups):
            groups.append(disc)
        out.append(Cell(disc.bounds, disc.colour, number))
    return out


def _components(mask: Mask) -> list[tuple[Bounds, Mask]]:
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    out = []
    for i in range(1, count):
        x, y, w, h = (int(v) for v in stats[i, :4])
        out.append(((x, y, x + w, y + h), labels[y : y + h, x : x + w] == i))
    return out


def _plate_colour(picture: Image, bounds: Bounds, region: Mask) -> Colour | None:
    """Return the plate's colour when the component is a disc with a plate's ring, else None."""
    left, top, right, bottom = bounds
    w, h = right - left, bottom - top
    if min(w, h) < 20 or abs(w - h) > 3:
        return None
    y, x = np.mgrid[0:h, 0:w]
    radius = np.hypot((x + 0.5 - w / 2) / (w / 2), (y + 0.5 - h / 2) / (h / 2))
    if region[radius > 1.06].any() or region[(radius > 0.95) & (radius < 0.99)].mean() < 0.9:
        return None
    crop = picture[top:bottom, left:right]
    ring = crop[(radius > RING[0]) & (radius < RING[1])][None]
    shares = {c: float((~unlike(ring, np.array(rgb, dtype=np.float32))).mean()) for c, rgb in PLATES.items()}
    best = max(shares, key=lambda c: shares[c])
    return best if shares[best] >= 0.45 else None


def _merged(boxes: list[Bounds], gap: int = 3) -> list[Bounds]:
    """Join boxes that overlap or nearly touch: parts of one drawing."""
    boxes = list(boxes)
    while True:
        for i, j in itertools.combinations(range(len(boxes)), 2):
            a, b = boxes[i], boxes[j]
            if a[0] - gap < b[2] and b[0] - gap < a[2] and a[1] - gap < b[3] and b[1] - gap < a[3]:
                boxes[i] = _around([a, b])
                del boxes[j]
                break
        else:
            return boxes


def _holds(outer: Bounds, inner: Bounds) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def _around(boxes: list[Bounds]) -> Bounds:
    return (
        min(b[0] for b in boxes),
        min(b[1] for b in boxes),
        max(b[2] for b in boxes),
        max(b[3] for b in boxes),
    )


def _unplated(picture: Image, mask: Mask, pieces: list[Bounds]) -> list[list[Cell]]:
    """Return the readings of copies without plates as one group or as two beside or above each other."""
    found: list[tuple[tuple[int, int], list[Cell]]] = []
    for parts in _partings(pieces):
        per_part = [_grids(picture, mask, part) for part in parts]
        for chosen in itertools.product(*per_part):
            cells = [Cell(b, None, 100 + i) for i, boxes in enumerate(chosen) for b in boxes]
            # Most copies first; among equals fewer groups, for what looks alike is one subject.
            found.append(((-len(cells), len(parts)), cells))
    return [cells for _, cells in sorted(found, key=lambda row: row[0])][:24]


def _partings(pieces: list[Bounds]) -> list[list[list[Bounds]]]:
    """Return the ways to split the pieces between subjects: not at all, and along each free middle line."""
    out = [[pieces]]
    middle = CANVAS / 2
    for axis in (0, 1):
        low = [p for p in pieces if p[axis + 2] <= middle + 2]
        high = [p for p in pieces if p[axis] >= middle - 2]
        if low and high and len(low) + len(high) == len(pieces):
            out.append([low, high])
    return out


def _grids(picture: Image, mask: Mask, pieces: list[Bounds]) -> list[list[Bounds]]:
    """Return the grids of 1 to MOST alike cells that the pieces can be; one cell is always among them."""
    whole = _around(pieces)
    out = [sorted(pieces)] if 1 < len(pieces) <= MOST and _alike(picture, mask, pieces) else []
    for count in range(MOST, 1, -1):
        for columns in range(1, count + 1):
            # On pale paper a pale outline is lost and the gap looks wider than it is.
            tried = (_grid(picture, mask, whole, count, columns, gap) for gap in (GAP, GAP + 4, GAP + 8))
            cells = next((c for c in tried if c), None)
            if cells:
                out.append(cells)
    return [*out, [whole]]


def _grid(picture: Image, mask: Mask, whole: Bounds, count: int, columns: int, gap: int) -> list[Bounds] | None:
    left, top, right, bottom = whole
    rows = math.ceil(count / columns)
    w = (right - left - (columns - 1) * gap) / columns
    h = (bottom - top - (rows - 1) * gap) / rows
    if min(w, h) < 8:
        return None
    cells = []
    free = mask.copy()
    for row in range(rows):
        k = min(columns, count - row * columns)
        x = (left + right - k * w - (k - 1) * gap) / 2
        y = top + row * (h + gap)
        for j in range(k):
            # Two pixels of play: cells stand on whole pixels, the grid does not.
            x0, y0 = max(0, round(x + j * (w + gap)) - 2), max(0, round(y) - 2)
            x1, y1 = x0 + math.ceil(w) + 4, y0 + math.ceil(h) + 4
            cell = tight(mask[y0:y1, x0:x1])
            if cell is None:
                return None
            free[y0:y1, x0:x1] = False
            cells.append((x0 + cell[0], y0 + cell[1], x0 + cell[2], y0 + cell[3]))
    if free[top:bottom, left:right].any() or not _alike(picture, mask, cells):
        return None
    return cells


def tight(mask: Mask) -> Bounds | None:
    """Return the bounds of what is set, or None."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(ys):
        return None
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _alike(picture: Image, mask: Mask, cells: list[Bounds]) -> bool:
    """Return whether all cells have one size and show the same."""
    import cv2

    widths, heights = [c[2] - c[0] for c in cells], [c[3] - c[1] for c in cells]
    if max(widths) - min(widths) > 4 or max(heights) - min(heights) > 4:
        return False
    inset = 3  # room to slide: bounds are off by a pixel or two where an outline is lost
    first = _crop(picture, mask, cells[0])[inset:-inset, inset:-inset]
    for cell in cells[1:]:
        other = cv2.copyMakeBorder(_crop(picture, mask, cell), 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        if float(cv2.matchTemplate(other, first, cv2.TM_SQDIFF).min()) > ALIKE**2 * first.size:
            return False
    return True


def _crop(picture: Image, mask: Mask, cell: Bounds) -> Image:
    left, top, right, bottom = cell
    return np.where(mask[top:bottom, left:right, None], picture[top:bottom, left:right], np.uint8(255))
