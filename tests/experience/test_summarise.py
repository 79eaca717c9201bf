"""Bundles: advice only where the best did it, `Standard:` where both did, the paper's form, no entity; and the guide."""

from __future__ import annotations

import pytest

from genevolve.experience.bullets import ACTIONS, FIELD_OF, SLOTS, VARIANTS, bullet
from genevolve.experience.contrast import Pair
from genevolve.experience.guide import TITLE, render_guide
from genevolve.experience.summarise import summarise, violations
from genevolve.records import Bundle, Trajectory, dump, parse
from genevolve.scene import SKILL_OF, SKILLS

from .rollouts import EXACT, LOOSE, look, make, search, skill

BEST = make(
    0, 0.9, tool_calls=(search("country whose capital is Thimphu"), look("flag of Bhutan"), skill("text_rendering"))
)
WORST = make(1, 0.2, prompt=LOOSE, picks=("IMG_001",), tool_calls=(look("flag of Thimphu", 0),))


def bundle_of(best: Trajectory, worst: Trajectory, step: int = 0) -> Bundle:
    return summarise(Pair("r1", best, worst, 0.7), step)


def texts(bundle: Bundle, slot: str) -> list[str]:
    return list(getattr(bundle.decision_guidance, FIELD_OF[slot]))


def is_advice(text: str, slot: str, action: str) -> bool:
    return text.removeprefix("Standard: ") in {bullet(slot, action, v) for v in range(VARIANTS)}


@pytest.mark.parametrize("slot", SLOTS)
def test_every_bullet_is_twelve_to_fourteen_words_and_its_paraphrases_differ(slot: str) -> None:
    for action in ACTIONS[slot]:
        variants = {bullet(slot, action, v) for v in range(VARIANTS)}
        assert len(variants) == VARIANTS
        for text in variants:
            assert 12 <= len(text.split()) <= 14, text
            assert not set(text) & set("'\"0123456789<>"), text
            assert text[0].isupper()
            assert text.endswith(".")


def test_the_table_covers_the_skills_and_names_what_the_prompt_must_say() -> None:
    assert set(ACTIONS["skill_routing"]) == set(SKILLS)
    assert set(ACTIONS["prompt_program"]) == set(SKILL_OF)
    words = {
        "count": ("exactly", "separate copies"),
        "text": ("exact text", "in large bold letters"),
        "position": ("placed entirely",),
        "colour": ("its own solid",),
        "light": ("fills the whole background",),
        "material": ("soft contact shadows",),
        "pattern": ("even",),
        "whole": ("shown whole and unaltered",),
    }
    for kind, needed in words.items():
        assert all(any(w in bullet("prompt_program", kind, v) for v in range(VARIANTS)) for w in needed), kind
    for name in SKILLS:
        assert all(name in bullet("skill_routing", name, v) for v in range(VARIANTS))


def test_what_the_best_did_and_the_worst_did_not_becomes_advice() -> None:
    bundle = bundle_of(BEST, WORST)
    (search_text,) = texts(bundle, "search")
    assert is_advice(search_text, "search", "specific_query")
    assert not search_text.startswith("Standard:")
    assert is_advice(texts(bundle, "tool_plan")[0], "tool_plan", "search_first")
    assert is_advice(texts(bundle, "reference")[0], "reference", "title_match")
    assert [k for t in texts(bundle, "prompt_program") for k in SKILL_OF if is_advice(t, "prompt_program", k)] == [
        "whole", "count", "position", "colour", "text", "light",
    ]  # fmt: skip
    assert not any(t.startswith("Standard:") for t in texts(bundle, "prompt_program"))


def test_what_both_did_is_standard_and_what_only_the_worst_did_is_no_advice() -> None:
    both = bundle_of(BEST, make(1, 0.2, tool_calls=BEST.tool_calls))
    assert all(t.startswith("Standard: ") for slot in SLOTS for t in texts(both, slot))
    turned = bundle_of(make(0, 0.9, prompt=LOOSE, tool_calls=WORST.tool_calls, picks=("IMG_001",)), BEST)
    assert texts(turned, "prompt_program") == texts(turned, "skill_routing") == texts(turned, "reference") == []


def test_a_skill_that_was_read_and_not_followed_is_not_recommended() -> None:
    loose_text = EXACT.replace("in large bold letters on a plain banner ", "")
    assert texts(bundle_of(make(0, 0.9, prompt=loose_text, tool_calls=BEST.tool_calls), WORST), "skill_routing") == []
    (advice,) = texts(bundle_of(BEST, WORST), "skill_routing")
    assert is_advice(advice, "skill_routing", "text_rendering")


def test_a_named_subject_supports_going_straight_to_the_picture() -> None:
    question = "Draw a giraffe, shown twice."
    titles = ("giraffe", "zebra")
    best = make(0, 0.9, question=question, picks=("IMG_001",), tool_calls=(look("giraffe", 0, titles=titles),))
    worst = make(
        1, 0.3, question=question, picks=("IMG_003",),
        tool_calls=(search("animal"), look("tall animal", titles=titles), look("zebra", 2, 3, titles)),
    )  # fmt: skip
    bundle = bundle_of(best, worst)
    assert is_advice(texts(bundle, "tool_plan")[0], "tool_plan", "image_search_first")
    assert is_advice(texts(bundle, "search")[0], "search", "skip_search")


def test_two_subjects_and_waste_are_seen() -> None:
    calls = (look("flag of Bhutan", 0), look("flag of Nepal", 1, 4))
    best = make(0, 0.9, picks=("IMG_002", "IMG_004"), tool_calls=calls)
    worst = make(1, 0.2, picks=("IMG_002",), tool_calls=calls, format_errors=2)
    bundle = bundle_of(best, worst)
    assert [a for t in texts(bundle, "reference") for a in ACTIONS["reference"] if is_advice(t, "reference", a)] == [
        "title_match", "two_references",
    ]  # fmt: skip
    guards = texts(bundle, "failure")
    assert guards[0].startswith("Standard:")
    assert is_advice(guards[1], "failure", "answer_in_time")
    assert not guards[1].startswith("Standard:")


def test_a_bundle_is_deterministic_keeps_the_rules_and_survives_its_codec() -> None:
    bundle = bundle_of(BEST, WORST, step=3)
    assert bundle == bundle_of(BEST, WORST, step=3)
    assert parse(dump(bundle), Bundle, "here") == bundle
    assert violations(bundle) == []
    assert (bundle.best, bundle.worst, bundle.gap, bundle.step) == (BEST.id, WORST.id, 0.7, 3)
    key = bundle.retrieval_key.trigger + bundle.retrieval_key.source_prompt_summary
    assert "told through a fact" in key
    assert not any(w in key.lower() for w in ("bhutan", "thimphu", "open", "red"))


def test_both_paraphrases_are_used_over_many_bundles() -> None:
    seen = {texts(bundle_of(BEST, WORST, step), "search")[0] for step in range(20)}
    assert len(seen) == VARIANTS


def test_violations_name_a_long_bullet_an_entity_and_a_quotation() -> None:
    bundle = bundle_of(BEST, WORST)
    bad = bundle.decision_guidance.model_copy(
        update={
            "search_query_guidance": ("Too short.",),
            "reference_selection_guidance": ("Search for the land with the capital Thimphu and then take its flag.",),
            "failure_guards": ("Write 'this' into the prompt and never leave IMG_001 out of the answer.",),
        }
    )
    found = violations(bundle.model_copy(update={"decision_guidance": bad}))
    assert len(found) == 3
    assert "2 words" in found[0]
    assert "thimphu" in found[1]


def test_the_guide_is_compact_in_slot_order_and_drops_standards_first() -> None:
    bundle = bundle_of(BEST, WORST)
    full = render_guide(bundle, None).splitlines()
    assert full[0] == TITLE
    assert all(line.startswith(" - ") for line in full[1:])
    differences = render_guide(bundle, standard=False).splitlines()
    assert differences == [row for row in full if "Standard:" not in row]
    short = render_guide(bundle, 10).splitlines()
    assert len(short) == 11
    assert len(" ".join(short).replace(" - ", " ").split()) <= 130
    assert not any("Standard:" in line for line in short)
    assert [line for line in full if line in short] == short


def test_lettering_made_of_common_words_is_no_violation() -> None:
    for sign in ("SHOW", "FIRST STEP", "EACH"):
        question = f'Draw a giraffe, with the sign "{sign}" at the top.'
        assert violations(bundle_of(BEST, WORST).model_copy(update={"question": question})) == []
