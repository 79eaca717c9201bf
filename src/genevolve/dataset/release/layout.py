"""Which files of a downloaded folder hold which records: the published layout, and what stands near it.

    GenEvolve-Data-SFT/{train,eval}.{jsonl,parquet}  images/traj_00213/IMG_001.jpg     published
    GenEvolve-Data-RL/{train,eval}.{jsonl,parquet}   images/                           published; its files: see docs/data.md
    GenEvolve-Bench/test.{jsonl,parquet}             images/case_00512.jpg             published

Also taken: one of the three folders by itself, files of one folder called sft.jsonl, rl-train.json, bench.parquet and so
on, and `data/train-00000-of-00002.parquet`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genevolve.dataset.errors import DatasetError
from genevolve.dataset.release.rows import SUFFIXES, count_rows

Part = Literal["sft", "rl", "bench"]
Role = Literal["train", "validation", "held out"]
"""`held out`: its source keeps it apart, without saying that it is a validation split."""

FOLDERS: dict[Part, str] = {"sft": "GenEvolve-Data-SFT", "rl": "GenEvolve-Data-RL", "bench": "GenEvolve-Bench"}
ROLES: dict[str, Role] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "held out",
    "test": "held out",
    "heldout": "held out",
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_NOTES = {"dataset_infos.json", "dataset_info.json", "state.json", "results.json", "results_eval.json", "summary.json"}


@dataclass(frozen=True)
class DataFile:
    """One file of records."""

    path: Path
    name: str
    """relative to the source folder"""
    part: Part
    role: Role
    roots: tuple[Path, ...]
    """the folders its picture paths may be relative to, nearest first"""


@dataclass
class Layout:
    """What was found: files to read in a fixed order (bench, SFT, RL), and remarks about what is not read."""

    files: list[DataFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    spare: list[str] = field(default_factory=list)
    """files in a second format beside one that is read"""


def refuse_out(source: Path, out: Path) -> None:
    """Raise DatasetError for an output folder that is there, lies inside the source, or belongs to DVC."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} is there already; remove it or give another --out folder.")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise DatasetError(f"{out} lies inside {source}; give an --out folder outside of what is read.")
    for folder in (out.resolve(), *out.resolve().parents):
        if (folder.parent / f"{folder.name}.dvc").is_file():
            raise DatasetError(
                f"{out} lies in {folder.name}/, which DVC owns ({folder.name}.dvc) and would empty at its next run; "
                f"give a folder of its own, for instance --out datasets/{out.name}."
            )


def find_files(source: Path) -> Layout:
    """Return the data files of a folder; raise DatasetError when there are none."""
    if not source.is_dir():
        raise DatasetError(
            f"{source}: there is no such folder; give the folder that GenEvolve-Data-Bench was loaded into."
        )
    source = source.resolve()
    found: dict[tuple[Part, Role, str], list[DataFile]] = {}
    layout = Layout()
    for path, part, stem in _candidates(source):
        name = path.relative_to(source).as_posix()
        if path.is_symlink():
            layout.notes.append(f"{name} is a link and is not read: download with --local-dir, which makes real files")
            continue
        if not path.is_file():
            layout.notes.append(f"{name} is not a plain file and is not read")
            continue
        role = _role(stem, part)
        if role is None:
            layout.notes.append(f"{name} is not read: its name says neither train, nor eval, test or validation")
            continue
        roots = tuple(dict.fromkeys((path.parent, path.parent.parent if path.parent != source else source, source)))
        found.setdefault((part, role, _plain_stem(path)), []).append(DataFile(path, name, part, role, roots))
    order: list[Part] = ["bench", "sft", "rl"]
    for _, files in sorted(found.items(), key=lambda row: (order.index(row[0][0]), _rank(row[0][1]), row[0][2])):
        _choose(files, layout)
    if layout.spare:
        layout.notes.append(f"not read, as the same records are there in another format: {', '.join(layout.spare)}")
    if not layout.files:
        raise DatasetError(
            f"{source} holds no GenEvolve-Data: expected {', '.join(FOLDERS.values())} with train, eval or test as "
            f"{', '.join(SUFFIXES)}." + (f" {layout.notes[0]}." if layout.notes else "")
        )
    return layout


def _candidates(source: Path) -> Iterator[tuple[Path, Part, str]]:
    """Yield (file, part, the words of its name that tell the role)."""
    own = _part(source.name) if source.name in FOLDERS.values() else None
    for folder in [source, *sorted(p for p in source.iterdir() if p.is_dir() and not p.is_symlink())]:
        part = own if folder == source else _part(folder.name)
        if own and folder != source:
            part = own if folder.name == "data" else None
        places = [folder, folder / "data"] if part and folder != source else [folder]
        for path in sorted(p for place in places if place.is_dir() for p in place.iterdir()):
            if path.suffix not in SUFFIXES or path.name in _NOTES or (path.is_dir() and not path.is_symlink()):
                continue
            stem = _plain_stem(path)
            if part:
                yield path, part, stem
            elif folder == source and (named := _part(stem)):
                yield (
                    path,
                    named,
                    re.sub(r"[-_.]?(sft|rl|bench|genevolve|data)(?=[-_.]|$)[-_.]?", " ", stem, flags=re.I),
                )


def _plain_stem(path: Path) -> str:
    return _SHARD.sub("", path.stem)


def _part(name: str) -> Part | None:
    words = re.split(r"[^a-z]+", name.lower())
    parts: tuple[Part, ...] = ("sft", "rl", "bench")
    found = [p for p in parts if p in words]
    return found[-1] if found else None


def _role(words: str, part: Part) -> Role | None:
    """Return what a file's name says of its role; a name that only repeats the part is its main file."""
    for word in re.split(r"[^a-z]+", words.lower()):
        if word in ROLES:
            return ROLES[word]
    rest = [
        w for w in re.split(r"[^a-z]+", words.lower()) if w and w not in ("sft", "rl", "bench", "genevolve", "data")
    ]
    return None if rest else "held out" if part == "bench" else "train"


def _rank(role: Role) -> int:
    return ("train", "validation", "held out").index(role)


def _choose(files: list[DataFile], layout: Layout) -> None:
    """Take the files of one split in the best format there is; say when the format left aside has another count of rows."""
    best = min(SUFFIXES.index(f.path.suffix) for f in files)
    taken = [f for f in files if SUFFIXES.index(f.path.suffix) == best]
    layout.files += taken
    others = [f for f in files if f not in taken]
    layout.spare += [f.name for f in others]
    counted = [count_rows(f.path) for f in others if f.path.suffix == ".parquet"]
    if counted and None not in counted and SUFFIXES[best] == ".jsonl":
        lines = 0
        for file in taken:
            with file.path.open("rb") as stream:
                lines += sum(1 for line in stream if line.strip())
        if lines != sum(c or 0 for c in counted):
            layout.notes.append(f"{taken[0].name} has {lines} lines, its Parquet {sum(c or 0 for c in counted)} rows")
