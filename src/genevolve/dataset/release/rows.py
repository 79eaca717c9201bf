"""Rows of a stranger's JSONL, JSON or Parquet file, one by one; what cannot be read is a Fault with its place, never an exception."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve.dataset.errors import DatasetError
from genevolve.dataset.public import Quarantined

SUFFIXES = (".jsonl", ".json", ".parquet")
"""In the order of preference where one split is there in several formats: the first tells lines apart best."""
LONGEST_LINE = 16_000_000
"""Bytes of one JSONL line."""
LARGEST_JSON = 1_000_000_000
"""Bytes of one JSON array, which is read whole."""
BATCH = 64
"""Rows of a Parquet file in memory at a time."""


@dataclass(frozen=True)
class Place:
    """Where a record stands: file relative to the source folder; line (JSONL) or row, from 1; 0 is the whole file."""

    file: str
    row: int

    def __str__(self) -> str:
        what = "line" if self.file.endswith(".jsonl") else "row"
        return f"{self.file}, {what} {self.row}" if self.row else self.file


@dataclass(frozen=True)
class Row:
    """One record as it was read."""

    place: Place
    value: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """Why a record, or a whole file, is not taken. `kind` is one of a few phrases, by which faults are counted."""

    place: Place
    field: str
    kind: str
    detail: str = ""
    record: str = ""
    """its id, where that much was read"""

    def sentence(self) -> str:
        column = f", field '{self.field}'" if self.field else ""
        return f"{self.place}{column}: {self.kind}{': ' + self.detail if self.detail else ''}"

    def quarantined(self, stage: str) -> Quarantined:
        """Return the line of quarantine.jsonl."""
        text, name = (s.encode("utf-8", "replace").decode() for s in (self.sentence(), self.record))
        return Quarantined(
            id=name[:200] or f"{self.place.file}#{self.place.row}",
            stage=stage,
            reason=text,
            digest=hashlib.sha256(text.encode()).hexdigest()[:16],
            file=self.place.file,
            row=self.place.row,
            field=self.field or None,
        )


class RowError(ValueError):
    """Internal to this package: a row's `field` is of no use, because of `kind`."""

    def __init__(self, field: str, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.field, self.kind, self.detail = field, kind, detail[:200]

    def fault(self, place: Place, record: str = "") -> Fault:
        return Fault(place, self.field, self.kind, self.detail, record)


def read_rows(path: Path, name: str) -> Iterator[Row | Fault]:
    """Yield the rows of a file, called `name` in faults, in order; raise DatasetError where a reader is not installed."""
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path, name)
        elif path.suffix == ".json":
            yield from _json(path, name)
        else:
            yield from _jsonl(path, name)
    except OSError as e:
        yield Fault(Place(name, 0), "", "cannot be read", e.strerror or type(e).__name__)


def count_rows(path: Path) -> int | None:
    """Return how many rows a Parquet file says it has; None where it cannot be asked."""
    try:
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)
    except Exception:  # a stranger's bytes in a foreign parser; the count is a courtesy
        return None


def _jsonl(path: Path, name: str) -> Iterator[Row | Fault]:
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            place = Place(name, number)
            if len(line) > LONGEST_LINE:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(LONGEST_LINE)
                yield Fault(place, "", "line too long", f"more than {LONGEST_LINE} bytes")
            elif line := line.strip():
                yield _object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, place)


def _object(line: bytes, place: Place) -> Row | Fault:
    try:
        return _row(parse_json(line), place)
    except RowError as e:
        return e.fault(place)


def _row(value: Any, place: Place) -> Row | Fault:
    if not isinstance(value, dict):
        return Fault(place, "", "not a JSON object", type(value).__name__)
    return Row(place, value)


def parse_json(text: str | bytes) -> Any:
    """Return the value of standard JSON text; raise RowError for all else: NaN, doubled keys, endless nesting or digits."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RowError:
        raise
    except UnicodeDecodeError as e:
        raise RowError("", "not UTF-8 text", e.reason) from None
    except RecursionError:
        raise RowError("", "nested too deeply") from None
    except json.JSONDecodeError as e:
        raise RowError("", "not JSON", f"{e.msg} at character {e.pos}") from None
    except ValueError:
        raise RowError("", "a number that is too long") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise RowError("", "a JSON key is written twice")
    return value


def _no_constant(name: str) -> Any:
    raise RowError("", "not JSON", f"{name} is no JSON value")


def _json(path: Path, name: str) -> Iterator[Row | Fault]:
    whole = Place(name, 0)
    if path.stat().st_size > LARGEST_JSON:
        yield Fault(whole, "", "file too large", f"a JSON array of more than {LARGEST_JSON} bytes; write it as JSONL")
        return
    try:
        value = parse_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except RowError as e:
        yield e.fault(whole)
        return
    if not isinstance(value, list):
        yield Fault(whole, "", "not a JSON array", type(value).__name__)
        return
    for number, row in enumerate(value, 1):
        yield _row(row, Place(name, number))


def _parquet(path: Path, name: str) -> Iterator[Row | Fault]:
    try:
        from pyarrow import parquet
    except ImportError as e:
        raise DatasetError(f"{name}: reading Parquet needs the package pyarrow; install it, or use the JSONL.") from e
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(Place(name, number), value)
    except Exception as e:  # a stranger's bytes in a foreign parser, which also says OSError of what it cannot parse
        if isinstance(e, OSError) and e.errno:
            raise
        detail = f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"
        yield Fault(Place(name, number + 1 if number else 0), "", "not Parquet, or damaged from here on", detail)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: bytes become their length, NaN null, dates and the like their text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value)
