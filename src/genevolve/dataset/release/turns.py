"""The conversations of the public release, read as tool calls and a program; their observation format is the release's or ours.

Of an observation only pictures are read (ids and titles), because programs refer to them; search results stay text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from genevolve.agent.protocol import Answer, Call, parse_turn
from genevolve.agent.rules import RuleError, build_program
from genevolve.records import Message, Program, Reference, ToolCall

_SHOWN = re.compile(r"^\s*(IMG_[0-9]{3}): title: (.*)$|^ - (.*) (IMG_[0-9]{3})$", re.MULTILINE)
_IMG_ID = re.compile(r"IMG_[0-9]{3}")
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
        call = (turn.name, turn.arguments) if isinstance(turn, Call) else _loose_call(message.content)
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


def _called(turn: int, call: tuple[str, dict[str, Any]], said: str, files: Mapping[str, str]) -> ToolCall:
    rows: list[dict[str, Any]] = []
    if call[0] == "image_search":
        for a, title_a, title_b, b in _SHOWN.findall(said):
            img_id = a or b
            row = {"img_id": img_id, "title": (title_a or title_b).strip(), "url": ""}
            rows.append({**row, "file": files[img_id]} if img_id in files else row)
    return ToolCall(turn=turn, name=call[0], arguments=call[1], ok=_FAILED.match(said) is None, result=rows)


def _loose_call(text: str) -> tuple[str, dict[str, Any]] | None:
    value = _object("tool_call", text)
    if value is None:
        return None
    name, arguments = value.get("name"), value.get("arguments")
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def loose_answer(text: str) -> tuple[str, list[tuple[str, str]]] | None:
    """Return (gen_prompt, [(img_id, note)]) as the release reads an answer: whatever stands around it; None without one."""
    value = _object("answer", text)
    if value is None or not isinstance(value.get("gen_prompt"), str) or not value["gen_prompt"].strip():
        return None
    rows = value.get("reference_images")
    found = [r for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []
    return value["gen_prompt"].strip(), [
        (str(r.get("img_id", "")).strip(), str(r.get("note", "")).strip()) for r in found
    ]


def _object(tag: str, text: str) -> dict[str, Any] | None:
    _, opened, rest = text.partition(f"<{tag}>")
    payload, closed, _ = rest.partition(f"</{tag}>")
    if not (opened and closed):
        return None
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def program_of(gen_prompt: str, references: Sequence[tuple[str, str]], files: Mapping[str, str]) -> Program | None:
    """Return the program as the release makes it: references sorted by id, the first two; None when it cannot be one.

    `files` is filled only when every reference has a file: a program's files stand one for one beside its references.
    """
    chosen = sorted((i, note) for i, note in dict(references).items() if _IMG_ID.fullmatch(i))[:2]
    known = [files[i] for i, _ in chosen if i in files]
    try:
        return Program(
            gen_prompt=gen_prompt,
            reference_images=tuple(Reference(img_id=i, note=note) for i, note in chosen),
            files=tuple(known) if len(known) == len(chosen) else (),
        )
    except ValidationError:
        return None
