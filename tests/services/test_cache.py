"""A paid call is made once, and what it cost is known."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genevolve.services.cache import BudgetError, CacheError, CallCache, call_key


def test_an_answer_is_found_again_by_the_same_call_in_any_key_order(tmp_path: Path) -> None:
    cache = CallCache(tmp_path / "calls.sqlite")
    assert cache.get("search", "serper", {"q": "x", "k": 5}) is None
    cache.put("search", "serper", {"q": "x", "k": 5}, [{"title": "é"}], seconds=0.5, tokens=7, cost=0.01)
    assert cache.get("search", "serper", {"k": 5, "q": "x"}) == [{"title": "é"}]
    assert cache.get("search", "other", {"k": 5, "q": "x"}) is None
    assert cache.get("images", "serper", {"k": 5, "q": "x"}) is None


def test_the_ledger_counts_paid_and_cached_calls(tmp_path: Path) -> None:
    cache = CallCache(tmp_path / "calls.sqlite")
    cache.put("judge", "vlm", {"i": 1}, 0.5, seconds=2.0, tokens=100, cost=0.25)
    cache.put("judge", "vlm", {"i": 2}, 1.0, seconds=1.0, tokens=50, cost=0.25)
    cache.put("search", "serper", {"i": 1}, [], seconds=1.0)
    assert cache.get("judge", "vlm", {"i": 1}) == 0.5
    spent = cache.spent("vlm")
    assert (spent.calls, spent.cached, spent.seconds, spent.tokens, spent.cost) == (3, 1, 3.0, 150, 0.5)
    assert cache.spent().calls == 4
    assert cache.spent("nobody").calls == 0


def test_a_call_has_its_time_and_an_older_ledger_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with sqlite3.connect(path) as db:  # as it was before there were times
        db.execute(
            "CREATE TABLE calls (id INTEGER PRIMARY KEY, backend TEXT NOT NULL, seconds REAL NOT NULL, tokens INTEGER NOT NULL,"
            " cost REAL NOT NULL, cached INTEGER NOT NULL, account TEXT NOT NULL DEFAULT '')"
        )
        db.execute("INSERT INTO calls (backend, seconds, tokens, cost, cached) VALUES ('serper', 1, 0, 0.5, 0)")
    before = time.time()
    for _ in range(2):  # a file is made newer once
        cache = CallCache(path)
        cache.note("serper")
        cache.close()
    times = [row[0] for row in sqlite3.connect(path).execute("SELECT at FROM calls ORDER BY id")]
    assert times[0] is None
    assert before <= times[1] <= times[2] <= time.time()
    assert CallCache(path).spent("serper").cost == 0.5


def test_what_was_paid_survives_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    code = (
        "import os, signal; from genevolve.services.cache import CallCache;"
        f"CallCache({str(path)!r}).put('f', 'b', {{'a': 1}}, 'paid', seconds=1, cost=2);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert CallCache(path).get("f", "b", {"a": 1}) == "paid"
    assert CallCache(path).spent("b").cost == 2


def test_processes_share_one_cache(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    code = (
        "import sys; from genevolve.services.cache import CallCache; c = CallCache(sys.argv[1]);"
        "[c.put('f', 'b', {'i': i}, i, seconds=0, cost=1) for i in range(40)]"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(2)]
    assert [c.wait() for c in children] == [0, 0]
    cache = CallCache(path)
    assert [cache.get("f", "b", {"i": i}) for i in range(40)] == list(range(40))
    assert cache.spent("b").cost == 80


def test_of_two_answers_the_first_stays(tmp_path: Path) -> None:
    cache = CallCache(tmp_path / "calls.sqlite")
    cache.put("f", "b", {}, "first", seconds=0)
    cache.put("f", "b", {}, "second", seconds=0)
    assert cache.get("f", "b", {}) == "first"


def test_a_missing_answer_and_arguments_that_are_no_json_are_refused(tmp_path: Path) -> None:
    cache = CallCache(tmp_path / "calls.sqlite")
    with pytest.raises(ValueError, match="not cached"):
        cache.put("f", "b", {}, None, seconds=0)
    with pytest.raises(TypeError):
        call_key("f", "b", {"path": Path()})
    with pytest.raises(ValueError):
        call_key("f", "b", {"x": float("nan")})


def test_a_broken_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "calls.sqlite").write_bytes(b"not a database at all, sorry" * 100)
    with pytest.raises(CacheError, match="cannot be opened"):
        CallCache(tmp_path / "calls.sqlite")


def test_the_cache_is_in_wal_mode(tmp_path: Path) -> None:
    CallCache(tmp_path / "calls.sqlite").put("f", "b", {}, 1, seconds=0)
    assert sqlite3.connect(tmp_path / "calls.sqlite").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_account_is_a_sum_that_follows_every_charge(tmp_path: Path) -> None:
    cache = CallCache(tmp_path / "calls.sqlite")
    first = cache.reserve("judge", "me", 2.0, 10)
    cache.reserve("judge", "other", 9.0, 10)
    second = cache.reserve("judge", "me", 3.0, 10)
    cache.settle(first, seconds=1, cost=0.5)
    cache.put("f", "judge", {"a": 1}, 1, seconds=1, cost=4.5, call=second)
    third = cache.reserve("judge", "me", 5.0, 10)  # .5 + 4.5 + 5: just what is left
    with pytest.raises(BudgetError, match=r"\$10.0000 are spent"):
        cache.reserve("judge", "me", 0.01, 10)
    cache.settle(third, seconds=0, cost=0)
    assert cache.spent().cost == 14.0
    reopened = CallCache(tmp_path / "calls.sqlite")
    with pytest.raises(BudgetError, match=r"\$5.0000 are spent"):
        reopened.reserve("judge", "me", 6, 10)


def test_the_accounts_of_an_older_file_are_summed_up_once(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    CallCache(path).reserve("serper", "me", 4.0, 10)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE accounts")
    with pytest.raises(BudgetError, match=r"\$4.0000 are spent"):
        CallCache(path).reserve("serper", "me", 7.0, 10)
