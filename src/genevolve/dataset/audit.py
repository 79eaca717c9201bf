"""The audit: six dimensions, 1 to 5, over a trajectory and its recipe (names: the paper; heuristics and thresholds: ours).

Each dimension begins at 5, supervised value at 1.

prompt_suitability         -2 not of 10-60 words; -1 not of 2-7 requirements; -4 a tool's or skill's name in it; -4 a clue
                           that gives the name away
reference_grounding        1 when a picture is not its subject's; -2 for a fact not read under its title, -1 read in part
process_quality            -2 for each search beyond the facts to find; -1 for each image search beyond the subjects; -2
                           for looking for a picture before its fact is known
skill_integration          -2 for a skill that the scene has no use for; -1 for one read and not followed; -2 for each
                           advice of a guide ignored. Without a guide and without reading: 3, or 2 when less than half of
                           the wordings are exact
final_prompt_faithfulness  mean credit of the requirements (exact 1, loose .5, missing 0): .9 is 5, .75 is 4, .5 is 3, .35
                           is 2; lettering that is not there letter for letter: 1
supervised_value           +1 each: right pictures; something to decide (a fact, a skill, a guide); a third of the wordings
                           exact; no waste and a faithful prompt
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from genevolve.dataset.lessons import Lesson
from genevolve.dataset.teacher import fact_value, kinds_of
from genevolve.judge.sufficiency import requirement_credits
from genevolve.records import Record
from genevolve.render.program import Layout, parse_prompt
from genevolve.scene import SKILL_OF
from genevolve.tools.facts import leaks, words

AT_LEAST = {
    "prompt_suitability": 4,
    "reference_grounding": 4,
    "process_quality": 4,
    "skill_integration": 2,
    "final_prompt_faithfulness": 3,
    "supervised_value": 3,
}
"""A trajectory below any of these is rejected."""
MEAN_AT_LEAST = 3.6
CREDITS = ((0.9, 5), (0.75, 4), (0.5, 3), (0.35, 2))
WORDS = (10, 60)
REQUIREMENTS = (2, 7)
_FORBIDDEN = ("search", "query", "skill", "tool", "img", "reference", *SKILL_OF.values())


class Audit(Record):
    """One audited trajectory."""

    id: str
    split: str
    habits: str
    scores: dict[str, int] = Field(description="dimension -> 1..5")
    reason: str = Field(default="", description="why it was rejected; empty: accepted")
    said: str = Field(default="", description="an auditor's own words, where it is a model")


def audit(lesson: Lesson, entity_of: Mapping[str, str]) -> Audit:
    """Return the audit of a lesson that passed the program checks; `entity_of`: image file -> entity id."""
    layout, credits = _read(lesson, entity_of)
    scores = {
        "prompt_suitability": _suitability(lesson),
        "reference_grounding": _grounding(lesson, entity_of),
        "process_quality": _process(lesson),
        "skill_integration": _skills(lesson, _exact_kinds(lesson, credits)),
        "final_prompt_faithfulness": _faithfulness(lesson, layout, credits),
    }
    scores["supervised_value"] = _value(lesson, scores, credits)
    request = lesson.recipe.request
    return Audit(id=request.id, split=request.split, habits=lesson.habits, scores=scores, reason=verdict(scores))


def verdict(scores: Mapping[str, int]) -> str:
    """Return why these scores are rejected, or an empty string."""
    low = [f"{name} {scores[name]}" for name, least in AT_LEAST.items() if scores[name] < least]
    mean = sum(scores.values()) / len(scores)
    if not low and mean < MEAN_AT_LEAST:
        low = [f"mean {mean:.1f}"]
    return ", ".join(low)


def _bounded(score: int) -> int:
    return max(1, min(5, score))


def _read(lesson: Lesson, entity_of: Mapping[str, str]) -> tuple[Layout, list[float]]:
    """Return the final prompt as the generator reads it, and its credits: requirements first, `whole` per subject last."""
    program = lesson.trajectory.program
    assert program is not None
    layout = parse_prompt(program.gen_prompt)
    entities = [entity_of.get(f, "") for f in program.files]
    # A subject whose picture is wrong is still judged on its words: they stand at its place in the order.
    ordinals = [
        entities.index(s.entity) if s.entity in entities else i for i, s in enumerate(lesson.recipe.scene.subjects)
    ]
    addressed = [next((s for s in layout.subjects if s.ordinal == o), None) for o in ordinals]
    return layout, requirement_credits(lesson.recipe.scene, layout, addressed)


def _exact_kinds(lesson: Lesson, credits: list[float]) -> set[str]:
    """Return the requirement kinds of which every occurrence is worded exactly."""
    kinds = [k for k, _, _ in lesson.recipe.scene.requirements()] + ["whole"] * len(lesson.recipe.scene.subjects)
    return {k for k in kinds if all(c == 1 for kind, c in zip(kinds, credits, strict=True) if kind == k)}


def _suitability(lesson: Lesson) -> int:
    question = lesson.recipe.request.question
    said = words(question)
    score = 5
    score -= 2 * (not WORDS[0] <= len(question.split()) <= WORDS[1])
    score -= not REQUIREMENTS[0] <= len(lesson.recipe.scene.requirements()) <= REQUIREMENTS[1]
    named = {w for n in lesson.recipe.named for w in words(n.clue or n.name)}
    score -= 4 * any(w in said and w not in named for w in _FORBIDDEN)
    given_away = [
        n for n, f in zip(lesson.recipe.named, lesson.recipe.facts, strict=True) if f and leaks(f.value, n.name)
    ]
    return _bounded(score - 4 * bool(given_away))


def _grounding(lesson: Lesson, entity_of: Mapping[str, str]) -> int:
    program = lesson.trajectory.program
    assert program is not None
    if {entity_of.get(f, "") for f in program.files} != {n.entity for n in lesson.recipe.named}:
        return 1
    score = 5
    hits = [row for c in lesson.trajectory.tool_calls if c.name == "search" for row in c.result]
    for who in lesson.recipe.named:
        if who.clue is None:
            continue
        value = fact_value(who.clue)
        shown = [str(h["snippet"]) for h in hits if h["title"] == who.name.removeprefix("flag of ")]
        if not any(value.lower() in s.lower() for s in shown):
            wanted = set(words(value))
            half = any(2 * len(wanted & set(words(s))) >= len(wanted) for s in shown)
            score -= 1 if half else 2
    return _bounded(score)


def _process(lesson: Lesson) -> int:
    calls = lesson.trajectory.tool_calls
    gaps = sum(n.clue is not None for n in lesson.recipe.named)
    names = [c.name for c in calls]
    score = 5 - 2 * max(0, names.count("search") - gaps)
    score -= max(0, names.count("image_search") - len(lesson.recipe.named))
    if gaps == len(lesson.recipe.named) and "search" in names and "image_search" in names:
        score -= 2 * (names.index("image_search") < names.index("search"))
    return _bounded(score)


def _skills(lesson: Lesson, exact: set[str]) -> int:
    read = {c.arguments["skill_name"] for c in lesson.trajectory.tool_calls if c.name == "query_knowledge"}
    kinds = set(kinds_of(lesson.recipe.scene))
    useful = {k for k in kinds if SKILL_OF[k] in read}
    score = 5 - 2 * (len(read) - len(useful)) - len(useful - exact)
    if lesson.habits == "guided":
        ignored = [k for k in lesson.advised_skills if k not in useful]
        ignored += [k for k in lesson.advised_wordings if k not in exact]
        return _bounded(score - 2 * len(ignored))
    if not read:
        score = 3 if 2 * len(exact) >= len(kinds) else 2
    return _bounded(score)


def _faithfulness(lesson: Lesson, layout: Layout, credits: list[float]) -> int:
    text = lesson.recipe.scene.text
    if text is not None and layout.text.value != text:
        return 1
    mean = sum(credits) / len(credits)
    return next((score for least, score in CREDITS if mean >= least - 1e-9), 1)


def _value(lesson: Lesson, scores: Mapping[str, int], credits: list[float]) -> int:
    decided = any(n.clue for n in lesson.recipe.named) or lesson.habits == "guided"
    decided = decided or any(c.name == "query_knowledge" for c in lesson.trajectory.tool_calls)
    return (
        1
        + (scores["reference_grounding"] >= AT_LEAST["reference_grounding"])
        + decided
        + (sum(c == 1 for c in credits) * 3 >= len(credits))
        + (scores["process_quality"] == 5 and scores["final_prompt_faithfulness"] >= 3)
    )
