"""Which entities look alike: nearest neighbours of tiny renders. They are the distractors of the image search."""

from __future__ import annotations

import io
from collections.abc import Mapping

PIXELS = 18
MOST = 6


def thumbnails(svgs: Mapping[str, str]) -> dict[str, bytes]:
    """Return each SVG as PIXELS x PIXELS RGB bytes on mid grey (white art must not vanish)."""
    import resvg_py
    from PIL import Image

    out = {}
    for key, svg in svgs.items():
        png = bytes(
            resvg_py.svg_to_bytes(
                svg_string=svg, width=PIXELS, height=PIXELS, background="#bbbbbb", skip_system_fonts=True
            )
        )
        out[key] = Image.open(io.BytesIO(png)).convert("RGB").tobytes()
    return out


def nearest(pixels: Mapping[str, bytes], names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return each key's MOST nearest others: first those that share a word of the name, then those that look alike."""
    import numpy as np

    keys = sorted(pixels)
    table = np.stack([np.frombuffer(pixels[k], dtype=np.uint8).astype(np.int32) for k in keys])
    own = {k: set(names[k].lower().split()) - {"flag", "of", "and"} for k in keys}
    out = {}
    for i, key in enumerate(keys):
        distance = np.abs(table - table[i]).sum(axis=1).tolist()
        order = sorted((not own[key] & own[other], distance[j], other) for j, other in enumerate(keys) if other != key)
        out[key] = tuple(other for _, _, other in order[:MOST])
    return out
