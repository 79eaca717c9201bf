"""Paid calls are made once: a content-addressed cache of tool, render and judge calls with a cost ledger (ours).

The key is the SHA-256 of family, backend and the canonical JSON of the arguments, so the same call finds its answer
from any process and after any crash. SQLite in WAL mode: many readers, writers wait for one another. The threads of a
process share one connection and take turns.

A call with a budget is charged before it is made (`reserve`) and its price corrected afterwards (`settle`, `put`): the
processes of a command can then not pass the budget together, and a killed one leaves its call counted, not forgotten.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from genevolve.errors import GenEvolveError
from genevolve.records import Record

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, family TEXT NOT NULL, backend TEXT NOT NULL, arguments TEXT NOT NULL, answer TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, backend TEXT NOT NULL, seconds REAL NOT NULL, tokens INTEGER NOT NULL, cost REAL NOT NULL,
    cached INTEGER NOT NULL, account TEXT NOT NULL DEFAULT '', at REAL
);
CREATE TABLE IF NOT EXISTS accounts (account TEXT PRIMARY KEY, cost REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS turns (backend TEXT PRIMARY KEY, next REAL NOT NULL) WITHOUT ROWID;
"""
STORE_VARIABLE, STORE = "GENEVOLVE_WEB", ".cache/web"
"""Where paid answers (calls.sqlite) and pictures from the web (images/) lie: beside the stages, for all of them."""
WAIT_SECONDS = 30.0
LONGEST_TURN = 600.0
"""Seconds; a next turn further ahead than this was written by a clock that has been set back, and is not waited for."""


class CacheError(GenEvolveError):
    """The file of paid answers cannot be used."""


class BudgetError(GenEvolveError):
    """The next paid call would pass the budget. It ends the command: a trajectory without its tools is no data."""


class Spent(Record):
    """What a backend has cost so far. Cached answers are calls that cost nothing."""

    calls: int
    cached: int
    seconds: float
    tokens: int
    cost: float


def store() -> Path:
    """Return the folder of paid answers and downloaded pictures."""
    return Path(os.environ.get(STORE_VARIABLE) or STORE)


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
        self._lock = threading.RLock()
        self._claims: IO[bytes] | None = None
        self._open()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():  # a connection must not cross a fork
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(
                    self.path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
                )
                connection.execute("PRAGMA journal_mode = WAL")
                # A killed process loses nothing; a power cut may take the last answers, and never the file. Waiting for
                # the disk at each charge would make it the slowest part of a call.
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(SCHEMA)
                _add_times(connection)
            except (OSError, sqlite3.Error) as e:
                raise CacheError(
                    f"{self.path}: the call cache cannot be opened ({e}); move it away to start a new one"
                ) from e
            self._connection, self._owner = connection, os.getpid()
        return self._connection

    @contextmanager
    def _turn(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """Hold the connection against the other threads; with `write` one transaction, whole or not at all (within one, a
        part of it, itself whole or not at all)."""
        if self._owner != os.getpid():  # a fork may have copied the lock while another thread held it
            self._lock = threading.RLock()
        with self._lock:
            connection = self._open()
            if not write:
                yield connection
                return
            inner = connection.in_transaction
            connection.execute("SAVEPOINT part" if inner else "BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("RELEASE part" if inner else "COMMIT")
            except BaseException:
                if connection.in_transaction:  # after some errors SQLite has already taken all of it back
                    connection.execute("ROLLBACK TO part" if inner else "ROLLBACK")
                raise

    def together(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run calls of this cache in one transaction; return, in order, what each returned or the exception it raised.

        A work that raises takes back what its last call wrote and nothing of the others. It returns when all is written,
        so that what it returns is as safe as the answer of a call by itself. Raises sqlite3.Error where the database fails:
        then nothing was written.
        """
        with self._turn(write=True):
            found: list[Any] = []
            for work in works:
                try:
                    found.append(work())
                except sqlite3.Error:
                    raise
                except Exception as e:
                    found.append(e)
            return found

    @contextmanager
    def alone(self, family: str, backend: str, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Let one process at a time make a call (a few unlike calls share a lock); a killed holder lets go."""
        folder = self.path.with_name(f"{self.path.name}.locks")
        folder.mkdir(exist_ok=True)
        with (folder / call_key(family, backend, arguments)[:2]).open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def claim(self, key: str) -> bool:
        """Take a call for this process until it lets go of it, or ends; return False where another process has it.

        Nobody waits here, and the threads of a process do not keep one another out. Whoever looks for the answer and claims
        the call in one transaction (`together`) finds one or the other, if the answer is put before the claim is let go.
        """
        if self._claims is None:
            folder = self.path.with_name(f"{self.path.name}.locks")
            folder.mkdir(exist_ok=True)
            self._claims = (folder / "claims").open("wb")
        try:  # one byte of a file without any: a lock of its own for each call, which the system lets go of with its process
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:15], 16))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def let_go(self, key: str) -> None:
        """End a claim of this process; there need be none."""
        if self._claims is not None:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, int(key[:15], 16))

    def get(self, family: str, backend: str, arguments: Mapping[str, Any], key: str = "") -> Any | None:
        """Return the stored answer (any JSON value but null) and note a cached call, or None when it was never put.

        `key` is the call's own, of a caller that has it already; so in `put`.
        """
        key = key or call_key(family, backend, arguments)
        with self._turn() as connection:
            row = connection.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            _note(connection, backend, 0.0, 0, 0.0, cached=True)
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
        call: int | None = None,
        key: str = "",
    ) -> None:
        """Store a paid answer and its price in one transaction; of two answers to one call the first stays.

        `call` is the reservation that this answer settles; without it the call is new to the ledger.
        """
        if answer is None:
            raise ValueError("a missing answer is not cached: leave the call to be made again")
        key = key or call_key(family, backend, arguments)
        row = (key, family, backend, _canonical(dict(arguments)), _canonical(answer))
        with self._turn(write=True) as connection:
            connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", row)
            if call is None:
                _note(connection, backend, seconds, tokens, cost, cached=False)
            else:
                _settle(connection, call, seconds, tokens, cost)

    def reserve(self, backend: str, account: str, cost: float, budget: float) -> int:
        """Charge a call to an account before it is made; return its number in the ledger.

        Raises BudgetError, charging nothing, when all that was charged to the account would exceed `budget`.
        """
        with self._turn(write=True) as connection:
            spent = _spent(connection, account)
            if spent + cost > budget + 1e-9:
                raise BudgetError(
                    f"The budget of this command, ${budget:g} (world.budget_usd), is used up: ${spent:.4f} are spent "
                    f"and the next call may cost ${cost:.4f}. What was paid for is kept; the same command, given again, "
                    "perhaps with another --budget, goes on from here with the sum anew."
                )
            return _note(connection, backend, 0.0, 0, cost, cached=False, account=account)

    def settle(self, call: int, *, seconds: float, tokens: int = 0, cost: float = 0.0) -> None:
        """Correct a reserved call that brought no answer worth keeping; `cost` is what it did cost."""
        with self._turn(write=True) as connection:
            _settle(connection, call, seconds, tokens, cost)

    def note(self, backend: str, seconds: float = 0.0, *, cached: bool = False) -> None:
        """Count a call that was free and whose answer is not kept here; `cached`: its answer was kept elsewhere."""
        with self._turn() as connection:
            _note(connection, backend, seconds, 0, 0.0, cached=cached)

    def note_free(self, backend: str, calls: Sequence[tuple[float, int]]) -> None:
        """Count free calls, (seconds, tokens) each, whose answers are not kept; one transaction for all."""
        with self._turn(write=True) as connection:
            for seconds, tokens in calls:
                _note(connection, backend, seconds, tokens, 0.0, cached=False)

    def next_turn(self, backend: str, per_second: float, now: float, units: float = 1) -> float:
        """Take the next place in a queue of `per_second` calls, shared by all processes; return the seconds to wait.

        `now` is Unix time. A call may take the room of several (`units`: its tokens, in a queue of tokens).
        """
        with self._turn(write=True) as connection:
            row = connection.execute("SELECT next FROM turns WHERE backend = ?", (backend,)).fetchone()
            planned = row[0] if row and row[0] <= now + LONGEST_TURN else now
            start = max(now, planned)
            connection.execute("INSERT OR REPLACE INTO turns VALUES (?, ?)", (backend, start + units / per_second))
        return float(start - now)

    def spent(self, backend: str | None = None) -> Spent:
        """Return what one backend, or all of them, have cost."""
        with self._turn() as connection:
            row = connection.execute(
                "SELECT count(*), total(cached), total(seconds), total(tokens), total(cost)"
                " FROM calls WHERE ?1 IS NULL OR backend = ?1",
                (backend,),
            ).fetchone()
        return Spent(calls=row[0], cached=int(row[1]), seconds=row[2], tokens=int(row[3]), cost=row[4])

    def close(self) -> None:
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()
        self._connection = None
        if self._claims is not None:
            self._claims.close()
        self._claims = None


def _add_times(connection: sqlite3.Connection) -> None:
    """Give a ledger of before there were times its column for them (Unix time; null: not known)."""
    if any(row[1] == "at" for row in connection.execute("PRAGMA table_info(calls)")):
        return
    try:
        connection.execute("ALTER TABLE calls ADD COLUMN at REAL")
    except sqlite3.OperationalError as e:
        if "duplicate column" not in str(e):  # else another process was faster
            raise


def _spent(connection: sqlite3.Connection, account: str) -> float:
    """Return what was charged to an account. It is kept as a sum: adding all calls up at each call would be quadratic."""
    row = connection.execute("SELECT cost FROM accounts WHERE account = ?", (account,)).fetchone()
    if row is None:
        row = connection.execute("SELECT total(cost) FROM calls WHERE account = ?", (account,)).fetchone()
        connection.execute("INSERT INTO accounts VALUES (?, ?)", (account, row[0]))
    return float(row[0])


def _charge(connection: sqlite3.Connection, account: str, cost: float) -> None:
    if cost:
        connection.execute("UPDATE accounts SET cost = cost + ? WHERE account = ?", (cost, account))


def _note(
    connection: sqlite3.Connection,
    backend: str,
    seconds: float,
    tokens: int,
    cost: float,
    *,
    cached: bool,
    account: str = "",
) -> int:
    row = (backend, seconds, tokens, cost, int(cached), account, time.time())
    insert = "INSERT INTO calls (backend, seconds, tokens, cost, cached, account, at) VALUES (?, ?, ?, ?, ?, ?, ?)"
    _charge(connection, account, cost)
    return int(connection.execute(insert, row).lastrowid or 0)


def _settle(connection: sqlite3.Connection, call: int, seconds: float, tokens: int, cost: float) -> None:
    before = connection.execute("SELECT account, cost FROM calls WHERE id = ?", (call,)).fetchone()
    if before is not None:
        _charge(connection, before[0], cost - before[1])
    connection.execute("UPDATE calls SET seconds = ?, tokens = ?, cost = ? WHERE id = ?", (seconds, tokens, cost, call))
