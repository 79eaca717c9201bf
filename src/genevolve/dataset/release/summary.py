"""What an import found and did: the table a user sees, and report.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from genevolve.dataset.public import SYSTEM_PROMPT

SOURCE = "source.jsonl"
"""The side file: every kept record's place in the source, and its columns there."""


@dataclass
class Imported:
    """What an import found and did; `lines` is the table a user sees."""

    files: dict[str, Counter[str]] = field(default_factory=dict)
    """file -> rows, kept, left out"""
    splits: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    columns: dict[str, Counter[str]] = field(default_factory=dict)
    """part -> columns that we have no use for, kept in source.jsonl"""
    notes: list[str] = field(default_factory=list)
    prompts: Counter[str] = field(default_factory=Counter)
    """system message -> SFT conversations"""
    dialogues: Counter[str] = field(default_factory=Counter)
    """value of `policy.dialogue` -> SFT conversations"""

    def to_dict(self) -> dict[str, Any]:
        return {
            "imported": True,
            "files": {name: dict(sorted(c.items())) for name, c in self.files.items()},
            "splits": {name: {"n": n} for name, n in self.splits.items()},
            "left_out": dict(sorted(self.left_out.items())),
            "columns": {part: dict(sorted(c.items())) for part, c in self.columns.items()},
            "notes": self.notes,
            "system_prompts": {"distinct": len(self.prompts), "commonest": max(self.prompts.values(), default=0)},
            "dialogues": dict(sorted(self.dialogues.items())),
        }

    def lines(self) -> Iterator[str]:
        """Yield the summary: files, splits, what was left out and why, remarks."""
        width = max(map(len, ["file", *self.files]))
        yield f"{'file':<{width}}  {'rows':>7}  {'kept':>7}  {'left out':>8}"
        for name, c in self.files.items():
            yield f"{name:<{width}}  {c['rows']:>7}  {c['kept']:>7}  {c['left out']:>8}"
        yield ""
        yield "split         records"
        yield from (f"{name:<12}  {n:>7}" for name, n in self.splits.items())
        if self.left_out:
            yield ""
            yield "left out, by reason (each with file, row and field in quarantine.jsonl)"
            yield from (f"{n:>7}  {reason}" for reason, n in self.left_out.most_common())
        for part, columns in self.columns.items():
            if columns:
                yield f"further columns of {part}, kept in {SOURCE}: {', '.join(sorted(columns))}"
        if self.prompts:
            n, often, most = len(self.prompts), max(self.prompts.values()), sum(self.prompts.values())
            yield f"system prompts of SFT: {n}; the commonest, of {often} of {most} conversations, is {SYSTEM_PROMPT}"
        for name, n in sorted(self.dialogues.items()):
            yield f"observations of SFT as policy.dialogue={name} words them: {n} conversations"
        yield from (f"note: {note}" for note in self.notes)
