"""The dialogue of the public release: what its checkpoint was trained to read and write, in code of ours.

Formats, final step and leniency follow MeiGen-AI/GenEvolve at commit 23c847c (2026-05-22): whatever stands round an action is
ignored, an answer goes before a call, and a program is made of what can be used of it. Its words to the policy are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from genevolve.agent.format import TOOLS, escape
from genevolve.agent.protocol import (
    MAX_QUERIES,
    MAX_QUERY,
    MAX_REFERENCES,
    MAX_TOP_K,
    MAX_TURN,
    TOOLS_CLOSED,
    Answer,
    Call,
    FormatError,
    without_control,
)
from genevolve.agent.rules import RuleError
from genevolve.records import Program, Reference
from genevolve.scene import SKILLS

# "FINAL STEP" and the bare <answer> are what the release's system prompt announces.
FINAL_STEP = (
    "=== FINAL STEP ===\nThe tools are closed. Write nothing but your answer now, without <think>, from what you have found:\n"
    '<answer>{"gen_prompt": "...", "reference_images": [{"img_id": "IMG_###", "note": "..."}]}</answer>'
)
NOTHING_SHOWN = "--- image search result for [] ---\n--- end of image search result ---"
NO_ACTION = "Format error: write one <tool_call>{...}</tool_call> or one <answer>{...}</answer>."

_OPENED = {tag: re.compile(rf"<{tag}>\s*(?={{)") for tag in ("tool_call", "answer")}
_CLOSED = {tag: re.compile(rf"}}\s*</{tag}>") for tag in ("tool_call", "answer")}
_IMG_ID = re.compile(r"IMG_[0-9]{3}")


class Release:
    """The release's dialogue (`dialogue.Dialogue`). The reason of a FormatError is the whole observation."""

    final_step = FINAL_STEP
    repeats = True

    def parse(self, text: str, final: bool) -> Call | Answer | FormatError:
        """Return what a turn asks for, never an exception. A call that cannot be run is a FormatError with the release's
        observation for it; one in the last round is not run."""
        if len(text) > MAX_TURN:
            return FormatError(f"Format error: the turn is longer than {MAX_TURN} characters.")
        if (answer := loose_answer(text)) is not None:
            prompt, references = answer
            return Answer("", without_control(prompt), tuple((i, without_control(note)) for i, note in references))
        call = loose_call(text)
        if call is None:
            return FormatError(NO_ACTION)
        return FormatError(TOOLS_CLOSED) if final else _runnable(*call)

    def program(self, answer: Answer, files: Mapping[str, str]) -> Program:
        """Return the program: ids that were never shown are dropped, the first two of the rest taken; none is no fault.
        Raises RuleError for a prompt that is too long."""
        program = program_of(answer.gen_prompt, [r for r in answer.references if r[0] in files], files)
        if program is None:
            raise RuleError("Format error: the gen_prompt is too long.")
        return program

    def search(self, queries: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
        lines = []
        for query in queries:
            lines.append(f"--- search result for [{escape(query)}] ---")
            for number, row in enumerate((r for r in rows if r["query"] == query), 1):
                lines.append(f"{number}. title: {escape(row['title'])}")
                lines += [f"  {name}: {escape(row[name])}" for name in ("url", "snippet") if row[name]]
            lines.append("--- end of search result ---")
        return self.said("\n".join(lines))

    def images(self, query: str, rows: Sequence[Mapping[str, str]]) -> str:
        lines = [f"--- image search result for [{escape(query)}] ---"]
        for row in rows:
            lines.append(f"{row['img_id']}: title: {escape(row['title'])}")
            lines += [f"  url: {escape(row['url'])}"] if row["url"] else []
            lines.append(f"  local_path: {escape(row['file'])}")
        lines.append("--- end of image search result ---")
        return self.said("\n".join(lines))

    def skill(self, name: str, text: str) -> str:
        body = "\n".join(escape(line) for line in text.split("\n"))
        return self.said(f"## Skill Guidance\n\n=== Skill: {name} ===\n{body}")

    def failed(self, tool: str, how: str) -> str:
        return self.said(f"[tool error] {tool}: {escape(how)}")

    def format_error(self, reason: str) -> str:
        return self.said(reason)

    def said(self, text: str) -> str:
        """Return text that holds no tag from outside as an observation."""
        return f"<tool_response>\n{text}\n</tool_response>"


def _runnable(name: str, given: Mapping[str, Any]) -> Call | FormatError:
    """Return the call with its arguments as the tools take them; what the release answers where there is nothing to run."""
    name = name.strip()
    if name not in TOOLS:
        return FormatError(f"Unknown tool: {escape(name[:MAX_QUERY])}")
    try:
        arguments: dict[str, Any] = {"top_k": max(1, min(int(given["top_k"]), MAX_TOP_K))} if given.get("top_k") else {}
        if name == "search":
            queries = given.get("queries") or []
            wanted = [_text(q) for q in ([queries] if isinstance(queries, str) else queries)]
            if not any(wanted):
                return FormatError("[search] empty queries")
            return Call("", name, {"queries": [q for q in wanted if q][:MAX_QUERIES], **arguments})
        if name == "image_search":
            query = _text(given.get("query"))
            return Call("", name, {"query": query, **arguments}) if query else FormatError(NOTHING_SHOWN)
        skill = _text(given.get("skill_name"))
    except (TypeError, ValueError, OverflowError):
        return FormatError(f"[tool error] {name}: an argument is of the wrong kind.")
    if skill not in SKILLS:
        return FormatError(f"Unknown skill '{escape(skill)}'. Available skills: {', '.join(SKILLS)}")
    return Call("", name, {"skill_name": skill})


def _text(value: Any) -> str:
    """Return a string that records and services can hold, '' for None; raise TypeError for what is no string."""
    if value is not None and not isinstance(value, str):
        raise TypeError
    return without_control(value or "").strip()[:MAX_QUERY]


def loose_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """Return (name, arguments) as the release reads a call: whatever stands around it; None without one."""
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
        (str(r.get("img_id") or "").strip(), str(r.get("note") or "").strip()) for r in found
    ]


def _object(tag: str, text: str) -> dict[str, Any] | None:
    """Return the JSON object between the first `<tag>{` and the first `}</tag>` behind it; a tag in a thought is neither."""
    opened = _OPENED[tag].search(text)
    closed = _CLOSED[tag].search(text, opened.end()) if opened else None
    if opened is None or closed is None:
        return None
    try:
        value = json.loads(text[opened.end() : closed.start() + 1])
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def program_of(gen_prompt: str, references: Sequence[tuple[str, str]], files: Mapping[str, str]) -> Program | None:
    """Return the program as the release makes it: references sorted by id, the first two; None when it cannot be one.

    `files` is filled only when every reference has a file: a program's files stand one for one beside its references.
    """
    chosen = sorted((i, note) for i, note in dict(references).items() if _IMG_ID.fullmatch(i))[:MAX_REFERENCES]
    known = [files[i] for i, _ in chosen if i in files]
    try:
        return Program(
            gen_prompt=gen_prompt,
            reference_images=tuple(Reference(img_id=i, note=note) for i, note in chosen),
            files=tuple(known) if len(known) == len(chosen) else (),
        )
    except ValidationError:
        return None
