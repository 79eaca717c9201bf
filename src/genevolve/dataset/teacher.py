"""A scripted teacher of uneven quality: it knows the recipe, works through the real tools, and has bad habits (ours).

The paper's teacher is a strong chat model whose trajectories are audited before they are used. This one makes mistakes
at known rates, so that the audit has something to reject and evolution something to improve.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from random import Random

from genevolve.agent.format import answer_turn, call_turn
from genevolve.dataset.recipes import Named
from genevolve.dataset.wording import KINDS, write_prompt
from genevolve.scene import SKILL_OF, Scene


@dataclass(frozen=True)
class Habits:
    """Rates at which the teacher does the right thing, one decision at a time; `max_skills` bounds its patience."""

    activate: float = 0.4
    """P(query the skill of a requirement)"""
    exact_if_read: float = 0.95
    """P(exact wording | its skill was read)"""
    exact_unread: float = 0.35
    """P(exact wording | not read)"""
    omit_unread: float = 0.1
    """P(say nothing | not read and not exact); lettering and `whole` have rules of their own"""
    vague_search: float = 0.1
    """P(first search query is too vague)"""
    careless_pick: float = 0.05
    """P(take the first picture instead of the one whose title matches)"""
    max_skills: int = 3


CAREFUL = Habits(activate=0.75, exact_unread=0.6, vague_search=0.03, careless_pick=0.0)
ORDINARY = Habits()
SLOPPY = Habits(activate=0.15, exact_unread=0.15, omit_unread=0.4, vague_search=0.4, careless_pick=0.4)


@dataclass(frozen=True)
class Plan:
    """What a trajectory is going to do: drawn from habits, or fixed by a guide it follows."""

    skills: tuple[str, ...]
    """requirement kinds whose skill is queried, in order"""
    style: dict[tuple[str, int | None], str] = field(default_factory=dict)
    vague: bool = False
    careless: bool = False


def kinds_of(scene: Scene) -> list[str]:
    """Return the requirement kinds of a scene, `whole` first, in the canonical order."""
    present = {k for k, _, _ in scene.requirements()} | {"whole"}
    return [k for k in KINDS if k in present]


def make_plan(rng: Random, scene: Scene, habits: Habits, read: Sequence[str] = (), exact: Sequence[str] = ()) -> Plan:
    """Draw a plan; a guide may fix the kinds whose skill is `read` and the kinds worded `exact`."""
    kinds = kinds_of(scene)
    wanted = [k for k in kinds if k in read or rng.random() < habits.activate]
    while len(wanted) > max(habits.max_skills, sum(k in read for k in wanted)):
        wanted.remove(rng.choice([k for k in wanted if k not in read]))
    style: dict[tuple[str, int | None], str] = {}
    keys: list[tuple[str, int | None]] = [("whole", i) for i in range(len(scene.subjects))]
    keys += [(k, i) for k, i, _ in scene.requirements()]
    drawn: dict[str, str] = {}
    for kind, index in keys:
        if kind not in drawn:
            drawn[kind] = "exact" if kind in exact else _wording(rng, kind, kind in wanted, habits)
        style[kind, index] = drawn[kind]
    return Plan(tuple(wanted), style, rng.random() < habits.vague_search, rng.random() < habits.careless_pick)


def _wording(rng: Random, kind: str, read: bool, habits: Habits) -> str:
    if rng.random() < (habits.exact_if_read if read else habits.exact_unread):
        return "exact"
    if kind == "text":
        return "loose"
    return "omit" if kind == "whole" or rng.random() < habits.omit_unread else "loose"


def teach(rng: Random, scene: Scene, named: Sequence[Named], plan: Plan) -> Generator[str, str, None]:
    """Yield assistant turns; send back each tool observation. Ends with the answer turn.

    The teacher reads observations only for the id behind a title, as a careful reader would; what it looks for it knows
    from the recipe.
    """
    picks: list[tuple[str, str]] = []
    note = ""
    for who in named:
        if who.clue is not None:
            query = search_query(who.clue)
            if plan.vague:
                yield call_turn(_join(note, "Find the fact."), "search", _vague(query))
                note = ""
            observation = yield call_turn(_join(note, "Find the fact."), "search", query)
            note = fact_note(observation, who)
        observation = yield call_turn(_join(note, f"Find {who.name}."), "image_search", who.name)
        img_id = _pick(observation, who.name, plan.careless)
        if img_id is not None:
            picks.append((img_id, who.name))
        note = f"Take {who.name} {img_id}." if img_id else ""
    for kind in plan.skills:
        yield call_turn(_join(note, f"Check {kind}."), "query_knowledge", SKILL_OF[kind])
        note = ""
    think = "Use " + ", ".join(f"{name} {img_id}" for img_id, name in picks) + "."
    yield answer_turn(think, write_prompt(rng, scene, plan.style), picks)


def fact_note(observation: str, who: Named) -> str:
    """Return the thought that reads a fact off the results: its words and the title behind them; empty when it is not there."""
    if who.clue is None:
        return ""
    title, value = who.name.removeprefix("flag of "), fact_value(who.clue)
    for line in observation.splitlines():
        snippet, _, source = line.removeprefix(" - ").rpartition(" — ")
        if source == title and value in snippet:
            words = '"' + snippet[snippet.index(value) :] if '"' in who.clue else snippet
            return f"{words} — {title}."
    return ""


_RELATIONS = (" is ", " code ", " named ", " as ")


def fact_value(clue: str) -> str:
    """Return the value a clue names its thing by: 'Thimphu' of 'the country whose capital is Thimphu'."""
    if '"' in clue:
        return clue.split('"')[1]
    return clue[max(clue.rfind(r) + len(r) for r in _RELATIONS if r in clue) :]


def search_query(clue: str) -> str:
    """Return the query for a clue: the quoted words (with their opening mark, see `call_turn`), or the clue without its article."""
    return '"' + fact_value(clue) if '"' in clue else clue.removeprefix("the ")


def _vague(query: str) -> str:
    return " ".join(query.removeprefix('"').split()[:2])


def _join(*parts: str) -> str:
    return " ".join(p for p in parts if p)


def _pick(observation: str, name: str, careless: bool) -> str | None:
    rows = [line.removeprefix(" - ").rsplit(" ", 1) for line in observation.splitlines() if "IMG_" in line]
    if careless and rows:
        return rows[0][1]
    return next((img_id for title, img_id in rows if title == name), None)
