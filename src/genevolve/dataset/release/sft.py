"""An SFT row of the public format, read as a trajectory and the pictures it showed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from genevolve.agent.release import loose_answer
from genevolve.dataset.release import convert
from genevolve.dataset.release.pictures import PictureError, clean_path, decode, embedded
from genevolve.dataset.release.rows import Row, RowError
from genevolve.dataset.release.turns import read_turns
from genevolve.records import Message, Split, Trajectory

_STEM = re.compile(r"IMG_[0-9]{3}")
_ANY_ID = re.compile(r"^\s*(IMG_[0-9]{3}): title:|^ - .* (IMG_[0-9]{3})$", re.MULTILINE)


@dataclass(frozen=True)
class Wanted:
    """A picture of a row: where it comes from (a path, or Parquet's {bytes, path}), where it goes below the dataset folder."""

    value: Any
    target: str


@dataclass(frozen=True)
class SftRecord:
    """One supervised conversation."""

    id: str
    trajectory: Trajectory
    pictures: tuple[Wanted, ...]
    notes: tuple[str, ...] = ()

    def named(self, new: str) -> SftRecord:
        trajectory = self.trajectory.model_copy(update={"id": f"{new}-0", "request_id": new})
        return replace(self, id=new, trajectory=trajectory)


def read_sft(row: Row, split: Split) -> SftRecord:
    """Return the record of a row, pictures not yet looked for; raise RowError.

    A conversation is taken when its roles alternate and its last turn answers with a prompt, as the release reads answers. What
    our own grammar would refuse is taken, too, and noted.
    """
    messages = convert.messages_of(row.value)
    question = convert.text_of(messages[1].content, "messages.1.content", convert.LONGEST["question"])
    if loose_answer(messages[-1].content) is None:
        raise RowError(f"messages.{len(messages) - 1}", "the last turn holds no <answer> with a gen_prompt")
    values = convert.pictures_of(row.value)
    role = "train" if split == "sft" else "eval"
    name = convert.folder_id(row.value, _paths(values), row.place.row, role)
    pictures = tuple(_wanted(v, name, i) for i, v in enumerate(values))
    played = read_turns(messages, files_by_id([p.target for p in pictures], messages))
    if played.program is None:
        raise RowError(f"messages.{len(messages) - 1}", "the answer's program is too long")
    trajectory = Trajectory(
        id=f"{name}-0",
        request_id=name,
        rollout=0,
        question=question,
        messages=messages,
        tool_calls=played.tool_calls,
        program=played.program,
        format_errors=len(played.refused),
    )
    notes = ("a turn or program that our own grammar would refuse; kept as it is",) if played.refused else ()
    if len(played.program.files) < len(played.program.reference_images):
        notes = (*notes, "the program names a picture that `images` lacks; kept without its references' files")
    return SftRecord(name, trajectory, pictures, notes)


def _wanted(value: object, name: str, number: int) -> Wanted:
    """Return where a picture comes from and goes; raise RowError.

    A path keeps its place below images/ (one from elsewhere goes below images/_/); bytes out of Parquet go to images/ID/.
    """
    try:
        data, path = embedded(value)
        if data is None:
            parts = PurePosixPath(clean_path(path)).parts
            inside = parts[1:] if parts[0] == "images" and len(parts) > 1 else ("_", *parts)
            return Wanted(value, str(PurePosixPath("images", *inside)))
        file = PurePosixPath(clean_path(path)).name if path else f"IMG_{number + 1:03d}{decode(data).ending}"
        return Wanted(value, f"images/{name}/{file}")
    except PictureError as e:
        raise RowError(f"images.{number}", e.kind, e.detail) from None


def _paths(values: Sequence[object]) -> list[str]:
    """Return the paths among the pictures of a row, as they are written."""
    return [v for v in values if isinstance(v, str) and v]


def files_by_id(targets: Sequence[str], messages: Sequence[Message]) -> dict[str, str]:
    """Return image id -> file: by the files' names (IMG_001.jpg), else in the order in which the ids were shown."""
    named = {PurePosixPath(t).stem: t for t in targets if _STEM.fullmatch(PurePosixPath(t).stem)}
    if named:
        return named
    shown = dict.fromkeys(a or b for m in messages if m.role == "user" for a, b in _ANY_ID.findall(m.content))
    return dict(zip(shown, targets, strict=True)) if len(shown) == len(targets) else {}
