"""A round's second third: best against worst, bundles, memory, and the guide each request's teacher will read."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from genevolve.experience.contrast import Contrast, by_request, contrast
from genevolve.experience.guide import render_guide
from genevolve.experience.memory import ExperienceMemory, Retrieved
from genevolve.experience.report import experience_page, experience_report
from genevolve.records import Bundle, Request, Trajectory, read_jsonl, write_jsonl
from genevolve.settings import Settings
from genevolve.stages.backends import make_embedder, make_summariser

MINILM_KEY = "demands"
"""What of a question is embedded, see `experience.memory.KEYS`."""
MINILM_GATE = 0.75
"""Cosine gate for all-MiniLM-L6-v2 on `demands` keys. Ours, by eye from the study in docs/benchmarks.md; not calibrated on reward."""
QWEN3_KEY, QWEN3_GATE = "question", 0.84
"""The paper's: the whole question, Qwen3-Embedding-0.6B."""
KEYS_AND_GATES = {"minilm": (MINILM_KEY, MINILM_GATE), "qwen3": (QWEN3_KEY, QWEN3_GATE)}


@dataclass(frozen=True)
class Extracted:
    """What a round's experience gave."""

    contrast: Contrast
    bundles: list[Bundle]
    guides: dict[str, str]
    """request id -> guide text for its teacher; requests below the gate have none"""
    metrics: dict[str, Any]
    page: str
    """the same for a reader: outcomes, gaps, the texts of every slot (Markdown)"""


def new_memory(settings: Settings) -> ExperienceMemory:
    """Return an empty memory with the profile's embedder, gate and capacity."""
    e = settings.experience
    key, gate = KEYS_AND_GATES[e.embedder]
    return ExperienceMemory(make_embedder(settings), gate if e.gate is None else e.gate, e.capacity, key=key)


def extract(
    settings: Settings,
    memory: ExperienceMemory,
    trajectories: Sequence[Trajectory],
    step: int,
    shown: Mapping[str, str] | None = None,
) -> Extracted:
    """Contrast a round's groups, store their bundles and retrieve a guide for each of its requests.

    `shown`: the requests whose students read a guide already; their teachers get none (see `guide_to_student`). The hit
    rates of `metrics` say what the memory gave; what was taught is the trainer's `sdl/hit_rate`.
    """
    found = contrast(by_request(trajectories), settings.experience.gap, settings.experience.max_pairs)
    summariser = make_summariser(settings)
    written = summariser.bundles(found.pairs, step)
    bundles = [b for b in written if b is not None]
    memory.add(bundles)
    questions = list({t.request_id: t.question for t in trajectories}.items())
    retrieved = memory.retrieve(questions)
    hits = {request: hit for (request, _), hit in zip(questions, retrieved, strict=True) if hit is not None}
    text = partial(render_guide, standard=settings.experience.guide_bullets == "all")
    guides = {request: text(hit.bundle) for request, hit in hits.items()}
    if settings.experience.guides == "shuffled":
        guides = placebo_guides(hits, memory.bundles, Random(f"{settings.seeds.run_seed}/placebo/{step}"), text)
    guides = {request: guide for request, guide in guides.items() if guide and request not in (shown or {})}
    report = experience_report(found, bundles, memory, retrieved)
    metrics: dict[str, Any] = {**report.metrics, "outcomes": report.outcomes}
    page = experience_page(report, f"Visual experience of step {step}")
    if settings.experience.summariser != "contrast":
        metrics["pairs_without_bundle"] = float(len(written) - len(bundles))
        page += "".join(f"\n{html.escape(reason)}\n" for reason in summariser.reasons if reason)
    return Extracted(found, bundles, guides, metrics, page)


def student_guides(settings: Settings, memory: ExperienceMemory, requests: Sequence[Request]) -> dict[str, str]:
    """Return request id -> guide to sample a round with: none, unless `sampling.guide_to_student` says so."""
    if not settings.sampling.guide_to_student:
        return {}
    retrieved = memory.retrieve([(r.id, r.question) for r in requests])
    text = partial(render_guide, standard=settings.experience.guide_bullets == "all")
    guides = {r.id: text(hit.bundle) for r, hit in zip(requests, retrieved, strict=True) if hit is not None}
    return {request: guide for request, guide in guides.items() if guide}


def placebo_guides(
    hits: Mapping[str, Retrieved],
    memory: Sequence[Bundle],
    random: Random,
    text: Callable[[Bundle], str] = render_guide,
) -> dict[str, str]:
    """Return a wrong guide for every request that has a right one, so that as many tokens are taught as without placebo.

    It is drawn from what other requests of the round retrieved, else from the whole memory: a bundle of another request
    whose text differs from the right one (two bundles often give the same advice). Where there is none: no guide.
    """
    texts = {b.id: text(b) for b in [*memory, *(hit.bundle for hit in hits.values())]}
    guides = {}
    for request, right in hits.items():
        round_ = [hit.bundle for other, hit in hits.items() if other != request]
        for bundles in (round_, memory):
            wrong = [b for b in bundles if b.request_id != request and texts[b.id] not in ("", texts[right.bundle.id])]
            if wrong:
                guides[request] = texts[random.choice(wrong).id]
                break
    return guides


def run(settings: Settings, *, trajectories: Path, memory: Path | None, out: Path, step: int = 1) -> dict[str, Any]:
    """Extract one round's experience into out/memory.jsonl, bundles.jsonl, guides.jsonl and experience.md."""
    store = new_memory(settings)
    if memory is not None:
        store.add(read_jsonl(memory / "memory.jsonl", Bundle))
    rows = list(read_jsonl(trajectories / "trajectories.jsonl", Trajectory))
    extracted = extract(settings, store, rows, step)
    store.save(out / "memory.jsonl")
    write_jsonl(out / "bundles.jsonl", extracted.bundles)
    write_guides(out / "guides.jsonl", extracted.guides)
    (out / "experience.md").write_text(extracted.page, encoding="utf-8")
    return extracted.metrics


def write_guides(path: Path, guides: dict[str, str]) -> None:
    """Write request id -> guide as JSON lines."""
    from genevolve.records import GuideText

    write_jsonl(path, [GuideText(request_id=r, guide=g) for r, g in sorted(guides.items())])


def read_guides(path: Path) -> dict[str, str]:
    """Read what `write_guides` wrote."""
    from genevolve.records import GuideText

    return {g.request_id: g.guide for g in read_jsonl(path, GuideText)}
