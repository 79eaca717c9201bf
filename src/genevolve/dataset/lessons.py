"""The scripted teacher at work: recipe -> trajectory, through the real session and the real tools (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from genevolve.agent.protocol import FormatError, parse_turn
from genevolve.agent.rules import RuleError, check_prompt
from genevolve.agent.session import Session, Tools
from genevolve.agent.system import system_prompt
from genevolve.dataset.recipe_pool import Recipe
from genevolve.dataset.teacher import CAREFUL, ORDINARY, SLOPPY, Habits, make_plan, teach
from genevolve.records import Program, Trajectory
from genevolve.training.drills import GUIDED, draw_guided, make_guide

MIX: tuple[tuple[str, Habits, float], ...] = (
    ("careful", CAREFUL, 0.35),
    ("ordinary", ORDINARY, 0.3),
    ("sloppy", SLOPPY, 0.35),
)
"""How often the teacher of unguided trajectories has which habits."""


@dataclass(frozen=True)
class Lesson:
    """What the teacher did for one recipe, and in which mood."""

    recipe: Recipe
    trajectory: Trajectory
    habits: str
    advised_skills: tuple[str, ...] = ()
    """requirement kinds whose skill the guide advises"""
    advised_wordings: tuple[str, ...] = ()
    """requirement kinds whose exact wording the guide advises"""


def give_lesson(recipe: Recipe, tools: Tools, system: str) -> Lesson:
    """Play one trajectory; a guided one carries a guide in its system prompt and follows it."""
    rng = Random(f"teacher|{recipe.key}")
    read: list[str] = []
    exact: list[str] = []
    guide = None
    if recipe.guided:
        mood, habits = "guided", GUIDED
        read, exact = draw_guided(rng, recipe.scene)
        knowledge = any(n.clue for n in recipe.named)
        guide = make_guide(rng, recipe.scene, knowledge, read, exact)
    else:
        mood, habits, _ = rng.choices(MIX, [share for *_, share in MIX])[0]
    plan = make_plan(rng, recipe.scene, habits, read, exact)
    session = Session(tools)
    session.start(recipe.request.question, system_prompt(system, guide))
    script = teach(rng, recipe.scene, recipe.named, plan)
    observation = session.step(next(script))
    while observation is not None:
        try:
            observation = session.step(script.send(observation))
        except StopIteration:  # its answer was refused and it has no other
            session.stop("protocol", "The teacher's answer broke a rule.")
            break
    return Lesson(recipe, _trajectory(recipe, session), mood, tuple(read), tuple(exact))


def _trajectory(recipe: Recipe, session: Session) -> Trajectory:
    return Trajectory(
        id=f"{recipe.request.id}-0",
        request_id=recipe.request.id,
        rollout=0,
        question=recipe.request.question,
        messages=tuple(session.messages),
        tool_calls=tuple(session.tool_calls),
        program=session.program,
        termination=session.termination or "error",
        failure=session.failure,
        format_errors=session.format_errors,
    )


def structural_fault(lesson: Lesson) -> str:
    """Return why a trajectory is not structurally valid, or an empty string."""
    return unfinished(lesson.trajectory)


def unfinished(t: Trajectory) -> str:
    """Return why a trajectory is not structurally valid, whoever played it, or an empty string."""
    if t.program is None:
        return t.failure or "there is no program"
    return f"{t.format_errors} turns broke the format" if t.format_errors else ""


def program_fault(lesson: Lesson) -> str:
    """Return the first program check that fails (method.md, section 2), or an empty string.

    Every turn parses; calls were answered, skill names among them; each tool was of use; ordinals present; no raw URL.
    """
    t = lesson.trajectory
    if t.program is None:
        return "there is no program"
    if fault := turns_fault(t):
        return fault
    searched = sum(c.name == "search" for c in t.tool_calls)
    gaps = sum(n.clue is not None for n in lesson.recipe.named)
    if searched < gaps:
        return "a fact was never searched"
    if searched and not gaps:
        return "a search that the request does not need"
    if len(t.program.files) != len(lesson.recipe.scene.subjects):
        return "not one reference for each subject"
    return prompt_fault(t.program)


def turns_fault(t: Trajectory) -> str:
    """Return what is wrong with a trajectory's turns and calls, or an empty string."""
    for m in t.messages:
        if m.role == "assistant" and isinstance(turn := parse_turn(m.content, False), FormatError):
            return f"a turn does not parse: {turn.reason}"
    refused = next((c for c in t.tool_calls if not c.ok), None)
    if refused is not None:
        return f"a call of {refused.name} was refused"
    empty = next((c for c in t.tool_calls if not c.result), None)
    if empty is not None:
        return f"a call of {empty.name} found nothing"
    return ""


def prompt_fault(program: Program) -> str:
    """Return what is wrong with a program's prompt, or an empty string."""
    try:
        check_prompt(program.gen_prompt, len(program.files))
    except RuleError as e:
        return str(e)
    return ""
