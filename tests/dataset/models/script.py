"""A scripted model behind the documented chat protocol: it writes, teaches, audits and filters over the embedded world."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler
from random import Random
from typing import Any

from genevolve.agent.format import answer_turn, call_turn
from genevolve.tools.entity import Entity
from genevolve.tools.world import World
from tests.services.chats import completion, text_of
from tests.tools.web import Reply, Server, status

KINDS = {"You write requests": "recipe", "You audit the work": "audit", "You decide whether": "gt_filter"}
AUDIT = {
    "rationale": "Sound.",
    "prompt_suitability": 5,
    "reference_grounding": 5,
    "process_quality": 4,
    "skill_integration": "4",
    "final_prompt_faithfulness": 4,
    "supervised_value": 4,
}
FILTER = {"rationale": "All there.", "compliance": 5, "reference_use": 4, "coherence": 5, "quality": 3}


def kind(messages: list[dict[str, Any]]) -> str:
    """Return which of the four questions this is."""
    begin = text_of(messages[0])
    return next((name for words, name in KINDS.items() if begin.startswith(words)), "teacher")


def seed_of(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the seed that the writer was given."""
    found = re.search(r"<seed>\n(.*)\n</seed>", text_of(messages[1]), re.S)
    assert found
    value: dict[str, Any] = json.loads(found[1])
    return value


class Script:
    """Answers every question; `faults` take the place of the answer to the n-th of a kind, from 0."""

    def __init__(self, world: World) -> None:
        named = [e for e in world.entities.values() if e.kind == "object" and len(e.name) > 3 and e.name.isascii()]
        self.entities = [e for e in named if re.fullmatch(r"[a-z ]+", e.name)]
        self.knowing = [e for e in self.entities if e.facts]
        self.seen: Counter[str] = Counter()
        self.faults: dict[tuple[str, int], Reply] = {}
        self._by_question: dict[str, tuple[Entity, str]] = {}
        self._lock = threading.Lock()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        messages = json.loads(handler.body)["messages"]  # type: ignore[attr-defined]
        with self._lock:
            what = kind(messages)
            fault = self.faults.get((what, self.seen[what]))
            self.seen[what] += 1
        (fault or getattr(self, what)(messages))(handler)

    def recipe(self, messages: list[dict[str, Any]]) -> Reply:
        seed = seed_of(messages)
        rng = Random(seed["ticket"])
        knowledge = seed["track"] == "knowledge_anchored"
        entity = rng.choice(self.knowing if knowledge else self.entities)
        clue = rng.choice(entity.facts).clue if knowledge else ""
        what = clue or f"the {entity.name}"
        mood, number = rng.choice(("calm", "wild", "old", "rich")), rng.choice(("two", "three", "four"))
        sign = " ".join(rng.sample("NORTH RIVER GOLDEN PAPER SILVER QUIET MARKET NIGHT COFFEE STAR".split(), 2))
        question = (
            f'A {mood} picture with {number} of {what} on one side, the sign "{sign}" above and a '
            f"{rng.choice(('red', 'blue', 'green'))} {rng.choice(('floor', 'wall', 'sky'))} for shop {rng.randrange(999)}"
        )
        self._by_question[question] = (entity, clue)
        return completion(
            {
                "anchors": [entity.name],
                "factual_gap": f"What is {clue}?" if clue else "",
                "dominant_requirement": f"{number} of it",
                "secondary_requirements": [f'the sign "{sign}"', "the colour"],
                "question": question,
            }
        )

    def teacher(self, messages: list[dict[str, Any]]) -> Reply:
        entity, clue = self._by_question[text_of(messages[1])]
        turns = [call_turn("It is a fact.", "search", clue)] if clue else []
        turns += [call_turn("Its look matters.", "image_search", entity.name)]
        turns += [call_turn("Signs are hard.", "query_knowledge", "text_rendering")]
        turn = len(messages) // 2 - 1
        if turn < len(turns):
            return completion(turns[turn], usage={"prompt_tokens": 900, "completion_tokens": 60})
        shown = [m["content"] for m in messages if m["role"] == "user" and "IMG_" in m["content"]]
        found = re.search(r"IMG_\d{3}", shown[0]) if shown else None
        prompt = f"Draw the thing of the first reference image. {text_of(messages[1])[:200].replace('/', ' ')}"
        return completion(answer_turn("Done.", prompt, [(found[0] if found else "IMG_001", entity.name)]))

    def audit(self, messages: list[dict[str, Any]]) -> Reply:
        return completion(AUDIT)

    def gt_filter(self, messages: list[dict[str, Any]]) -> Reply:
        return completion(FILTER)


def said(server: Server) -> Counter[bytes]:
    """Return how often each question was asked."""
    return Counter(body for *_, body in server.requests)


DOWN = status(500)
