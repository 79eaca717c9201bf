"""`genevolve spend`: the ledgers of paid calls, by month and backend."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from genevolve.errors import GenEvolveError
from genevolve.operations.spend import Line, ledgers, lines, table
from genevolve.services.cache import CallCache

JANUARY, MARCH = 1_767_950_000, 1_773_000_000
"""9 January and 8 March 2026."""


def ledger(path: Path, *rows: tuple[str, float, int, float, float | None]) -> Path:
    """Write calls of (backend, seconds, tokens, cost, when)."""
    cache = CallCache(path)
    for backend, seconds, tokens, cost, _ in rows:
        cache.settle(cache.reserve(backend, "a", cost, 100), seconds=seconds, tokens=tokens, cost=cost)
    cache.close()
    with sqlite3.connect(path) as db:
        for number, row in enumerate(rows, 1):
            db.execute("UPDATE calls SET at = ? WHERE id = ?", (row[4], number))
    return path


def test_calls_are_added_up_by_month_and_backend_over_all_ledgers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GENEVOLVE_WEB", raising=False)
    assert (ledgers(), table(lines([]))) == ([], ["no service has been asked anything here"])
    web = Path(".cache/web/calls.sqlite")
    ledger(
        web,
        ("serper", 1, 0, 0.001, JANUARY),
        ("judge", 2, 900, 0.5, MARCH),
        ("judge", 3, 100, 0.25, MARCH),
        ("judge", 1, 0, 1, None),
    )
    ledger(Path(".cache/other/calls.sqlite"), ("judge", 1, 50, 0.25, MARCH))
    cache = CallCache(web)
    cache.put("kscore", "judge", {}, 1, seconds=0, cost=0)
    cache.get("kscore", "judge", {})
    cache.close()
    with sqlite3.connect(web) as db:
        db.execute("UPDATE calls SET at = ? WHERE id > 4", (MARCH,))
    assert ledgers() == [Path(".cache/other/calls.sqlite"), web]
    assert lines(ledgers()) == [
        Line("2026-03", "judge", 4, 1, 1050, 6.0, 1.0),
        Line("2026-01", "serper", 1, 0, 0, 1.0, 0.001),
        Line("earlier", "judge", 1, 0, 0, 1.0, 1.0),
    ]
    text = table(lines(ledgers()))
    assert text[0].split() == ["month", "backend", "calls", "cached", "tokens", "seconds", "dollars"]
    assert text[1].split() == ["2026-03", "judge", "4", "1", "1,050", "6", "1.0000"]
    assert text[-1].split() == ["all", "6", "1", "1,050", "8", "2.0010"]
    assert len({len(line) for line in text}) == 1


def test_looking_changes_nothing_and_a_damaged_ledger_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with sqlite3.connect(path) as db:  # of a version without times
        db.execute("CREATE TABLE calls (backend TEXT, seconds REAL, tokens INTEGER, cost REAL, cached INTEGER)")
        db.execute("INSERT INTO calls VALUES ('serper', 1, 0, 0.5, 0)")
    before = path.read_bytes()
    assert lines([path]) == [Line("earlier", "serper", 1, 0, 0, 1.0, 0.5)]
    assert path.read_bytes() == before
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(GenEvolveError, match=r"calls\.sqlite cannot be read"):
        lines([path])
