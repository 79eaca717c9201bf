"""The conversations of the public release, read as tool calls and a program; their observation format is the release's or ours.

Of an observation only pictures are read (ids and titles), because programs refer to them; search results stay text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve.agent.protocol import Answer, Call, parse_turn
from genevolve.agent.release import loose_answer, loose_call, program_of
from genevolve.agent.rules import RuleError, build_program
from genevolve.records import Message, Program, ToolCall

_SHOWN = re.compile(r"^\s*(IMG_[0-9]{3}): title: (.*)$|^ - (.*) (IMG_[0-9]{3})$", re.MULTILINE)
_FAILED = re.compile(r"<tool_response>\s*(?:Format error|\[tool error\]|Unknown tool)")


@dataclass(frozen=True)
class Played:
    """What a conversation did."""

    tool_calls: tuple[ToolCall, ...]
    program: Program | None
    """None: its last turn holds no answer that can be read"""
    refused: tuple[str, ...]
    """why our own agent would refuse a turn or the program; the release's rules are looser"""


def read_turns(messages: Sequence[Message], files: Mapping[str, str]) -> Played:
    """Return the calls and the program of a conversation; `files`: image id -> file, of those that are there."""
    calls: list[ToolCall] = []
    refused: list[str] = []
    answer: tuple[str, list[tuple[str, str]]] | None = None
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        turn = parse_turn(message.content)
        if isinstance(turn, Answer):
            answer = (turn.gen_prompt, list(turn.references))
            continue
        if not isinstance(turn, Call):
            refused.append(turn.reason)
            answer = loose_answer(message.content) or answer
        call = (turn.name, turn.arguments) if isinstance(turn, Call) else loose_call(message.content)
        if call is not None:
            said = messages[i + 1].content if i + 1 < len(messages) else ""
            calls.append(_called(len(calls), call, said, files))
    if answer is None:
        return Played(tuple(calls), None, tuple(refused))
    shown = {row["img_id"]: str(row.get("file", row["img_id"])) for c in calls for row in c.result if "img_id" in row}
    try:
        build_program(Answer("", answer[0], tuple(answer[1])), shown)
    except (RuleError, ValueError) as e:
        refused.append(str(e))
    return Played(tuple(calls), program_of(answer[0], answer[1], files), tuple(refused))


def dialogue_of(messages: Sequence[Message]) -> str:
    """Return whose observations a conversation holds, a value of `policy.dialogue`; '' where no picture was shown."""
    found = next((m for said in messages if said.role == "user" for m in _SHOWN.finditer(said.content)), None)
    return "" if found is None else "release" if found[1] else "ours"


def _called(turn: int, call: tuple[str, dict[str, Any]], said: str, files: Mapping[str, str]) -> ToolCall:
    rows: list[dict[str, Any]] = []
    if call[0] == "image_search":
        for a, title_a, title_b, b in _SHOWN.findall(said):
            img_id = a or b
            row = {"img_id": img_id, "title": (title_a or title_b).strip(), "url": ""}
            rows.append({**row, "file": files[img_id]} if img_id in files else row)
    return ToolCall(turn=turn, name=call[0], arguments=call[1], ok=_FAILED.match(said) is None, result=rows)
