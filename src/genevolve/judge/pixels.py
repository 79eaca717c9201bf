"""The embedded image judge: KScore's four dimensions from pixels (method.md, section 3; embedded.md).

It sees the generated picture, the ground truth and the request's scene (what was asked); never the program.

faithfulness        share of the scene's requirements that are seen (count, position, colour, light, material, pattern):
                    all 1, at least half .5, else 0. Lettering is text_accuracy's. A request that asks for nothing of the
                    kind is kept when each subject's place is taken.
visual_correctness  per subject 1 when its copy is the ground truth's copy, .5 when it is that thing altered, 0
                    otherwise; mean over subjects, groups that nobody asked for counted as wrong subjects.
text_accuracy       the best line on a banner against the asked text: 1 exact, .5 one slip, 0; at the wrong end at
                    most .5. Missing (N/A) when no text is asked.
aesthetics          a documented heuristic (see `aesthetics`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from genevolve.judge import assign, identity, kscore, ocr
from genevolve.judge.assign import Group
from genevolve.judge.backdrop import banner_rows
from genevolve.judge.base import JudgeError, JudgeJob
from genevolve.judge.layout import Cell
from genevolve.judge.view import Pairing, View, look, pair_generated, pair_truth
from genevolve.records import Score
from genevolve.render.style import CANVAS, MARGIN
from genevolve.scene import Scene

ALTERED = 0.7
"""Cosine from which a copy that is not the same is still that thing, altered."""


class PixelJudge:
    """The embedded ImageJudge. Stateless but for `reasons` and per-process caches; make one per worker."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.notes: list[dict[str, Any]] = []

    def score(self, jobs: Sequence[JudgeJob]) -> list[Score | None]:
        """Return one Score per job; None (and a sentence in `reasons`) where picture, truth or OCR failed."""
        self.reasons, self.notes = [""] * len(jobs), [{} for _ in jobs]
        return [self._one(job, i) for i, job in enumerate(jobs)]

    def _one(self, job: JudgeJob, index: int) -> Score | None:
        try:
            return judge(job)
        except JudgeError as e:
            self.reasons[index] = f"request {job.request.id}: {e}"
        except Exception as e:  # a judge that breaks leaves the sample missing, whatever broke
            self.reasons[index] = f"request {job.request.id}: the judge failed ({type(e).__name__}: {e})"
        return None


def judge(job: JudgeJob) -> Score:
    """Return the Score of one picture; raise JudgeError when there is nothing to judge it by."""
    scene = job.request.scene
    if scene is None:
        raise JudgeError("the request has no scene; the pixel judge knows embedded requests only")
    truth = _truth(scene, job.gt)
    view = look(job.image)
    pairing = pair_generated(truth, view)
    checks = requirements(scene, view, pairing)
    found = [compare(t, g) for t, g in zip(truth.groups, pairing.groups, strict=True)]
    marks = [m for m, _ in found]
    said = lettering(scene, view) if scene.text is not None else None
    text = None if said is None else said[0]
    notes = [f"{name} {'seen' if ok else 'NOT seen'}" for name, ok in checks]
    notes += [f"subject {i + 1}: {why} -> {m:g}" for i, (m, why) in enumerate(found)]
    if pairing.extra:
        notes.append(f"{pairing.extra} unasked subject(s)")
    if said is not None:
        notes.append(f"text {scene.text!r}, read {said[1]!r}")
    return kscore.build(
        faithfulness=faithfulness(checks, pairing),
        visual_correctness=sum(marks) / (len(marks) + pairing.extra),
        text_accuracy=text,
        aesthetics=aesthetics(view),
        rationale="; ".join(notes),
    )


@lru_cache(maxsize=256)
def _truth(scene: Scene, gt: bytes) -> Pairing:
    """Return the subjects of a ground truth; the K rollouts of a request share one."""
    try:
        pairing = pair_truth(scene, look(gt))
    except JudgeError as e:
        raise JudgeError(f"ground truth: {e}") from e
    if all(group is None for group in pairing.groups):
        raise JudgeError("ground truth: no subject is seen in it")
    return pairing


def requirements(scene: Scene, view: View, pairing: Pairing) -> list[tuple[str, bool]]:
    """Return (requirement in words, whether it is seen) for all the scene asks but its lettering."""
    per_subject = [assign.seen(s, g) for s, g in zip(scene.subjects, pairing.groups, strict=True)]
    out = []
    for kind, index, value in scene.requirements():
        if index is not None:
            out.append((f"{kind} {value} of subject {index + 1}", per_subject[index][kind]))
        elif kind != "text":
            out.append((f"{kind} {value}", getattr(view.backdrop, kind) == value))
    return out


def faithfulness(checks: Sequence[tuple[str, bool]], pairing: Pairing) -> float:
    """Return 1 when all requirements are seen, .5 when at least half are, else 0."""
    kept = [ok for _, ok in checks] or [group is not None for group in pairing.groups]
    return 1.0 if all(kept) else 0.5 if sum(kept) * 2 >= len(kept) else 0.0


def compare(true: Group | None, group: Group | None) -> tuple[float, str]:
    """Return 1 for the same thing, .5 for the same thing altered, 0 otherwise, and a phrase that says why."""
    if true is None or group is None:
        return 0.0, "not seen"
    x = identity.likeness(true.cut, group.cut)
    told = f"Lab distance {x.mean:.1f} (worst patch {x.local:.0f})"
    if identity.same(x):
        return 1.0, told
    cosine = identity.cosine(true.cut, group.cut)
    return (0.5 if cosine >= ALTERED else 0.0), f"{told}, cosine {cosine:.2f}"


def lettering(scene: Scene, view: View) -> tuple[float, str]:
    """Return (accuracy, what was read) of the banner that comes nearest to the asked text."""
    asked = scene.text or ""
    best = (0.0, "")
    for place in view.banners:
        lines = [line.text for line in ocr.read(view.picture[banner_rows(place)])]
        for said in (*lines, " ".join(lines)):
            value = ocr.accuracy(said, asked)
            if scene.text_place not in (None, place):
                value = min(value, 0.5)
            if value > best[0] or not best[1]:
                best = (value, said)
    return best


def aesthetics(view: View) -> float:
    """Return a heuristic for how well the picture is made, a mean of four parts in [0, 1]; 0 when it is blank.

    contrast: standard deviation of lightness, full from 24 of 255. margins: nothing but scenery in the outer MARGIN - 2
    pixels. separation: no two copies overlap. fullness: copies take at least 2% and at most 80% of the picture.
    A picture of one colour, or with nothing before its backdrop, is blank.
    """
    grey = view.picture.mean(axis=2)
    copies = [c for g in view.readings[0] for c in g.cells]
    cells = [c.bounds for c in copies]
    if float(grey.std()) < 4 or not cells:
        return 0.0
    edge = np.ones((CANVAS, CANVAS), dtype=bool)
    edge[MARGIN - 2 : 2 - MARGIN, MARGIN - 2 : 2 - MARGIN] = False
    overlaps = any(_overlap(a, b) for a, b in itertools.combinations(copies, 2))
    share = sum((c[2] - c[0]) * (c[3] - c[1]) for c in cells) / CANVAS**2
    parts = (
        min(1.0, float(grey.std()) / 24),
        1.0 if view.foreground[edge].mean() < 0.01 else 0.0,
        0.0 if overlaps else 1.0,
        1.0 if 0.02 <= share <= 0.8 else 0.0,
    )
    return sum(parts) / len(parts)


def _overlap(a: Cell, b: Cell) -> bool:
    """Return whether two copies cover each other by more than two pixels; plates are discs."""
    p, q = a.bounds, b.bounds
    if a.colour and b.colour:
        return math.dist(a.centre, b.centre) < (p[2] - p[0] + q[2] - q[0]) / 2 - 2
    return p[0] < q[2] - 2 and q[0] < p[2] - 2 and p[1] < q[3] - 2 and q[1] < p[3] - 2
