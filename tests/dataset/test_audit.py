"""The audit rejects what the teacher did badly, for the reason it was bad; the checks before it catch what is broken."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from genevolve.dataset.audit import AT_LEAST, audit, verdict
from genevolve.dataset.lessons import Lesson, program_fault, structural_fault
from genevolve.dataset.recipe_pool import Cell, Drawer, Pool, Recipe, make_pools
from genevolve.dataset.workers import Hand, Taught, Work
from genevolve.judge.pixels import PixelJudge
from genevolve.records import Split
from genevolve.render.compositor import Compositor
from genevolve.tools.world import World


@pytest.fixture(scope="module")
def hand(dataset: Path) -> Hand:
    return Hand(Work(dataset / "world", 1, 5, Compositor, PixelJudge))


@pytest.fixture(scope="module")
def pools(hand: Hand) -> dict[Split, Pool]:
    return make_pools(hand.world, 3)


@pytest.fixture(scope="module")
def taught(hand: Hand, pools: dict[Split, Pool]) -> list[Taught]:
    drawer = Drawer(pools, 3)
    cells = [
        Cell("sft", "knowledge_anchored"),
        Cell("sft", "quality_anchored"),
        Cell("sft", "knowledge_anchored", True),
    ]
    return hand.teach([drawer.draw(cell) for cell in cells for _ in range(60)])


def _lesson(t: Taught) -> Lesson:
    return Lesson(t.recipe, t.trajectory, t.habits)


def test_sloppy_trajectories_are_rejected_most_and_careful_ones_hardly_ever(taught: list[Taught]) -> None:
    total = Counter(t.habits for t in taught)
    kept = Counter(t.habits for t in taught if not t.stage)
    share = {h: kept[h] / total[h] for h in total}
    assert share["careful"] >= 0.9
    assert share["sloppy"] <= 0.4
    assert share["careful"] > share["ordinary"] > share["sloppy"]
    assert share["guided"] >= 0.75
    rejected = Counter(t.habits for t in taught if t.stage)
    assert rejected["sloppy"] > 0.5 * sum(rejected.values())
    assert 0.5 <= sum(kept.values()) / len(taught) <= 0.9


def test_every_accepted_trajectory_has_the_right_pictures(taught: list[Taught], hand: Hand) -> None:
    for t in taught:
        if not t.stage:
            assert t.trajectory.program is not None
            assert [hand.entity_of[f] for f in t.trajectory.program.files] == [n.entity for n in t.recipe.named]


def test_a_wrong_picture_costs_the_grounding(taught: list[Taught], hand: Hand, world: World) -> None:
    t = next(t for t in taught if not t.stage and len(t.recipe.named) == 1)
    assert t.trajectory.program is not None
    wrong = world.entity(world.entity(t.recipe.named[0].entity).lookalikes[0]).file
    program = t.trajectory.program.model_copy(update={"files": (wrong,)})
    found = audit(replace(_lesson(t), trajectory=t.trajectory.model_copy(update={"program": program})), hand.entity_of)
    assert found.scores["reference_grounding"] == 1
    assert "reference_grounding 1" in found.reason


def test_lettering_must_be_there_letter_for_letter(taught: list[Taught], hand: Hand) -> None:
    t = next(t for t in taught if not t.stage and t.recipe.scene.text)
    assert t.trajectory.program is not None
    assert t.recipe.scene.text is not None
    prompt = t.trajectory.program.gen_prompt.replace(t.recipe.scene.text, t.recipe.scene.text[:-1])
    program = t.trajectory.program.model_copy(update={"gen_prompt": prompt})
    found = audit(replace(_lesson(t), trajectory=t.trajectory.model_copy(update={"program": program})), hand.entity_of)
    assert found.scores["final_prompt_faithfulness"] == 1
    assert found.reason


def test_a_guide_that_is_ignored_costs_the_skill_integration(taught: list[Taught], hand: Hand) -> None:
    t = next(t for t in taught if t.habits == "guided" and not t.stage)
    kept = audit(_lesson(t), hand.entity_of).scores["skill_integration"]
    unread = next(
        k for k in ("count", "light", "pattern", "material", "colour") if k not in t.recipe.scene.model_dump()
    )
    ignored = audit(replace(_lesson(t), advised_skills=(unread,)), hand.entity_of).scores["skill_integration"]
    assert ignored < kept


def test_each_threshold_rejects_alone_and_says_so() -> None:
    full = dict.fromkeys(AT_LEAST, 5)
    assert verdict(full) == ""
    for name, least in AT_LEAST.items():
        assert verdict({**full, name: least}) == ""
        assert verdict({**full, name: least - 1}) == f"{name} {least - 1}"
    assert verdict(dict(AT_LEAST)).startswith("mean")


def test_program_checks_catch_what_is_broken(taught: list[Taught]) -> None:
    t = next(t for t in taught if not t.stage and any(n.clue for n in t.recipe.named))
    good = _lesson(t)
    assert structural_fault(good) == program_fault(good) == ""
    program = t.trajectory.program
    assert program is not None

    def broken(**changes: object) -> str:
        return program_fault(replace(good, trajectory=t.trajectory.model_copy(update=changes)))

    url = program.model_copy(update={"gen_prompt": program.gen_prompt + " As on https://example.org/x.png."})
    assert "URL" in broken(program=url)
    nameless = program.model_copy(update={"gen_prompt": program.gen_prompt.replace("first reference image", "flag")})
    assert "does not name 'the first reference image'" in broken(program=nameless)
    refused = t.trajectory.tool_calls[0].model_copy(update={"ok": False})
    assert "was refused" in broken(tool_calls=(refused, *t.trajectory.tool_calls[1:]))
    assert "never searched" in broken(tool_calls=tuple(c for c in t.trajectory.tool_calls if c.name != "search"))
    turns = [
        m.model_copy(update={"content": m.content + "x"}) if m.role == "assistant" else m for m in t.trajectory.messages
    ]
    assert "does not parse" in broken(messages=tuple(turns))
    assert structural_fault(replace(good, trajectory=t.trajectory.model_copy(update={"program": None}))) != ""


@pytest.fixture(scope="module")
def world(hand: Hand) -> World:
    return hand.world


def test_drawing_more_of_one_cell_changes_no_other(pools: dict[Split, Pool]) -> None:
    def first(extra: int) -> Recipe:
        drawer = Drawer(pools, 3)
        for _ in range(extra):
            drawer.draw(Cell("bench", "knowledge_anchored"))
        return drawer.draw(Cell("evolve", "knowledge_anchored"))

    alone, later = first(0), first(5)
    assert alone.request.id != later.request.id
    assert alone.request.question == later.request.question
    assert alone.key == later.key
