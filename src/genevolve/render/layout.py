"""Where things go: one box per subject, one cell per copy. Pure geometry in canvas pixels. (Ours.)"""

from __future__ import annotations

import math
from collections.abc import Sequence

from genevolve.render.guess import OPPOSITE
from genevolve.render.style import GAP, MAX_COPY, Box, half
from genevolve.scene import Position

UPRIGHT: tuple[Position, ...] = ("left", "right")


def subject_boxes(positions: Sequence[Position | None], zone: Box) -> list[Box]:
    """Return one box per subject (one or two) inside the zone; boxes never overlap and keep to their halves."""
    if len(positions) == 1:
        return [half(positions[0], zone) if positions[0] else zone]
    first, second = positions
    a: Position = first or (OPPOSITE[second] if second else "left")
    b: Position = second or OPPOSITE[a]
    if a == b:  # one half for both: split it across
        parts: tuple[Position, Position] = ("upper", "lower") if a in UPRIGHT else ("left", "right")
        return [half(parts[0], half(a, zone)), half(parts[1], half(a, zone))]
    if (a in UPRIGHT) == (b in UPRIGHT):
        return [half(a, zone), half(b, zone)]
    # A side for one and a level for the other: the second keeps to the quarter that the first leaves free.
    return [half(a, zone), half(OPPOSITE[a], half(b, zone))]


def cells(count: int, aspect: tuple[float, float], disc: bool, box: Box) -> list[tuple[int, int, int, int]]:
    """Return (left, top, width, height) in whole pixels per copy, all of one size, as large as the box allows.

    `aspect` is (width, height) with the larger one 1. Discs may also stand in a zigzag, which makes them larger.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    size, columns = _grid(count, aspect, width, height)
    if disc and count > 1:
        zigzag = min(_zigzag(count, width, height), float(MAX_COPY))
        if zigzag > size * 1.08:
            return _zigzag_cells(count, int(zigzag), box)
    w, h = int(aspect[0] * size), int(aspect[1] * size)
    rows = math.ceil(count / columns)
    y = (top + bottom - rows * h - (rows - 1) * GAP) / 2
    out = []
    for row in range(rows):
        k = min(columns, count - row * columns)
        x = (left + right - k * w - (k - 1) * GAP) / 2
        out += [(int(x + j * (w + GAP)), int(y), w, h) for j in range(k)]
        y += h + GAP
    return out


def _grid(count: int, aspect: tuple[float, float], width: float, height: float) -> tuple[float, int]:
    """Return the largest size of a copy in a grid, and its number of columns."""
    best, columns = 0.0, 1
    for c in range(1, count + 1):
        rows = math.ceil(count / c)
        fits = min((width - GAP * (c - 1)) / c / aspect[0], (height - GAP * (rows - 1)) / rows / aspect[1])
        if fits > best * 1.01:
            best, columns = fits, c
    return min(best, float(MAX_COPY)), columns


def _zigzag(count: int, width: float, height: float) -> float:
    """Return the largest diameter of discs in a zigzag along the longer side."""
    long, short = max(width, height), min(width, height)
    for d in range(int(short), 8, -1):
        step, sway = (long - d) / (count - 1), short - d
        if step > 0 and math.hypot(step, sway) >= d + GAP and (count < 3 or 2 * step >= d + GAP):
            return float(d)
    return 0.0


def _zigzag_cells(count: int, d: int, box: Box) -> list[tuple[int, int, int, int]]:
    left, top, right, bottom = box
    tall = bottom - top >= right - left
    out = []
    for i in range(count):
        share = i / (count - 1)
        if tall:
            out.append((left if i % 2 == 0 else right - d, int(top + share * (bottom - top - d)), d, d))
        else:
            out.append((int(left + share * (right - left - d)), bottom - d if i % 2 == 0 else top, d, d))
    return out
