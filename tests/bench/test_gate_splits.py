"""What the gate looks at of small categories, and what it says of falls that may be luck."""

from __future__ import annotations

from genevolve.bench.gate import Decision, decide

from .parts import make_request

REQUESTS = [
    make_request(i, category="flags" if i < 20 else f"small{i % 6}", difficulty="easy", eval_type="quality_anchored")
    for i in range(60)
]
SMALL = [r.id for r in REQUESTS if r.category != "flags"]


def asked(small: float, noise: float) -> Decision:
    """Decide where flags gain for sure, and six categories of six or seven requests each change by `small`, give or take."""
    before: dict[str, float | None] = {r.id: 0.5 for r in REQUESTS}
    after: dict[str, float | None] = {r.id: 0.9 for r in REQUESTS}
    after |= {name: 0.5 + small + (noise if i % 2 else -noise) for i, name in enumerate(SMALL)}
    return decide(before, after, REQUESTS, margin=0, split_margin=0.05, split_rows=12, resamples=500, seed=1)


def test_a_fall_of_all_small_categories_together_is_seen() -> None:
    found = asked(-0.1, 0.02)
    assert {s.name: s.paired.n for s in found.splits if "category" in s.name} == {
        "category: flags": 20,
        "category: others": 40,
    }
    assert found.paired.low > 0
    assert not found.promote
    assert "fell by more than 0.05: category: others -0.1" in found.words("c002", "c001")
    assert "not for sure" not in found.words("c002", "c001")


def test_a_fall_that_may_be_luck_is_named_and_turns_nobody_down() -> None:
    found = asked(-0.06, 0.3)
    assert found.promote
    assert "none of 4 splits fell" in found.words("c002", "c001")
    (others,) = (s for s in found.splits if s.name == "category: others")
    assert others.paired.diff < -0.05 < 0 < others.paired.high
    said = found.words("c002", "c001").partition(" Fell by more than 0.05, but not for sure, and so no reason: ")[2]
    assert said.startswith("category: others -0.")
    assert "over 40 requests" in said
    assert "flags" not in said


def test_a_category_is_counted_by_its_pairs() -> None:
    before: dict[str, float | None] = {r.id: 0.5 for r in REQUESTS}
    missing = {**before, REQUESTS[0].id: None}
    for sides, looked in (((before, before), True), ((before, missing), False), ((missing, before), False)):
        found = decide(*sides, REQUESTS, margin=0, split_margin=0.05, split_rows=20, resamples=50, seed=1)
        names = {s.name for s in found.splits if "category" in s.name}
        assert names == ({"category: flags", "category: others"} if looked else {"category: others"})
