"""A step of experience: hit rate, gap distribution and slot texts, as numbers for tracking and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from genevolve.experience.bullets import FIELD_OF, STANDARD
from genevolve.experience.contrast import Contrast
from genevolve.experience.memory import ExperienceMemory, Retrieved
from genevolve.experience.summarise import violations
from genevolve.records import Bundle

GAP_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class ExperienceReport:
    """Flat numbers (`metrics`) and the counted texts of each slot (`slot_texts`: text -> bundles that hold it)."""

    metrics: dict[str, float]
    gap_histogram: dict[str, int]
    slot_texts: dict[str, dict[str, int]]
    outcomes: dict[str, int] = field(default_factory=dict)


def experience_report(
    found: Contrast, bundles: Sequence[Bundle], memory: ExperienceMemory, retrieved: Sequence[Retrieved | None]
) -> ExperienceReport:
    """Report a step: the contrast, its bundles, the memory after it and what the step's requests retrieved.

    The hit rate counts *all* requests, and is told apart for own bundles and for transfer from other requests.
    """
    hits = [r for r in retrieved if r is not None]
    total = max(len(retrieved), 1)
    gaps = sorted(found.gaps.values())
    texts = _slot_texts(bundles)
    bullets = sum(sum(rows.values()) for rows in texts.values())
    standard = sum(n for rows in texts.values() for text, n in rows.items() if text.startswith(STANDARD))
    metrics = {
        "pairs_kept": float(len(found.pairs)),
        "pairs_rejected": float(len(found.rejected)),
        "gap_mean": _mean(gaps),
        "gap_median": gaps[len(gaps) // 2] if gaps else 0.0,
        "gap_kept_mean": _mean([p.gap for p in found.pairs]),
        "bundles": float(len(bundles)),
        "bullets_per_bundle": bullets / len(bundles) if bundles else 0.0,
        "standard_share": standard / bullets if bullets else 0.0,
        "rule_violations": float(sum(len(violations(b)) for b in bundles)),
        "memory_size": float(len(memory)),
        "memory_evicted": float(memory.evicted),
        "hit_rate": len(hits) / total,
        "hit_rate_own": sum(r.own for r in hits) / total,
        "hit_rate_transfer": sum(not r.own for r in hits) / total,
        "hit_similarity_mean": _mean([r.similarity for r in hits]),
    }
    return ExperienceReport(metrics, _histogram(gaps), texts, found.counts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _histogram(gaps: Sequence[float]) -> dict[str, int]:
    """Count gaps in `[low, high)`; the last bin holds its upper edge."""
    bins = list(pairwise(GAP_EDGES))
    out = {f"{low:.1f}-{high:.1f}": sum(low <= g + 1e-9 and g + 1e-9 < high for g in gaps) for low, high in bins[:-1]}
    low, high = bins[-1]
    out[f"{low:.1f}-{high:.1f}"] = sum(g + 1e-9 >= low for g in gaps)
    return out


def _slot_texts(bundles: Sequence[Bundle]) -> dict[str, dict[str, int]]:
    out = {}
    for slot, name in FIELD_OF.items():
        counted = Counter(text for b in bundles for text in getattr(b.decision_guidance, name))
        out[slot] = dict(sorted(counted.items(), key=lambda row: (-row[1], row[0])))
    return out


def experience_page(report: ExperienceReport, title: str = "Visual experience") -> str:
    """Return the report as a Markdown page."""
    m = report.metrics
    lines = [
        f"# {title}",
        "",
        f"{m['pairs_kept']:.0f} pairs kept, {m['pairs_rejected']:.0f} requests without one; "
        f"the memory holds {m['memory_size']:.0f} bundles.",
        f"Hit rate {m['hit_rate']:.1%} of all requests: {m['hit_rate_own']:.1%} their own bundle, "
        f"{m['hit_rate_transfer']:.1%} another request's.",
        "",
        "| outcome | requests |",
        "|---|---:|",
        *(f"| {name} | {n} |" for name, n in report.outcomes.items()),
        "",
        "| gap R(best) - R(worst) | requests |",
        "|---|---:|",
        *(f"| {name} | {n} |" for name, n in report.gap_histogram.items()),
    ]
    for slot, rows in report.slot_texts.items():
        lines += ["", f"## {slot.replace('_', ' ')}", ""]
        lines += [f"- {n} x {_plain(text)}" for text, n in rows.items()] or ["- nothing"]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Keep a text on its line and its markup dead: another summariser's words come from outside."""
    flat = " ".join(text.split()).replace("<", "&lt;")
    return "".join("\\" + c if c in "[]|`*#!\\" else c for c in flat)
