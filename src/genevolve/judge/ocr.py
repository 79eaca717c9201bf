"""Reading the lettering in a picture (RapidOCR, PP-OCR small models from the wheel, one thread) and comparing it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 320
"""Longer side, in pixels, the detector works at: enough for a 256 px picture, 69 ms instead of 400."""

NEAR = 0.8
"""Edit similarity from which wrong lettering still earns half (one slip in a word or two)."""


@dataclass(frozen=True)
class Line:
    """One line of lettering: what it says and where its centre lies, as a share of the picture's height."""

    text: str
    centre: float


@lru_cache(maxsize=1)
def _engine() -> Any:
    """Return this process's OCR engine, loaded at first use."""
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,  # banners are never upside down
            "Global.max_side_len": SIDE,
            "Det.limit_type": "max",
            "Det.limit_side_len": SIDE,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def read(picture: NDArray[np.uint8]) -> list[Line]:
    """Return the lines of lettering in an RGB picture [H, W, 3], top to bottom, then left to right."""
    result = _engine()(np.ascontiguousarray(picture[:, :, ::-1]))
    if result.txts is None or result.boxes is None:
        return []
    rows = []
    for text, box in zip(result.txts, result.boxes, strict=True):
        corners = np.asarray(box, dtype=float)
        middle = corners[:, 1].mean() / picture.shape[0]
        rows.append((round(middle * 12), corners[:, 0].min(), Line(str(text), float(middle))))
    return [line for _, _, line in sorted(rows, key=lambda row: row[:2])]


def normalise(text: str) -> str:
    """Return the text as it is compared: upper case, words one space apart."""
    return " ".join(text.upper().split())


def accuracy(said: str, asked: str) -> float:
    """Return 1 for the exact text (case and spaces aside), .5 for a near miss, 0 otherwise.

    Near: one edit away, or edit similarity of at least NEAR. Spaces are not counted, since OCR drops narrow ones.
    """
    a, b = normalise(said).replace(" ", ""), normalise(asked).replace(" ", "")
    if a == b:
        return 1.0
    if not a:
        return 0.0
    edits = distance(a, b)
    return 0.5 if (edits == 1 and len(b) > 2) or 1 - edits / max(len(a), len(b)) >= NEAR else 0.0


def distance(a: str, b: str) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
