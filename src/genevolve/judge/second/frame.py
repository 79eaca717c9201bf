"""The outer frame of a picture names its backdrop: no subject, plate or banner ever reaches it, so it shows scenery only."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from genevolve.judge.base import JudgeError
from genevolve.render import scenery
from genevolve.render.style import BANNER, BANNER_RGB, CANVAS, GROUND_TOP
from genevolve.scene import Light, Material, Pattern, TextPlace

Rgb = NDArray[np.uint8]
Lab = NDArray[np.float32]

FRAME = 9
"""Width of the frame in pixels; subjects keep 14 away, and of their shadows little reaches it."""
SKY, GROUND = slice(0, GROUND_TOP - 2), slice(GROUND_TOP + 2, CANVAS)
"""Rows where no ground can be, and where it must be when there is one."""
CLIP = 25.0
"""Lab distance beyond which a pixel of the frame is simply wrong: a stray shadow must not decide."""
KNOWN = 6.0
"""Mean Lab distance of the frame up to which a backdrop counts as recognised."""
PAPER = 3.0
"""Mean Lab distance up to which the two ends of a banner are the banner's paper."""
_LARGEST = 4096
"""Longest side of a picture that is decoded, in pixels."""


@dataclass(frozen=True)
class Setting:
    """Where a scene takes place; `known` False: the frame looks like no scenery of the world."""

    known: bool
    light: Light | None = None
    pattern: Pattern | None = None
    material: Material | None = None


def open_picture(data: bytes) -> Rgb:
    """Return a picture as RGB [CANVAS, CANVAS, 3]; raise JudgeError when the bytes hold no whole picture of that size."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            if max(image.size) > _LARGEST:
                raise JudgeError(f"the picture is {image.width} x {image.height} pixels, more than {_LARGEST} a side")
            rgb = ImageOps.exif_transpose(image).convert("RGB")
    except JudgeError:
        raise
    except Exception as e:  # Pillow raises many kinds on hostile bytes; each means the same here
        raise JudgeError(f"the picture cannot be decoded ({type(e).__name__}: {e})") from e
    if rgb.size != (CANVAS, CANVAS):
        raise JudgeError(
            f"the picture is {rgb.width} x {rgb.height} pixels, not {CANVAS} x {CANVAS} as this judge reads them"
        )
    return np.array(rgb, dtype=np.uint8)


def to_lab(rgb: NDArray[np.uint8]) -> Lab:
    """Return CIE Lab values [H, W, 3] of an RGB picture [H, W, 3]: L in 0..100."""
    import cv2

    return np.asarray(cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), dtype=np.float32)


def empty(setting: Setting) -> Rgb:
    """Return the scene without subjects, RGB [CANVAS, CANVAS, 3]."""
    picture = scenery.picture(setting.light, setting.pattern, setting.material)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def recognise(picture: Rgb) -> Setting:
    """Return the setting whose frame is nearest to the picture's in Lab: first the sky, then the ground before it."""
    lab = to_lab(picture)
    sky = _nearest(_frame(lab, SKY), *_skies())
    ground = _nearest(_frame(lab, GROUND), *_grounds(sky[0].light, sky[0].pattern))
    return ground[0] if max(sky[1], ground[1]) <= KNOWN else Setting(False)


def _nearest(seen: Lab, settings: list[Setting], frames: Lab) -> tuple[Setting, float]:
    """Return the setting with the nearest of the frames [settings, pixels, 3] and its mean distance."""
    scores = np.minimum(np.linalg.norm(frames - seen, axis=2), CLIP).mean(axis=1)
    best = int(scores.argmin())
    return settings[best], float(scores[best])


@lru_cache(maxsize=1)
def _skies() -> tuple[list[Setting], Lab]:
    """Return every light and pattern, and the frames above the ground [25, pixels, 3]."""
    kinds = itertools.product((None, *get_args(Light)), (None, *get_args(Pattern)))
    settings = [Setting(True, *kind) for kind in kinds]
    return settings, np.stack([_frame(to_lab(empty(s)), SKY) for s in settings])


@lru_cache(maxsize=25)
def _grounds(light: Light | None, pattern: Pattern | None) -> tuple[list[Setting], Lab]:
    """Return every ground before a sky, and the frames below its upper edge [5, pixels, 3]."""
    settings = [Setting(True, light, pattern, m) for m in (None, *get_args(Material))]
    return settings, np.stack([_frame(to_lab(empty(s)), GROUND) for s in settings])


def _frame(lab: Lab, rows: slice) -> Lab:
    """Return every second pixel of every second row of the frame [pixels, 3] within some rows."""
    inner = np.zeros(lab.shape[:2], dtype=np.bool_)
    inner[FRAME:-FRAME, FRAME:-FRAME] = True
    return lab[rows][::2, ::2][~inner[rows][::2, ::2]]


def banner_places(lab: Lab) -> list[TextPlace]:
    """Return where a banner hangs: both its ends, which lettering never reaches, show its paper."""
    paper = to_lab(np.array([[BANNER_RGB]], dtype=np.uint8))[0, 0]
    places: list[TextPlace] = []
    for place in get_args(TextPlace):
        left, top, right, bottom = BANNER[place]
        ends = [lab[top + 12 : bottom - 12, x : x + 8].reshape(-1, 3) for x in (left + 3, right - 11)]
        if all(np.linalg.norm(end - paper, axis=1).mean() < PAPER for end in ends):
            places.append(place)
    return places
