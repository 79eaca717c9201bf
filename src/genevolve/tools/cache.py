"""Paid calls are made once: a content-addressed cache of tool, render and judge calls with a cost ledger (ours).

The key is the SHA-256 of family, backend and the canonical JSON of the arguments, so the same call finds its answer
from any process and after any crash. SQLite in WAL mode: many readers, writers wait for one another.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genevolve.records import Record
from genevolve.tools.base import ToolError

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, family TEXT NOT NULL, backend TEXT NOT NULL, arguments TEXT NOT NULL, answer TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, backend TEXT NOT NULL, seconds REAL NOT NULL, tokens INTEGER NOT NULL, cost REAL NOT NULL,
    cached INTEGER NOT NULL
);
"""
WAIT_SECONDS = 30.0


class Spent(Record):
    """What a backend has cost so far. Cached answers are calls that cost nothing."""

    calls: int
    cached: int
    seconds: float
    tokens: int
    cost: float


def call_key(family: str, backend: str, arguments: Mapping[str, Any]) -> str:
    """Return the key of a call; raise TypeError or ValueError for arguments that are not plain JSON."""
    return hashlib.sha256(_canonical([family, backend, dict(arguments)]).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class CallCache:
    """Answers of paid calls by what was asked, and what they cost."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        self._open()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():  # a connection must not cross a fork
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(SCHEMA)
            except (OSError, sqlite3.Error) as e:
                raise ToolError(
                    f"{self.path}: the call cache cannot be opened ({e}); move it away to start a new one"
                ) from e
            self._connection, self._owner = connection, os.getpid()
        return self._connection

    def get(self, family: str, backend: str, arguments: Mapping[str, Any]) -> Any | None:
        """Return the stored answer (any JSON value but null) and note a cached call, or None when it was never put."""
        row = (
            self._open()
            .execute("SELECT answer FROM answers WHERE key = ?", (call_key(family, backend, arguments),))
            .fetchone()
        )
        if row is None:
            return None
        self._note(backend, 0.0, 0, 0.0, cached=True)
        return json.loads(row[0])

    def put(
        self,
        family: str,
        backend: str,
        arguments: Mapping[str, Any],
        answer: Any,
        *,
        seconds: float,
        tokens: int = 0,
        cost: float = 0.0,
    ) -> None:
        """Store a paid answer and its price in one transaction; of two answers to one call the first stays."""
        if answer is None:
            raise ValueError("a missing answer is not cached: leave the call to be made again")
        row = (call_key(family, backend, arguments), family, backend, _canonical(dict(arguments)), _canonical(answer))
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", row)
            self._note(backend, seconds, tokens, cost, cached=False)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _note(self, backend: str, seconds: float, tokens: int, cost: float, *, cached: bool) -> None:
        self._open().execute(
            "INSERT INTO calls (backend, seconds, tokens, cost, cached) VALUES (?, ?, ?, ?, ?)",
            (backend, seconds, tokens, cost, int(cached)),
        )

    def spent(self, backend: str | None = None) -> Spent:
        """Return what one backend, or all of them, have cost."""
        row = (
            self._open()
            .execute(
                "SELECT count(*), total(cached), total(seconds), total(tokens), total(cost)"
                " FROM calls WHERE ?1 IS NULL OR backend = ?1",
                (backend,),
            )
            .fetchone()
        )
        return Spent(calls=row[0], cached=int(row[1]), seconds=row[2], tokens=int(row[3]), cost=row[4])

    def close(self) -> None:
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()
        self._connection = None
