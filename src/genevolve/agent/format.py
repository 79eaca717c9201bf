"""How turns, observations and programs are written as text: the writing half of the protocol (method.md, section 1).

Strings inside the JSON begin with a space, so that a word has the same tokens there as in running text; every reader strips.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

TOOLS = ("search", "image_search", "query_knowledge")

# The tags the loop itself writes or reads. Text from outside is never allowed to contain them (see `escape`).
TAGS = (
    "think",
    "tool_call",
    "answer",
    "tool_response",
)


def escape(text: str) -> str:
    """Return outside text that can hold no tag and no chat token: `<` becomes a look-alike, control characters a space."""
    cleaned = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return cleaned.replace("<", "‹").replace(">", "›")


def call_turn(think: str, name: str, argument: str) -> str:
    """Return an assistant turn that calls one tool with its one required argument.

    Words taken out of quotation marks have no space before them; so that they keep their tokens, a thought or a search
    query that begins with `"` is written without the mark and without the space.
    """
    value = {
        "search": f'{{"queries": [{_string(argument)}]}}',
        "image_search": f'{{"query": {_string(argument)}}}',
        "query_knowledge": f'{{"skill_name": {json.dumps(argument)}}}',
    }[name]
    return f'<think>{_spaced(think)}</think><tool_call>{{"name": "{name}", "arguments": {value}}}</tool_call>'


def answer_turn(think: str, gen_prompt: str, references: Sequence[tuple[str, str]]) -> str:
    """Return the final assistant turn; `references` are (img_id, note)."""
    rows = ", ".join(f'{{"img_id": " {i}", "note": {_string(note)}}}' for i, note in references)
    return (
        f'<think> {think}</think><answer>{{"gen_prompt": {_string(gen_prompt)}, "reference_images": [{rows}]}}</answer>'
    )


def _string(text: str) -> str:
    return json.dumps(_spaced(text.strip()), ensure_ascii=False)


def _spaced(text: str) -> str:
    return text[1:] if text.startswith('"') else " " + text


def search_observation(hits: Iterable[tuple[str, str]]) -> str:
    """Return the observation text for (snippet, title) pairs: the fact, then its source."""
    return _response([f" - {escape(snippet)} — {escape(title)}" for snippet, title in hits] or [" - nothing found"])


def image_observation(hits: Iterable[tuple[str, str]]) -> str:
    """Return the observation text for (title, img_id) pairs."""
    return _response([f" - {escape(title)} {img_id}" for title, img_id in hits] or [" - nothing found"])


def text_observation(text: str) -> str:
    """Return the observation for a guidance text or an error sentence."""
    return _response([" " + " ".join(escape(text).split())])


def _response(lines: Sequence[str]) -> str:
    return "<tool_response>\n" + "\n".join(lines) + "\n</tool_response>"
