"""One row of the public formats becomes one record of ours, or a RowError that names the column."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, get_args

from pydantic import ValidationError

from genevolve.dataset.release.layout import Part
from genevolve.dataset.release.rows import RowError, parse_json
from genevolve.records import Difficulty, EvalType, Message, Request, Split

QUESTION = ("question", "prompt")
GROUND_TRUTH = ("gt_image", "ground_truth", "target_image")
"""As the release's scorer looks them up, at the top and in `meta`."""
PUBLIC_TRACKS: dict[EvalType, str] = {
    "knowledge_anchored": "Knowledge-Anchored",
    "quality_anchored": "Quality-Anchored",
}
LONGEST = {"question": 4000, "message": 400_000}
"""Characters."""
MOST_MESSAGES = 200
MOST_PICTURES = 400
_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}")


def to_request(row: Mapping[str, Any], part: Part, number: int, split: Split, notes: list[str]) -> Request:
    """Return the request of an RL or bench row, its picture not yet looked for (`gt_image` None).

    What the source does not say, or says in words of its own (then with a note), stays None. Raises RowError.
    """
    return Request(
        id=record_id(row.get("id"), part, number),
        question=question_of(row),
        eval_type=_track(row, notes),
        category=_text(row, "category", notes),
        difficulty=_difficulty(row, notes),
        split=split,
        half=row.get("half") if part == "bench" and row.get("half") in ("gate", "report") else None,
    )


def record_id(value: object, part: Part, number: int) -> str:
    """Return our id of a source's id: itself where it is a name; numbers of different parts must not meet.

    512 and "512" -> bench-512; "case_7" -> case_7; none -> bench-row-7; anything else -> bench- and a hash of it.
    """
    if value is None or value == "":
        return f"{part}-row-{number}"
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise RowError("id", "not a string or a whole number", type(value).__name__)
    text = str(value)
    if re.fullmatch(r"[0-9]{1,18}", text):
        return f"{part}-{text}"
    if _ID.fullmatch(text) and text.strip("."):
        return text
    return f"{part}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}"


def question_of(row: Mapping[str, Any]) -> str:
    """Return what is asked, of `question` or `prompt`."""
    name = next((n for n in QUESTION if row.get(n) not in (None, "")), "question")
    value = row.get(name)
    if value is None or value == "":
        raise RowError("question", "missing")
    return text_of(value, name, LONGEST["question"])


def text_of(value: object, name: str, most: int) -> str:
    """Return a string as it is; raise RowError when it is none, empty, too long, or not valid Unicode."""
    if not isinstance(value, str):
        raise RowError(name, "not text", type(value).__name__)
    if not value.strip():
        raise RowError(name, "empty")
    if len(value) > most:
        raise RowError(name, "too long", f"{len(value)} characters, at most {most}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(name, "not valid Unicode") from None
    if "\x00" in value:
        raise RowError(name, "not text", "a zero byte")
    return value


def cleaned(value: object) -> str:
    """Return the text of a value that may be anything, in characters that UTF-8 can hold."""
    return str(value or "").encode("utf-8", "replace").decode()


def _known(row: Mapping[str, Any], name: str) -> object:
    """Return a column of the row, or of its `meta` where the row lacks it."""
    if row.get(name) not in (None, ""):
        return row[name]
    return meta_of(row).get(name)


def meta_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the column `meta`, which some writers keep as JSON text."""
    meta = row.get("meta")
    if isinstance(meta, str) and meta.lstrip().startswith("{"):
        try:
            meta = parse_json(meta)
        except RowError:
            return {}
    return meta if isinstance(meta, Mapping) else {}


def _track(row: Mapping[str, Any], notes: list[str]) -> EvalType | None:
    value = _known(row, "eval_type")
    if value in (None, ""):
        return None
    word = re.sub(r"[\s-]+", "_", str(value).strip().lower())
    found: EvalType | None = next((t for t in get_args(EvalType) if t == word), None)
    if found is None:
        notes.append(f"eval_type {str(value)[:40]!r} is no known track; kept in source.jsonl only")
    return found


def _difficulty(row: Mapping[str, Any], notes: list[str]) -> Difficulty | None:
    value = _known(row, "difficulty")
    if value in (None, ""):
        return None
    found: Difficulty | None = next((d for d in get_args(Difficulty) if d == str(value).strip().lower()), None)
    if found is None:
        notes.append(f"difficulty {str(value)[:40]!r} is not easy, medium or hard; kept in source.jsonl only")
    return found


def _text(row: Mapping[str, Any], name: str, notes: list[str]) -> str | None:
    value = _known(row, name)
    if value in (None, ""):
        return None
    try:
        return text_of(value, name, 200).strip()
    except RowError as e:
        notes.append(f"{name} is {e.kind}; kept in source.jsonl only")
        return None


def truth_of(row: Mapping[str, Any]) -> object:
    """Return the column that names the ground truth: a path, or what Parquet holds of a picture. Raises RowError."""
    for source in (row, meta_of(row)):
        for name in GROUND_TRUTH:
            if source.get(name) not in (None, ""):
                return source[name]
    raise RowError("gt_image", "missing")


def messages_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the conversation of an SFT row: system, user, assistant, user, ..., assistant. Raises RowError."""
    value = row.get("messages")
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except RowError as e:
            raise RowError("messages", e.kind, e.detail) from None
    if value is None:
        raise RowError("messages", "missing")
    if not isinstance(value, list) or not 3 <= len(value) <= MOST_MESSAGES:
        raise RowError("messages", f"not a list of 3 to {MOST_MESSAGES} messages")
    out = []
    for i, m in enumerate(value):
        if not isinstance(m, Mapping):
            raise RowError(f"messages.{i}", "not an object")
        content = text_of(m.get("content"), f"messages.{i}.content", LONGEST["message"])
        try:
            out.append(Message(role=m.get("role"), content=content))
        except ValidationError:
            raise RowError(f"messages.{i}.role", "not system, user or assistant", repr(m.get("role"))) from None
    roles = [m.role for m in out]
    if roles != ["system", *("user", "assistant") * (len(out) // 2)][: len(out)] or roles[-1] != "assistant":
        raise RowError(
            "messages", "roles do not alternate from system and user to the assistant", " ".join(roles)[:120]
        )
    return tuple(out)


def pictures_of(row: Mapping[str, Any]) -> list[object]:
    """Return the column `images` of an SFT row: paths, or what Parquet holds of pictures. Raises RowError."""
    value = row.get("images")
    if value is None:
        raise RowError("images", "missing")
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_PICTURES:
        raise RowError("images", f"not a list of 1 to {MOST_PICTURES} pictures")
    return list(value)


def folder_id(row: Mapping[str, Any], paths: list[str], number: int, role: str) -> str:
    """Return the id of an SFT row: its own, else the folder all its pictures share (traj_00213), else its number."""
    if row.get("id") not in (None, ""):
        return record_id(row["id"], "sft", number)
    shared = {PurePosixPath(p).parent.name for p in paths}
    name = next(iter(shared)) if len(shared) == 1 else ""
    return name if _ID.fullmatch(name) and name != "images" else f"sft-{role.replace(' ', '-')}-{number}"
