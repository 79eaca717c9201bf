"""The dataset folder: what lies in it, and how to read it (public formats of method.md, section 2; the rest is ours).

    sft.jsonl, sft_heldout.jsonl            {"messages", "images"}: what a trainer of the public release reads
    evolve.jsonl, validation.jsonl          request and ground truth, a row each
    bench.jsonl                             the same with its half
    gt/ID.png, images/*.svg                 ground truths; every picture the files above name
    world/                                  the embedded world, for the tools of later stages
    requests.jsonl                          records.Request, judge's side: scene and gold program included (imported: none)
    sft_trajectories.jsonl, sft_heldout_trajectories.jsonl   records.Trajectory behind sft.jsonl, line by line
    audit.jsonl, quarantine.jsonl           every audited trajectory's scores; all that was left out, and why
    yields.json, report.json                what each stage kept; counts and the dataset's digest

A folder made with models (`dataset.teacher: openai`) has requests without scenes, their gold program the teacher's own;
recipes.jsonl (models.writer.Sheet) is what each request was made of. With web search it has web/NAME for pictures and no
world/.

An imported folder (`genevolve import`, docs/data.md) has no world/ and no audit.jsonl, its requests no scene and, where the
source is silent, no eval_type, category or difficulty; source.jsonl keeps the source's own columns of every record,
system_prompt.md the system message of most SFT conversations.

All paths in records are relative to the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from genevolve.dataset.errors import DatasetError
from genevolve.records import Difficulty, EvalType, Message, Record, RecordError, Request, Split, Trajectory, read_jsonl

REQUESTS = "requests.jsonl"
SFT_FILES = {"sft": "sft_trajectories.jsonl", "sft_heldout": "sft_heldout_trajectories.jsonl"}
WORLD = "world"
SYSTEM_PROMPT = "system_prompt.md"
"""Of an import: the system message of most of its SFT conversations."""


class SftRow(Record):
    """One supervised trajectory in the public format. `images`: what image searches showed, IMG_001 first."""

    messages: tuple[Message, ...] = Field(min_length=3)
    images: tuple[str, ...] = Field(min_length=1)


class RlRow(BaseModel):
    """One request with its ground truth; further columns of other makers are kept out of the way."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
    id: str
    question: str = Field(min_length=1, validation_alias=AliasChoices("question", "prompt"))
    gt_image: str
    eval_type: EvalType | None = None
    category: str | None = None
    difficulty: Difficulty | None = None


class BenchRow(RlRow):
    """One bench request in the public format; `half` is ours."""

    half: Literal["gate", "report"] | None = None


class Quarantined(Record):
    """Something that was left out, at which stage, and why."""

    id: str
    stage: str
    reason: str = Field(min_length=1)
    digest: str = Field(description="first 16 hex digits of sha256 of the record")
    file: str | None = Field(default=None, description="of an import: the source's file, relative to its folder")
    row: int | None = Field(default=None, description="of an import: line or row, from 1; 0 is the file as a whole")
    field: str | None = Field(default=None, description="of an import: the column")


class Yield(BaseModel):
    """One row of the yield table. `spare`: good, but beyond what the splits need."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    stage: str
    in_: int = Field(ge=0, alias="in")
    kept: int = Field(ge=0)
    spare: int = Field(default=0, ge=0)


def sft_row(trajectory: Trajectory) -> SftRow:
    """Return the public row of a trajectory."""
    shown = [
        row["file"] for c in trajectory.tool_calls if c.name == "image_search" for row in c.result if "file" in row
    ]
    return SftRow(messages=trajectory.messages, images=tuple(str(f) for f in shown))


def public_row(request: Request) -> BenchRow | RlRow:
    """Return the public row of a request: nothing of the scene or the gold program."""
    assert request.gt_image is not None
    common: dict[str, Any] = {
        name: getattr(request, name) for name in ("id", "question", "gt_image", "eval_type", "category", "difficulty")
    }
    return BenchRow(**common, half=request.half) if request.split == "bench" else RlRow(**common)


def load_requests(folder: str | Path, split: Split | None = None) -> list[Request]:
    """Return the requests of a split (None: of all), judge's side included; raise DatasetError for a broken line or none."""
    return _rows(folder, REQUESTS, Request, lambda r: split is None or r.split == split, split or "any")


def load_sft(folder: str | Path, split: str = "sft") -> list[Trajectory]:
    """Return the teacher's trajectories of `sft` or `sft_heldout`; raise DatasetError for a broken line or none."""
    if split not in SFT_FILES:
        raise DatasetError(f"There are no trajectories of split '{split}', only of {' and '.join(SFT_FILES)}.")
    return _rows(folder, SFT_FILES[split], Trajectory, lambda t: True, split)


def load_public(folder: str | Path, split: Split) -> list[SftRow] | list[RlRow] | list[BenchRow]:
    """Return the public rows of a split."""
    if split in SFT_FILES:
        return _rows(folder, f"{split}.jsonl", SftRow, lambda r: True, split)
    if split == "bench":
        return _rows(folder, "bench.jsonl", BenchRow, lambda r: True, split)
    return _rows(folder, f"{split}.jsonl", RlRow, lambda r: True, split)


def load_quarantine(folder: str | Path) -> list[Quarantined]:
    """Return what was left out; an empty list when nothing was."""
    try:
        return list(read_jsonl(Path(folder) / "quarantine.jsonl", Quarantined))
    except RecordError as e:
        raise DatasetError(str(e)) from e


def _rows(folder: str | Path, name: str, model: Any, keep: Callable[[Any], bool], what: str) -> list[Any]:
    path = Path(folder) / name
    try:
        rows: Sequence[Any] = [r for r in read_jsonl(path, model) if keep(r)]
    except RecordError as e:
        raise DatasetError(f"{e}; build the dataset again (`genevolve stage build`)") from e
    if not rows:
        raise DatasetError(
            f"{path} holds no record of split '{what}'; build the dataset again (`genevolve stage build`), "
            "or import a source that has it"
        )
    return list(rows)
