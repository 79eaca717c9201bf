"""`genevolve export DATASET`: a dataset folder of ours in the public release's layout and formats (docs/data.md).

What the public formats have no place for stays behind: the scene and the gold program (a judge's side), token ids, audits.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from genevolve.dataset.errors import DatasetError
from genevolve.dataset.public import REQUESTS, SftRow, load_public, load_requests
from genevolve.dataset.release.convert import PUBLIC_TRACKS
from genevolve.dataset.release.layout import FOLDERS, Part, refuse_out
from genevolve.dataset.release.pictures import clean_path
from genevolve.dataset.release.rows import plain
from genevolve.dataset.release.summary import SOURCE
from genevolve.files import write_whole
from genevolve.records import Request, Split

FILES: dict[Split, tuple[Part, str]] = {
    "sft": ("sft", "train"),
    "sft_heldout": ("sft", "eval"),
    "evolve": ("rl", "train"),
    "validation": ("rl", "validation"),
    "bench": ("bench", "test"),
}
REFERENCE_SIDE = 256
"""Pixels of a drawing (SVG) as it is exported: other tools read no SVG."""

CARD = """\
---
configs:
{configs}---

# GenEvolve data, exported by genevolve

The layout and formats are those of MeiGen-AI/GenEvolve-Data-Bench. All paths are relative to the folder of their file.
Data that was built by the embedded world derives from OpenMoji and Wikipedia (CC BY-SA 4.0); what was imported keeps the
licence of its source.
"""


def export_dataset(dataset: Path, out: Path) -> dict[str, int]:
    """Write the public files of a dataset folder to `out`, whole or not at all; return file -> rows.

    Raises DatasetError when there is no dataset, a picture is missing, or `out` is there already.
    """
    if not (dataset / REQUESTS).is_file():
        raise DatasetError(f"{dataset} holds no {REQUESTS}, so it is no dataset folder.")
    refuse_out(dataset, out)
    requests = load_requests(dataset)
    source = source_columns(dataset)
    new = out.with_name(f".{out.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        written: dict[str, int] = {}
        for split, (part, stem) in FILES.items():
            folder = new / FOLDERS[part]
            chosen = [r for r in requests if r.split == split]
            if not chosen:
                continue
            if part == "sft":
                pairs = zip(chosen, cast("list[SftRow]", load_public(dataset, split)), strict=True)
                rows = [{"id": r.id, **_sft(row, source.get(r.id), dataset, folder)} for r, row in pairs]
            else:
                rows = [_request(r, source.get(r.id), dataset, folder) for r in chosen]
            write_rows(folder, stem, rows)
            written[f"{FOLDERS[part]}/{stem}.jsonl"] = len(rows)
        (new / "README.md").write_text(CARD.format(configs=_configs(written)), encoding="utf-8")
        new.replace(out)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return written


def source_columns(dataset: Path) -> dict[str, Mapping[str, Any]]:
    """Return record id -> the columns its source had, of an imported dataset."""
    path = dataset / SOURCE
    if not path.is_file():
        return {}
    rows = map(json.loads, path.read_text(encoding="ascii").splitlines())
    return {row["id"]: row["columns"] for row in rows}


def public_id(request: Request, columns: Mapping[str, Any] | None) -> Any:
    """Return the id a record had at its source, ours where there was none."""
    value = (columns or {}).get("id")
    return request.id if value in (None, "") else value


def public_columns(request: Request, columns: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the public row of a request but for its ground truth: id, question, what is known of it, the source's columns."""
    track = None if request.eval_type is None else PUBLIC_TRACKS[request.eval_type]
    known = {"eval_type": track, "category": request.category, "difficulty": request.difficulty, "half": request.half}
    row = {"id": public_id(request, columns), "question": request.question, **(columns or {})}
    return row | {k: v for k, v in known.items() if v is not None}


def _request(request: Request, columns: Mapping[str, Any] | None, dataset: Path, folder: Path) -> dict[str, Any]:
    if request.gt_image is None:
        raise DatasetError(f"Request {request.id} has no ground-truth picture, so it has no public row.")
    was = (columns or {}).get("gt_image")
    name = was if isinstance(was, str) and was.startswith("images/") else f"images/{Path(request.gt_image).name}"
    copy(dataset / request.gt_image, folder / clean_path(name))
    return {**public_columns(request, columns), "gt_image": name}


def _sft(row: SftRow, columns: Mapping[str, Any] | None, dataset: Path, folder: Path) -> dict[str, Any]:
    images = []
    for file in row.images:
        name = clean_path(file)
        if name.endswith(".svg"):
            name = name.removesuffix(".svg") + ".png"
            target = folder / name
            if not target.exists():
                write_whole(target, drawn(_read(dataset / clean_path(file)).decode()))
        else:
            copy(dataset / name, folder / name)
        images.append(name)
    return {**(columns or {}), "messages": [m.model_dump() for m in row.messages], "images": images}


def copy(path: Path, target: Path) -> None:
    """Copy a picture's bytes, once; raise DatasetError when it cannot be read."""
    if not target.exists():
        write_whole(target, _read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise DatasetError(f"{path}: the picture cannot be read ({e.strerror}).") from e


def drawn(svg: str) -> bytes:
    """Return the PNG of a drawing on white."""
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, width=REFERENCE_SIDE)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    data = io.BytesIO()
    white.convert("RGB").save(data, "PNG")
    return data.getvalue()


def write_rows(folder: Path, stem: str, rows: list[dict[str, Any]]) -> None:
    """Write rows as STEM.jsonl and STEM.parquet, the same content."""
    write_whole(folder / f"{stem}.jsonl", (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return  # the JSONL is the same
    table = pyarrow.Table.from_pylist([plain(row) for row in _uniform(rows)])
    parquet.write_table(table, folder / f"{stem}.parquet")


def _uniform(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows a Parquet table can hold: all columns in each, and columns of mixed or free shape as JSON text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    change: dict[str, Callable[[Any], Any]] = {}
    for name in names:
        kinds = {type(row.get(name)) for row in rows} - {type(None)}
        if name not in ("messages", "images") and (kinds & {dict, list} or len(kinds) > 1):
            mixed_text = kinds <= {int, str}
            change[name] = str if mixed_text else partial(json.dumps, ensure_ascii=False)
    return [
        {n: change[n](row[n]) if n in change and row.get(n) is not None else row.get(n) for n in names} for row in rows
    ]


def _configs(written: Iterable[str]) -> str:
    """Return the card's list of configurations: `load_dataset(FOLDER, "bench")`."""
    by_part: dict[str, list[str]] = {}
    names: dict[str, str] = {folder: part for part, folder in FOLDERS.items()}
    for file in written:
        folder, _, name = file.partition("/")
        line = f"      - split: {name.removesuffix('.jsonl')}\n        path: {file}\n"
        by_part.setdefault(names[folder], []).append(line)
    return "".join(f"  - config_name: {part}\n    data_files:\n{''.join(lines)}" for part, lines in by_part.items())
