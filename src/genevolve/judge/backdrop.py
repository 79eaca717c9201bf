"""What stands behind the subjects: which light, pattern and ground a picture shows, and which pixels are not background.

The embedded world's scenery is a closed set (5 lights x 5 patterns x 5 grounds, none included, always drawn alike), so
the judge knows every backdrop by heart and names the one that most pixels of the picture agree with.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from genevolve.judge.base import JudgeError
from genevolve.render import scenery
from genevolve.render.style import BANNER, BANNER_RGB, CANVAS, GROUND_TOP, LIGHTS
from genevolve.scene import Light, Material, Pattern, TextPlace

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

MAX_BYTES = 20_000_000
SAME = 6
"""Largest difference per channel at which two pixels are the same: rounding, not drawing."""
AGREE = 0.25
"""Share of the sampled pixels that must agree with a backdrop before it counts as seen (subjects hide the rest)."""
_GRID = np.indices((CANVAS, CANVAS))[:, ::5, ::4].reshape(2, -1)
_SKY = tuple(_GRID[:, _GRID[0] < GROUND_TOP - 14])
_GROUND = tuple(_GRID[:, _GRID[0] >= GROUND_TOP + 6])
EXACT = 3.0
"""Largest difference per channel of a background pixel that no shadow falls on."""
SHADOW = np.array([20.0, 13.0, 36.0], dtype=np.float32)
"""Colour that contact shadows and stickers' shadows darken towards."""
DARKEST = 0.75
"""A shadow never covers more than this."""


@dataclass(frozen=True)
class Backdrop:
    """What was seen behind the subjects; `found` False: no known backdrop agrees (all else is then None)."""

    found: bool
    light: Light | None = None
    pattern: Pattern | None = None
    material: Material | None = None


def decode(data: bytes) -> Image:
    """Return a picture as RGB [CANVAS, CANVAS, 3]; raise JudgeError when the bytes hold no whole picture of that size."""
    from PIL import Image as Pillow

    if len(data) > MAX_BYTES:
        raise JudgeError(f"the picture has {len(data):,} bytes, more than {MAX_BYTES:,}")
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > 16_000_000:
                raise JudgeError(f"the picture is too large ({picture.width} x {picture.height})")
            rgb = picture.convert("RGB")
    except JudgeError:
        raise
    except Exception as e:  # Pillow raises many kinds on hostile bytes; each means the same here
        raise JudgeError(f"the bytes are no readable picture ({type(e).__name__}: {e})") from e
    if rgb.size != (CANVAS, CANVAS):  # made smaller it would be read, and judged by what the scaling did to it
        raise JudgeError(
            f"the picture has {rgb.width} x {rgb.height} pixels; this judge reads {CANVAS} x {CANVAS} alone"
        )
    return np.asarray(rgb, dtype=np.uint8)


@lru_cache(maxsize=160)
def drawn(light: Light | None, pattern: Pattern | None, material: Material | None) -> Image:
    """Return an empty scene [CANVAS, CANVAS, 3], as every picture of the world with this backdrop begins."""
    return np.asarray(scenery.picture(light, pattern, material).convert("RGB"), dtype=np.uint8)


@lru_cache(maxsize=1)
def _skies() -> tuple[tuple[tuple[Light | None, Pattern | None], ...], NDArray[np.int16]]:
    """Return the skies and their sampled pixels [skies, SAMPLES, 3]."""
    kinds = tuple((light, pattern) for light in LIGHTS for pattern in (None, *get_args(Pattern)))
    return kinds, np.stack([drawn(light, pattern, None)[_SKY] for light, pattern in kinds]).astype(np.int16)


def banners(picture: Image) -> list[TextPlace]:
    """Return where plain banners are seen."""
    seen: list[TextPlace] = []
    for place in get_args(TextPlace):
        left, top, right, bottom = (int(v) for v in BANNER[place])
        strip = picture[top + 4 : bottom - 4, left + 12 : right - 12].astype(np.int16)
        if (np.abs(strip - np.array(BANNER_RGB)).max(axis=2) <= SAME).mean() > 0.4:
            seen.append(place)
    return seen


def recognise(picture: Image) -> Backdrop:
    """Return the backdrop that most of the sampled pixels agree with."""
    hidden = np.zeros(picture.shape[:2], dtype=bool)
    for place in banners(picture):
        hidden[banner_rows(place)] = True
    kinds, skies = _skies()
    seen = ~hidden[_SKY]
    sky = _agreement(picture[_SKY][seen], skies[:, seen])
    best = int(sky.argmax())
    if sky[best] < AGREE:
        return Backdrop(False)
    light, pattern = kinds[best]
    materials = (None, *get_args(Material))
    seen = ~hidden[_GROUND]
    grounds = np.stack([drawn(light, pattern, m)[_GROUND][seen] for m in materials]).astype(np.int16)
    ground = _agreement(picture[_GROUND][seen], grounds)
    best = int(ground.argmax())
    return Backdrop(True, light, pattern, materials[best] if ground[best] >= AGREE else None)


def banner_rows(place: TextPlace) -> slice:
    """Return the rows a banner and its shadow take."""
    return slice(int(BANNER[place][1]) - 1, int(BANNER[place][3]) + scenery.BANNER_SHADOW)


def _agreement(seen: Image, known: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return for each known strip [kinds, N, 3] the share of the seen pixels [N, 3] that agree."""
    return np.asarray((np.abs(known - seen.astype(np.int16)).max(axis=2) <= SAME).mean(axis=1))


def unlike(picture: Image, behind: NDArray[np.float32], tolerance: float = SAME) -> Mask:
    """Return the pixels [H, W] that are neither `behind` ([H, W, 3] or [3]) nor `behind` under a shadow."""
    b = np.broadcast_to(behind, picture.shape)
    gap = picture.astype(np.float32) - b
    out = np.abs(gap).max(axis=2) > tolerance
    gap, towards = gap[out], SHADOW - b[out]  # the rest needs no shadow to explain it
    length = np.maximum((towards * towards).sum(axis=1), 1.0)
    depth = np.clip((gap * towards).sum(axis=1) / length, 0.0, DARKEST)
    out[out] = np.abs(gap - depth[:, None] * towards).max(axis=1) > tolerance
    return np.asarray(out, dtype=np.bool_)


def outside(like: Mask, exact: Mask | None = None) -> Mask:
    """Return the background-like pixels that reach the border, or (given `exact`) lie in a hole that is truly background."""
    import cv2

    count, labels = cv2.connectedComponents(like.astype(np.uint8), connectivity=4)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    keep = np.zeros(count, dtype=bool)
    if exact is not None:
        total = np.bincount(labels[like], minlength=count)
        true = np.bincount(labels[like & exact], minlength=count)
        keep = (true >= 0.6 * np.maximum(total, 1)) & (total >= 6)
    keep[edge] = True
    keep[0] = False
    return np.asarray(keep[labels], dtype=np.bool_)


def foreground(picture: Image, backdrop: Backdrop) -> Mask:
    """Return the pixels that are subject, sticker or plate: unlike the backdrop, not banner; specks removed."""
    import cv2

    behind = drawn(backdrop.light, backdrop.pattern, backdrop.material).astype(np.float32)
    exact = np.abs(picture.astype(np.float32) - behind).max(axis=2) <= EXACT
    mask = ~outside(~unlike(picture, behind), exact)  # grey art on grey paper is no shadow: its outline encloses it
    for place in banners(picture):
        mask[banner_rows(place)] = False
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= 12
    keep[0] = False
    return np.asarray(keep[labels] if count > 1 else mask, dtype=np.bool_)
