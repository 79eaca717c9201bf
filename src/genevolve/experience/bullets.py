"""The bullets of an experience bundle: a fixed table of advice, keyed by slot and action (ours).

The paper's summariser is a language model; the embedded one is this table. It names no entity, no query and no
value of a request, so a bundle of one request can be read for another. Every bullet keeps the paper's rule (12-22
words, imperative); most have the least, twelve, because the small policy pays for every token of the guide.
"""

from __future__ import annotations

from genevolve.scene import SKILL_OF, SKILLS

VARIANTS = 2
STANDARD = "Standard:"
"""Prefix of a bullet on which the best and the worst trajectory did not differ (paper, section 5)."""

_TOPIC = {
    "spatial_layout": "the position",
    "aesthetic_drawing": "the light",
    "text_rendering": "the lettering",
    "creative_drawing": "the pattern",
    "anatomy_body_coherence": "the subject",
    "attribute_binding": "the colour",
    "physical_material_consistency": "the ground",
    "quantity_counting": "the count",
}

_TABLE: dict[str, dict[str, tuple[str, str]]] = {
    "tool_plan": {
        "search_first": (
            "Call search first, read the fact, then look for the picture itself.",
            "Begin with search to name the thing, and only then call image_search.",
        ),
        "image_search_first": (
            "Call image_search at once, because the request already names the subject plainly.",
            "Go straight to image_search with the name that the request gives you.",
        ),
    },
    "search": {
        "specific_query": (
            "Copy the whole fact from the request, word by word, into search.",
            "Ask search with the full fact of the request, never with less.",
        ),
        "skip_search": (
            "Skip search when the request names its subject, and save the turn.",
            "Do not call search here, because the subject is already named plainly.",
        ),
    },
    "skill_routing": {
        skill: (
            f"Call query_knowledge for {skill} before you write {_TOPIC[skill]} in the answer.",
            f"Read the skill {skill} first when the request is about {_TOPIC[skill]}.",
        )
        for skill in SKILLS
    },
    "reference": {
        "title_match": (
            "Pick the result whose title is the very name you searched for.",
            "Compare every title with the name, and pick only the equal one.",
        ),
        "two_references": (
            "Pick a reference for each subject, and keep both in id order.",
            "Run image_search for each subject, and cite both pictures in the answer.",
        ),
    },
    "prompt_program": {
        "position": (
            "Write that it is placed entirely in its half of the picture.",
            "Give the side as placed entirely in the half that was asked.",
        ),
        "light": (
            "Write that the asked light fills the whole background of the picture.",
            "Name the light and write that this light fills the whole background.",
        ),
        "text": (
            "Quote the exact text in large bold letters on a plain banner.",
            "Put the exact text in large bold letters and name its place.",
        ),
        "pattern": (
            "Write a backdrop pattern of even shapes, and name the asked shape.",
            "Name the backdrop pattern that was asked and call its shapes even.",
        ),
        "whole": (
            "Write that every subject is shown whole and unaltered, just as given.",
            "Write the words shown whole and unaltered right after each reference image.",
        ),
        "colour": (
            "Write that each copy stands on its own solid plate of colour.",
            "Give each copy its own solid plate and name the asked colour.",
        ),
        "material": (
            "Name the ground that was asked, with soft contact shadows below it.",
            "Write the ground with its material and with soft contact shadows below.",
        ),
        "count": (
            "Write the count as exactly that many separate copies of the subject.",
            "Order the number with exactly and separate copies, never with loose words.",
        ),
    },
    "failure": {
        "no_ids_in_prompt": (
            "Keep every image id out of the prompt; say first reference image.",
            "Do not write image ids in the prompt, only name reference images.",
        ),
        "answer_in_time": (
            "Stop calling tools once the picture is found, and answer in time.",
            "Write the answer before the rounds run out, even without more tools.",
        ),
    },
}

SLOTS: tuple[str, ...] = tuple(_TABLE)
ACTIONS: dict[str, tuple[str, ...]] = {slot: tuple(rows) for slot, rows in _TABLE.items()}

FIELD_OF = {
    "tool_plan": "recommended_tool_plan",
    "search": "search_query_guidance",
    "skill_routing": "skill_routing_guidance",
    "reference": "reference_selection_guidance",
    "prompt_program": "prompt_program_guidance",
    "failure": "failure_guards",
}
"""The field of `DecisionGuidance` that a slot's bullets fill."""

assert set(ACTIONS["prompt_program"]) == set(SKILL_OF)


def bullet(slot: str, action: str, variant: int) -> str:
    """Return the advice for one action of one slot; `variant` is taken modulo the number of paraphrases.

    Raises KeyError when the table has no such slot or action.
    """
    return _TABLE[slot][action][variant % VARIANTS]
