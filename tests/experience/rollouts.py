"""Small real trajectories: what the agent loop would record, without a model."""

from __future__ import annotations

from typing import Any

from genevolve.records import Bundle, DecisionGuidance, Program, Reference, RetrievalKey, Reward, ToolCall, Trajectory

QUESTION = (
    "Draw the flag of the country whose capital is Thimphu, shown three times, to the left, with a red plate under it, "
    'with the sign "OPEN DAY" at the top, in warm sunset light.'
)
EXACT = (
    "The first reference image, shown whole and unaltered, exactly three separate copies, placed entirely in the left "
    "half, each on its own solid red plate. The exact text 'OPEN DAY' in large bold letters on a plain banner at the "
    "top. Warm sunset light fills the whole background."
)
LOOSE = (
    "The first reference image, three of them, on the left side, with some red. The words 'OPEN DAY' at the top. "
    "Some warm sunset mood."
)
TITLES = ("flag of Nepal", "flag of Bhutan", "coat of arms of Bhutan")


def search(query: str, turn: int = 0, ok: bool = True) -> ToolCall:
    hit = {"title": "Bhutan", "url": "", "snippet": "capital: Thimphu"}
    return ToolCall(turn=turn, name="search", arguments={"queries": [query]}, ok=ok, result=[hit] if ok else [])


def look(query: str, turn: int = 1, first_id: int = 1, titles: tuple[str, ...] = TITLES) -> ToolCall:
    rows = [{"img_id": f"IMG_{first_id + i:03d}", "title": t, "file": f"images/{i}.svg"} for i, t in enumerate(titles)]
    return ToolCall(turn=turn, name="image_search", arguments={"query": query}, ok=True, result=rows)


def skill(name: str, turn: int = 2, ok: bool = True) -> ToolCall:
    return ToolCall(
        turn=turn, name="query_knowledge", arguments={"skill_name": name}, ok=ok, result=[{"text": "Write."}]
    )


def make(rollout: int = 0, total: float | None = 0.5, **given: Any) -> Trajectory:
    """Return a trajectory of request `r1` (or `request_id`) with this reward; `prompt=None` makes no program."""
    request_id = given.pop("request_id", "r1")
    prompt = given.pop("prompt", EXACT)
    picks = given.pop("picks", ("IMG_002",))
    program = Program(gen_prompt=prompt, reference_images=tuple(Reference(img_id=i) for i in picks)) if prompt else None
    fields: dict[str, Any] = {
        "id": f"{request_id}-{rollout}",
        "request_id": request_id,
        "rollout": rollout,
        "question": QUESTION,
        "messages": (),
        "program": program,
        "reward": None if total is None else Reward(total=total),
        "tool_calls": (search("country whose capital is Thimphu"), look("flag of Bhutan")),
    }
    return Trajectory.model_validate({**fields, **given})


def make_bundle(number: int, gap: float = 0.5, question: str = "", step: int = 0, request_id: str = "") -> Bundle:
    return Bundle(
        id=f"b{number:03d}",
        request_id=request_id or f"r{number:03d}",
        question=question or f"Draw thing number {number}.",
        retrieval_key=RetrievalKey(trigger="t", source_prompt_summary="s"),
        decision_guidance=DecisionGuidance(focus="f"),
        gap=gap,
        best="a",
        worst="b",
        step=step,
    )
