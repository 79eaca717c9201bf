"""`genevolve spend`: what services have been asked and what it cost, by month and backend, from the ledgers of paid calls."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genevolve.errors import GenEvolveError

LEDGER = "calls.sqlite"
UNKNOWN = "earlier"
"""The month of calls that were noted before the ledger had times."""
HEADER = ("month", "backend", "calls", "cached", "tokens", "seconds", "dollars")


@dataclass(frozen=True)
class Line:
    """The calls of one backend in one month (UTC)."""

    month: str
    backend: str
    calls: int
    """made, whether an answer came or not"""
    cached: int
    """answered from what had been paid for"""
    tokens: int
    seconds: float
    """that the calls took, added up; they ran side by side"""
    dollars: float


def ledgers() -> list[Path]:
    """Return the ledgers of this folder: that of $GENEVOLVE_WEB, or of .cache/web, and others below .cache."""
    places = {Path(os.environ.get("GENEVOLVE_WEB") or ".cache/web"), *Path(".cache").glob("*/")}
    return sorted(place / LEDGER for place in places if (place / LEDGER).is_file())


def lines(paths: Sequence[Path]) -> list[Line]:
    """Return what stands in the ledgers, the newest month first; nothing is changed. Raises GenEvolveError, one sentence."""
    found: dict[tuple[str, str], Line] = {}
    for path in paths:
        for line in _read(path):
            key = (line.month, line.backend)
            found[key] = line if key not in found else _sum(found[key], line)
    by_backend = sorted(found.values(), key=lambda line: line.backend)
    known = sorted((line for line in by_backend if line.month != UNKNOWN), key=lambda line: line.month, reverse=True)
    return [*known, *(line for line in by_backend if line.month == UNKNOWN)]


def _read(path: Path) -> list[Line]:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as db:
            timed = any(row[1] == "at" for row in db.execute("PRAGMA table_info(calls)"))
            month = f"coalesce(strftime('%Y-%m', at, 'unixepoch'), '{UNKNOWN}')" if timed else f"'{UNKNOWN}'"
            rows = db.execute(
                f"SELECT {month}, backend, sum(not cached), sum(cached), sum(tokens), sum(seconds), sum(cost)"
                " FROM calls GROUP BY 1, 2"
            ).fetchall()
    except sqlite3.Error as e:
        raise GenEvolveError(f"{path} cannot be read: {e}") from e
    return [Line(*row) for row in rows]


def _sum(a: Line, b: Line) -> Line:
    return Line(
        a.month,
        a.backend,
        a.calls + b.calls,
        a.cached + b.cached,
        a.tokens + b.tokens,
        a.seconds + b.seconds,
        a.dollars + b.dollars,
    )


def table(found: Sequence[Line]) -> list[str]:
    """Return the lines as a table, the sum last; one sentence where there are none."""
    if not found:
        return ["no service has been asked anything here"]
    total = Line("all", "", 0, 0, 0, 0.0, 0.0)
    for line in found:
        total = _sum(total, line)
    rows = [HEADER, *map(_words, found), _words(total)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return [
        "  ".join(w.ljust(n) if i < 2 else w.rjust(n) for i, (w, n) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _words(line: Line) -> tuple[str, ...]:
    counts = (f"{line.calls:,}", f"{line.cached:,}", f"{line.tokens:,}", f"{line.seconds:,.0f}", f"{line.dollars:,.4f}")
    return (line.month, line.backend, *counts)
