"""The turn grammar: the reading half of the protocol (method.md, section 1; `format.py` is the writing half).

A turn is `<think>...</think>` and then exactly one `<tool_call>` or `<answer>` with one JSON object in it. What a model
writes is hostile until read: `parse_turn` returns a value for every string there is and raises for none.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from genevolve.agent.format import TAGS, TOOLS

MAX_TURN = 40_000
"""Characters of one turn; 4,096 tokens a round (the release's limit) stay well below it."""
MAX_QUERIES = 5
MAX_QUERY = 400
MAX_TOP_K = 20
MAX_PROMPT = 8_000
MAX_NOTE = 400
MAX_REFERENCES = 2

TOOLS_CLOSED = "This is the last round: no tool can be called, only an <answer> is read."

_TAG = re.compile(r"<[ \t]{0,8}(/?)[ \t]{0,8}(" + "|".join(TAGS) + r")(?![a-z_])[^<>]{0,80}>?", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # Unicode's Cc but for the three that text has
_ID = re.compile(r"IMG_[0-9]{3}")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` hold `queries`, `query` or `skill_name`, stripped, and `top_k` when it was given."""

    think: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer as it was written: references are (img_id, note), their order and ids not yet judged."""

    think: str
    gen_prompt: str
    references: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FormatError:
    """Why a turn cannot be read, as a sentence for the model."""

    reason: str


class _Bad(ValueError):
    """Internal: carries the sentence of a FormatError out of the readers below."""


def parse_turn(text: str, final_round: bool = False) -> Call | Answer | FormatError:
    """Return what one assistant turn asks for; a turn that breaks the grammar in any way is a FormatError, never an
    exception. With `final_round` a tool call is an error too."""
    try:
        think, action, payload = _split(text)
        if action == "tool_call":
            if final_round:
                raise _Bad(TOOLS_CLOSED)
            return _call(think, _object(payload, "tool_call"))
        return _answer(think, _object(payload, "answer"))
    except _Bad as e:
        return FormatError(str(e))


def _split(text: str) -> tuple[str, str, str]:
    """Return (think, 'tool_call' or 'answer', payload). Any tag more, anywhere, even in a JSON string, is refused."""
    if len(text) > MAX_TURN:
        raise _Bad(f"The turn is longer than {MAX_TURN} characters.")
    if not _encodable(text):
        raise _Bad("The turn is not valid Unicode text.")
    if "<|" in text:
        raise _Bad("The turn holds a chat token such as <|im_start|>.")
    found = list(_TAG.finditer(text))
    spelling = [m.group() for m in found]
    actions = [m for m in found if not m.group(1) and m.group(2).lower() in ("tool_call", "answer")]
    if len(actions) != 1:
        many = "more than one action" if actions else "no action"
        raise _Bad(f"The turn has {many}: write exactly one <tool_call> or one <answer>.")
    action = actions[0].group(2).lower()
    if spelling != ["<think>", "</think>", f"<{action}>", f"</{action}>"]:
        raise _Bad(
            "The tags are not <think>...</think> and then one closed <tool_call> or <answer>, each written once."
        )
    opened, closed, start, end = found
    if text[: opened.start()].strip() or text[closed.end() : start.start()].strip() or text[end.end() :].strip():
        raise _Bad("There is text outside the tags.")
    return text[opened.end() : closed.start()].strip(), action, text[start.end() : end.start()]


def _object(payload: str, action: str) -> dict[str, Any]:
    """Return the one JSON object of an action; duplicate keys, NaN and anything that is not standard JSON are refused."""
    try:
        value = json.loads(payload, object_pairs_hook=_unique, parse_constant=_no_constant)
    except _Bad:
        raise
    except RecursionError:
        raise _Bad(f"The JSON in <{action}> is nested too deeply.") from None
    except json.JSONDecodeError as e:
        raise _Bad(f"The <{action}> does not hold valid JSON ({e.msg} at character {e.pos}).") from None
    except ValueError:  # an integer of thousands of digits
        raise _Bad(f"The JSON in <{action}> holds a number that is too long.") from None
    if not isinstance(value, dict):
        raise _Bad(f"The <{action}> must hold one JSON object.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Bad("A JSON key is written twice.")
    return value


def _no_constant(name: str) -> Any:
    raise _Bad(f"{name} is not a JSON value.")


def _call(think: str, value: dict[str, Any]) -> Call:
    _keys(value, "tool_call", {"name", "arguments"}, {"name", "arguments"})
    name, given = value["name"], value["arguments"]
    if not isinstance(name, str) or name.strip() not in TOOLS:
        raise _Bad(f"There is no such tool; the tools are {', '.join(TOOLS)}.")
    name = name.strip()
    if not isinstance(given, dict):
        raise _Bad("The arguments must be a JSON object.")
    needed = {"search": "queries", "image_search": "query", "query_knowledge": "skill_name"}[name]
    _keys(given, name, {needed}, {needed, "top_k"})
    arguments: dict[str, Any] = {}
    if name == "search":
        queries = given["queries"]
        if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_QUERIES:
            raise _Bad(f"'queries' must be a list of 1 to {MAX_QUERIES} strings.")
        arguments["queries"] = [_text(q, "A query", MAX_QUERY) for q in queries]
    else:
        arguments[needed] = _text(given[needed], f"'{needed}'", MAX_QUERY)
    if "top_k" in given:
        top_k = given["top_k"]
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= MAX_TOP_K:
            raise _Bad(f"'top_k' must be a whole number from 1 to {MAX_TOP_K}.")
        arguments["top_k"] = top_k
    return Call(think, name, arguments)


def _answer(think: str, value: dict[str, Any]) -> Answer:
    both = {"gen_prompt", "reference_images"}
    _keys(value, "answer", both, both)
    prompt = _text(value["gen_prompt"], "'gen_prompt'", MAX_PROMPT)
    rows = value["reference_images"]
    # Twice the limit, because a doubled reference is forgiven (the session drops it) and an endless list is not.
    if not isinstance(rows, list) or not 1 <= len(rows) <= 2 * MAX_REFERENCES:
        raise _Bad("'reference_images' must be a list of one or two references.")
    references = []
    for row in rows:
        if not isinstance(row, dict):
            raise _Bad("A reference must be a JSON object with 'img_id' and 'note'.")
        _keys(row, "reference", {"img_id"}, {"img_id", "note"})
        img_id = _text(row["img_id"], "'img_id'", 20)
        if not _ID.fullmatch(img_id):
            raise _Bad("An 'img_id' must look like IMG_001.")
        references.append((img_id, _text(row["note"], "'note'", MAX_NOTE, empty=True) if "note" in row else ""))
    return Answer(think, prompt, tuple(references))


def _keys(value: dict[str, Any], what: str, needed: set[str], allowed: set[str]) -> None:
    missing = sorted(needed - value.keys())
    if missing:
        raise _Bad(f"The {what} lacks '{missing[0]}'.")
    if value.keys() - allowed:
        raise _Bad(f"The {what} has a key it should not have; the keys are {', '.join(sorted(allowed))}.")


def _text(value: Any, what: str, limit: int, empty: bool = False) -> str:
    """Return a stripped string. JSON escapes can smuggle in what `_split` never saw (`\\u003c`), so look again here."""
    if not isinstance(value, str):
        raise _Bad(f"{what} must be a string.")
    text: str = value.strip()
    if not text and not empty:
        raise _Bad(f"{what} is empty.")
    if len(text) > limit:
        raise _Bad(f"{what} is longer than {limit} characters.")
    if not _encodable(text) or _CONTROL.search(text):
        raise _Bad(f"{what} holds characters that are not text.")
    if "<|" in text or _TAG.search(text):
        raise _Bad(f"{what} holds a tag.")
    return text


def without_control(text: str) -> str:
    """Return text that UTF-8 can hold, without control characters but those of lines and columns."""
    return _CONTROL.sub(" ", text.encode("utf-8", "replace").decode("utf-8"))


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
