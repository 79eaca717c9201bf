"""The embedded summariser: two trajectories of a request in, one bundle out, from a fixed table of bullets (ours).

It stands where the paper has a language model at temperature 0, and keeps its schema and its rules: a bullet
appears only when the best trajectory did the thing; with `Standard:` in front when the worst did it too; never an
entity, a query or a value of the request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from genevolve.experience.bullets import FIELD_OF, STANDARD, bullet
from genevolve.experience.contrast import Actions, Pair, actions
from genevolve.experience.text import quoted, unquoted_names, words
from genevolve.experience.wording import Wording
from genevolve.records import Bundle, DecisionGuidance, RetrievalKey
from genevolve.scene import SKILL_OF

_FOCUS = {
    "prompt_program": "Word every requirement in the exact form that the generator obeys.",
    "reference": "Choose the reference by its title, not by its place in the list.",
    "search": "Settle what the request means before looking for its picture.",
    "skill_routing": "Read the skill of each requirement before writing the prompt.",
    "tool_plan": "Call the tools in the order that the request needs.",
    "failure": "Answer in the right form and in time.",
}
"""One focus line per slot; the first slot of this table in which the pair differs gives the bundle's focus."""

_KIND_ORDER = ("whole", "count", "position", "colour", "text", "light", "material", "pattern")
_HAS_QUOTE = re.compile(r"[\"“”‘`]|(?<!\w)'|'(?!\w)")
_HAS_ID = re.compile(r"IMG_\d|https?://|/\w+/", re.IGNORECASE)


class Summariser(Protocol):
    """Turns best-worst pairs into bundles."""

    reasons: list[str]
    """Of the last call, one per pair: why it has no bundle, or an empty string."""

    def bundles(self, pairs: Sequence[Pair], step: int = 0) -> list[Bundle | None]:
        """Return one bundle per pair, in order; None where there is none."""
        ...


class ContrastSummariser:
    """The embedded Summariser: `summarise`, pair by pair."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def bundles(self, pairs: Sequence[Pair], step: int = 0) -> list[Bundle | None]:
        self.reasons = ["" for _ in pairs]
        return [summarise(pair, step) for pair in pairs]


def summarise(pair: Pair, step: int = 0) -> Bundle:
    """Return the bundle of one best-worst pair; the same pair and step give the same bundle."""
    best, worst = actions(pair.best), actions(pair.worst)
    bundle_id = f"{pair.request_id}.s{step:03d}"
    slots: dict[str, list[str]] = {slot: [] for slot in FIELD_OF}
    differs: set[str] = set()
    for slot, action, also_worst in _advice(best, worst):
        text = bullet(slot, action, _variant(bundle_id, slot, action))
        slots[slot].append(f"{STANDARD} {text}" if also_worst else text)
        if not also_worst:
            differs.add(slot)
    focus = next((line for slot, line in _FOCUS.items() if slot in differs), "Keep to the standard behaviour.")
    guidance = DecisionGuidance.model_validate(
        {"focus": focus, **{FIELD_OF[slot]: tuple(rows) for slot, rows in slots.items()}}
    )
    return Bundle(
        id=bundle_id,
        request_id=pair.request_id,
        question=pair.best.question,
        retrieval_key=_key(best, worst),
        decision_guidance=guidance,
        gap=pair.gap,
        best=pair.best.id,
        worst=pair.worst.id,
        step=step,
    )


def _advice(best: Actions, worst: Actions) -> Iterator[tuple[str, str, bool]]:
    """Yield (slot, action, the worst did it too) for everything the best did that the pair can support."""
    searched, direct = best.first_tool == "search" and best.search_paid, best.first_tool == "image_search"
    named = bool(best.picks) and all(p.from_request for p in best.picks)
    if searched:
        yield "tool_plan", "search_first", worst.first_tool == "search"
    elif direct and named:
        yield "tool_plan", "image_search_first", worst.first_tool == "image_search"
    if best.specific_query and best.search_paid:
        yield "search", "specific_query", worst.specific_query
    elif not best.queries and named:
        yield "search", "skip_search", not worst.queries
    exact = [k for k in _KIND_ORDER if best.wording.get(k) == Wording.EXACT]
    for kind in exact:
        if SKILL_OF[kind] in best.skills:  # a skill whose guidance was read and then not followed supports nothing
            yield "skill_routing", SKILL_OF[kind], SKILL_OF[kind] in worst.skills
    if best.title_match:
        yield "reference", "title_match", worst.title_match
    if best.references == 2 and len({p.query for p in best.picks}) == 2:
        yield "reference", "two_references", worst.references == 2
    for kind in exact:
        yield "prompt_program", kind, worst.wording.get(kind) == Wording.EXACT
    if best.answered and not best.ids_in_prompt:
        yield "failure", "no_ids_in_prompt", not worst.ids_in_prompt
    if best.answered and best.wasted == 0:
        yield "failure", "answer_in_time", worst.wasted == 0


def _variant(bundle_id: str, slot: str, action: str) -> int:
    return hashlib.sha256(f"{bundle_id}|{slot}|{action}".encode()).digest()[0]


def _key(best: Actions, worst: Actions) -> RetrievalKey:
    """Say in generic words when the bundle applies: how subjects are told, how many, what is asked of them."""
    kinds = [k for k in _KIND_ORDER if k != "whole" and max(best.wording.get(k, 0), worst.wording.get(k, 0))]
    told = "told through a fact" if best.search_paid else "named in the request"
    subjects = "two subjects" if best.references == 2 else "a subject"
    asked = f"asking for {', '.join(kinds)}" if kinds else "asking for nothing else"
    return RetrievalKey(
        trigger=f"a request with {subjects} {told}, {asked}",
        source_prompt_summary=f"{subjects}; {told}; {' '.join(kinds) or 'free'}",
    )


def violations(bundle: Bundle) -> list[str]:
    """Return the paper's rules that a bundle breaks, one sentence each; empty for a good one, whoever wrote it."""
    found = []
    telling, passages = unquoted_names(bundle.question), quoted(bundle.question)
    for slot, field in FIELD_OF.items():
        for text in getattr(bundle.decision_guidance, field):
            bare = text.removeprefix(STANDARD).strip()
            n = len(bare.split())
            if not 12 <= n <= 22:
                found.append(f"{bundle.id}: a {slot} bullet has {n} words, not 12-22")
            # A quotation counts whole and as it is written: the words of "FIRST STEP" are anybody's.
            if named := sorted(telling & set(words(bare))) + [p for p in passages if p in bare]:
                found.append(f"{bundle.id}: a {slot} bullet names the request's '{named[0]}'")
            if _HAS_QUOTE.search(bare) or _HAS_ID.search(bare):
                found.append(f"{bundle.id}: a {slot} bullet quotes text, an image id or an address")
    return found
