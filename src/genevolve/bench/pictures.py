"""Pictures and charts as text that fits inside one HTML file: data addresses and inline SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

MAX_SIDE = 384
"""Pixels: larger pictures are shrunk before they are inlined."""
MAX_SVG = 400_000
"""Bytes: a reference SVG beyond this is not inlined."""


@dataclass(frozen=True)
class Picture:
    """A data address, or the sentence that says why there is none."""

    uri: str = ""
    problem: str = ""


def inline(root: Path | None, name: str | None, missing: str = "No picture.") -> Picture:
    """Return the picture `root/name` as a data address; never raises for a bad file, and never reads outside `root`.

    An SVG goes in as it is: inside `<img>` a browser runs no script of it and loads nothing for it.
    """
    if root is None or not name:
        return Picture(problem=missing)
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        return Picture(problem="The picture's path leads out of its folder.")
    try:
        if path.suffix.lower() == ".svg":
            return _svg(path)
        return Picture(f"data:image/png;base64,{_base64(_png(path))}")
    except OSError as e:
        return Picture(problem=f"The picture cannot be read ({e.strerror or 'damaged file'}).")
    except Exception:  # a decoder fails in many ways on a hostile file, and no picture may cost the report
        return Picture(problem="The picture is damaged.")


def _svg(path: Path) -> Picture:
    if path.stat().st_size > MAX_SVG:
        return Picture(problem="The reference is too large to show.")
    return Picture(f"data:image/svg+xml;base64,{_base64(path.read_bytes())}")


def _png(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        small = image.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    out = io.BytesIO()
    small.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def line_chart(points: Sequence[tuple[float, float]], label: str) -> str:
    """Return an inline SVG of (x, y) points with labelled axes; an empty string when no point is finite."""
    rows = sorted((float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y))
    if not rows:
        return ""
    width, height, left, right, top, bottom = 440.0, 220.0, 44.0, 16.0, 16.0, 28.0
    xs, ys = [x for x, _ in rows], [y for _, y in rows]
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.12 or abs(high) * 0.1 or 0.1
    low, high = low - pad, high + pad
    span = (xs[-1] - xs[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - xs[0]) / span * (width - left - right),
            height - bottom - (y - low) / (high - low) * (height - top - bottom),
        )

    path = " ".join(f"{'L' if i else 'M'}{at(x, y)[0]:.1f} {at(x, y)[1]:.1f}" for i, (x, y) in enumerate(rows))
    grid = ""
    for value in (low + (high - low) * share for share in (0.1, 0.5, 0.9)):
        y = at(0, value)[1]
        grid += f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" style="stroke:var(--line)"/>'
        grid += f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    dots = "".join(
        f'<circle cx="{at(x, y)[0]:.1f}" cy="{at(x, y)[1]:.1f}" r="3" style="fill:var(--accent)"/>' for x, y in rows
    )
    ends = (
        f'<text x="{left}" y="{height - 8}">{xs[0]:g}</text>'
        f'<text x="{width - right}" y="{height - 8}" text-anchor="end">{xs[-1]:g}</text>'
    )
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">{grid}'
        f'<path d="{path}" fill="none" style="stroke:var(--accent)" stroke-width="2" stroke-linejoin="round"/>'
        f"{dots}{ends}</svg>"
    )
