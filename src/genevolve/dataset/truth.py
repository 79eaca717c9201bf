"""Ground truth: the gold program rendered with the entities' own pictures, and the visual filter (method.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genevolve.judge.base import ImageJudge, JudgeJob
from genevolve.records import Request
from genevolve.render.base import Renderer, RenderJob
from genevolve.tools.world import World


@dataclass(frozen=True)
class Truth:
    """What became of one request's ground truth."""

    png: bytes | None
    reason: str = ""
    """why the request is left out; empty: it is kept"""


def render_truth(renderer: Renderer, world: World, requests: Sequence[Request], seed: int) -> list[bytes | None]:
    """Return the gold program's picture of each request; None where the generator failed."""
    jobs = []
    for r in requests:
        assert r.gold_program is not None
        references = tuple(world.image(f).encode() for f in r.gold_program.files)
        jobs.append(RenderJob(r.id, r.gold_program.gen_prompt, references, seed))
    return renderer.render(jobs)


def visual_filter(judge: ImageJudge, requests: Sequence[Request], pictures: Sequence[bytes]) -> list[str]:
    """Return per ground truth why it is left out, or an empty string.

    Kept is what the judge can read in full off the very picture it will hold the others against: faithfulness,
    visual correctness and, where there is lettering, text accuracy of 1. (A picture a judge misreads would punish
    the right answer.)
    """
    scores = judge.score([JudgeJob(r, png, png) for r, png in zip(requests, pictures, strict=True)])
    out = []
    for score, missing in zip(scores, judge.reasons, strict=True):
        if score is None:
            out.append(f"the judge failed: {missing or 'no reason given'}")
            continue
        low = [
            f"{name} {value:g}"
            for name, value, counts in (
                ("faithfulness", score.faithfulness, True),
                ("visual_correctness", score.visual_correctness, True),
                ("text_accuracy", score.text_accuracy, not score.text_accuracy_na),
            )
            if counts and value < 1
        ]
        out.append(", ".join(low))
    return out


def make_truth(
    renderer: Renderer, judge: ImageJudge, world: World, requests: Sequence[Request], seed: int
) -> list[Truth]:
    """Render and filter; one Truth per request, in order."""
    pictures = render_truth(renderer, world, requests, seed)
    drawn = [(r, p) for r, p in zip(requests, pictures, strict=True) if p is not None]
    reasons = iter(visual_filter(judge, [r for r, _ in drawn], [p for _, p in drawn]))
    return [Truth(None, "the generator failed") if p is None else Truth(p, next(reasons)) for p in pictures]
