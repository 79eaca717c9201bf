"""The step's report: rates over all requests, the gap histogram, and a page that stays plain."""

from __future__ import annotations

import pytest

from genevolve.experience.contrast import by_request, contrast
from genevolve.experience.memory import ExperienceMemory, Retrieved
from genevolve.experience.report import experience_page, experience_report
from genevolve.experience.summarise import summarise

from .rollouts import LOOSE, make, make_bundle
from .test_memory import Letters


def test_rates_histogram_and_page() -> None:
    rows = [make(0, 0.9), make(1, 0.4, prompt=LOOSE), make(0, 0.5, request_id="r2"), make(1, 0.45, request_id="r2")]
    found = contrast(by_request(rows))
    bundles = [summarise(p) for p in found.pairs]
    memory = ExperienceMemory(Letters(), 0.9)
    memory.add(bundles)
    retrieved = [Retrieved(bundles[0], 1.0, True), Retrieved(make_bundle(5), 0.8, False), None, None]
    report = experience_report(found, bundles, memory, retrieved)
    m = report.metrics
    assert (m["hit_rate"], m["hit_rate_own"], m["hit_rate_transfer"]) == (0.5, 0.25, 0.25)
    assert m["hit_similarity_mean"] == pytest.approx(0.9)
    assert (m["pairs_kept"], m["pairs_rejected"], m["rule_violations"]) == (1, 1, 0)
    assert m["gap_mean"] == pytest.approx(0.275)
    assert 0 < m["standard_share"] < 1
    assert report.gap_histogram["0.0-0.1"] == 1
    assert report.gap_histogram["0.4-0.6"] == 1
    assert sum(report.gap_histogram.values()) == 2
    page = experience_page(report)
    assert "| gap too small | 1 |" in page
    assert "## prompt program" in page
    assert all(text.split("_")[0] in page for text in report.slot_texts["prompt_program"])


def test_an_empty_step_has_a_report_too() -> None:
    report = experience_report(contrast({}), [], ExperienceMemory(Letters(), 0.9), [])
    assert report.metrics["hit_rate"] == 0
    assert "nothing" in experience_page(report)


def test_hostile_slot_texts_stay_plain_on_the_page() -> None:
    bundle = make_bundle(1)
    guidance = bundle.decision_guidance.model_copy(update={"failure_guards": ("<script>x</script>\n# Title | [a](b)",)})
    hostile = bundle.model_copy(update={"decision_guidance": guidance})
    page = experience_page(experience_report(contrast({}), [hostile], ExperienceMemory(Letters(), 0.9), []))
    assert "<script" not in page
    assert "\n# Title" not in page
