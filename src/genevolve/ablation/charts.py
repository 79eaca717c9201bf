"""Two charts as inline SVG: intervals, one line an arm, and learning curves, one line an arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median, quantiles

PALETTE = ("#2f5bd3", "#c4572b", "#1b8a5a", "#8b46b8", "#b08900", "#0f8ba0", "#b3392f", "#6b7280", "#d0679d", "#4d7c0f")
"""Told apart on white and on black; an arm keeps its colour in all charts of a page."""
FAR = 3.0
"""So many widths of the middle half, or of an interval, from the others is far."""


def interval_chart(rows: Sequence[tuple[str, float, float, float]], label: str, zero: bool = False) -> str:
    """Return (name, mean, low, high) rows as points with bars; `zero` draws the line of no difference. Empty: no rows.

    A row far from all others, as that of an arm without a tool, would press the rest into a line: it is an arrow at the edge.
    """
    if not rows:
        return ""
    width, left, right, step, top = 680.0, 270.0, 70.0, 24.0, 10.0
    height = top + step * len(rows) + 26
    near = _near(rows)
    low, high = min(r[2] for r in near), max(r[3] for r in near)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    pad = (high - low) * 0.06 or 0.01
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = []
    if zero:
        parts.append(_line(x(0), top, x(0), height - 24, "var(--soft)", "stroke-dasharray:3 3"))
    for i, (name, mean, a, b) in enumerate(rows):
        y = top + step * (i + 0.5)
        sign = "+" if zero and mean >= 0 else ""
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        if low <= mean <= high:
            parts.append(_line(x(max(a, low)), y, x(min(b, high)), y, "var(--accent)", "stroke-width:2"))
            parts.append(f'<circle cx="{x(mean):.1f}" cy="{y:.1f}" r="4" style="fill:var(--accent)"/>')
        else:
            tip, back = (x(low), 9) if mean < low else (x(high), -9)
            corners = f"{tip:.1f},{y:.1f} {tip + back:.1f},{y - 5:.1f} {tip + back:.1f},{y + 5:.1f}"
            parts.append(f'<polygon points="{corners}" style="fill:var(--accent)"/>')
        parts.append(f'<text x="{width - right + 8}" y="{y + 4:.1f}">{sign}{mean:.4f}</text>')
    for value, anchor in ((low + pad, "start"), (high - pad, "end")):
        parts.append(f'<text x="{x(value):.1f}" y="{height - 6}" text-anchor="{anchor}">{value:.3f}</text>')
    return _svg(width, height, label, parts)


def _near(rows: Sequence[tuple[str, float, float, float]]) -> Sequence[tuple[str, float, float, float]]:
    if len(rows) < 4:
        return rows
    first, _, third = quantiles([r[1] for r in rows], n=4)
    width = FAR * max(third - first, median(r[3] - r[2] for r in rows))
    return [r for r in rows if first - width <= r[1] <= third + width] or rows


def curves_chart(series: Mapping[str, Sequence[tuple[float, float]]], colours: Mapping[str, str], label: str) -> str:
    """Return name -> (x, y) points as lines with a legend; an empty string when no point is finite."""
    drawn = {n: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for n, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return ""
    width, left, right, top, plot = 640.0, 64.0, 16.0, 12.0, 230.0
    height = top + plot + 30 + 18 * len(drawn)
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    pad = (max(ys) - min(ys)) * 0.08 or 0.01
    low, high, first, span = min(ys) - pad, max(ys) + pad, min(xs), (max(xs) - min(xs)) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - first) / span * (width - left - right), top + plot - (y - low) / (high - low) * plot

    parts = []
    for value in (low + (high - low) * share for share in (0.1, 0.5, 0.9)):
        y = at(first, value)[1]
        parts.append(_line(left, y, width - right, y, "var(--line)"))
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value, anchor in ((first, "start"), (first + span, "end")):
        parts.append(f'<text x="{at(value, low)[0]:.1f}" y="{top + plot + 16}" text-anchor="{anchor}">{value:g}</text>')
    for i, (name, points) in enumerate(drawn.items()):
        colour, y = colours[name], top + plot + 34 + 18 * i
        path = " ".join(f"{'L' if j else 'M'}{at(*p)[0]:.1f} {at(*p)[1]:.1f}" for j, p in enumerate(points))
        parts.append(f'<path d="{path}" fill="none" style="stroke:{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{at(*p)[0]:.1f}" cy="{at(*p)[1]:.1f}" r="2.5" style="fill:{colour}"/>' for p in points]
        parts.append(_line(left, y, left + 22, y, colour, "stroke-width:3"))
        parts.append(f'<text x="{left + 30}" y="{y + 4}">{escape(name)}</text>')
    return _svg(width, height, label, parts)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{colour};{more}"/>'


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
