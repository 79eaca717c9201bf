from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from genevolve.services import loop
from genevolve.services.books import Books
from genevolve.services.cache import BudgetError, CallCache
from genevolve.services.client import Client, Paid
from genevolve.services.endpoint import Endpoint
from tests.services.test_client import read, said
from tests.tools.web import Server


@pytest.fixture
def cache(tmp_path: Path) -> CallCache:
    return CallCache(tmp_path / "calls.sqlite")


def test_calls_that_come_together_are_one_transaction_and_each_has_its_own_end(cache: CallCache) -> None:
    books = Books(cache)
    statements: list[str] = []
    with cache._turn() as db:
        db.set_trace_callback(statements.append)

    async def many() -> list[Any]:
        works = [books.do(cache.reserve, "judge", "me", cost, 10.0) for cost in (4.0, 7.0, 5.0, 2.0, 1.0)]
        return await asyncio.gather(*works, return_exceptions=True)

    found = loop.run(many())
    assert [type(f) for f in found] == [int, BudgetError, int, BudgetError, int], "one over the budget harms no other"
    assert cache.spent("judge").cost == 10.0
    assert cache.spent("judge").calls == 3
    assert statements.count("COMMIT") <= 2, "the first by itself, all that came meanwhile together"


def test_a_database_that_fails_is_told_to_all_and_nothing_of_it_stays(cache: CallCache) -> None:
    def broken() -> None:
        cache.note("judge", 1.0)
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        cache.together([lambda: cache.reserve("judge", "me", 4.0, 10.0), broken])
    assert cache.spent().calls == 0
    assert cache.together([lambda: cache.reserve("judge", "me", 10.0, 10.0)])[0] > 0, "the file is as it was"


def test_what_was_given_up_while_it_waited_is_not_done(cache: CallCache) -> None:
    books, free = Books(cache), threading.Event()

    async def some() -> None:
        first = asyncio.create_task(books.do(free.wait, 20))
        given_up = asyncio.create_task(books.do(cache.note, "a"))
        last = asyncio.create_task(books.do(cache.note, "b"))
        await asyncio.sleep(0)
        given_up.cancel()
        free.set()
        await asyncio.gather(first, last)

    loop.run(some())
    assert (cache.spent("a").calls, cache.spent("b").calls) == (0, 1)


def test_each_call_stands_in_the_ledger_before_the_service_hears_of_it(cache: CallCache) -> None:
    heard: list[tuple[int, int]] = []
    lock = threading.Lock()

    def look(h: Any) -> None:
        with lock, sqlite3.connect(cache.path) as db:
            heard.append((len(heard) + 1, db.execute("SELECT count(*) FROM calls WHERE cost > 0").fetchone()[0]))
        said({"n": 3})(h)

    server = Server({"/v1/do": [look]})
    with server.running():
        endpoint = Endpoint("judge", f"{server.url}/v1", rate=0, usd_call=0.25, concurrency=16)
        client = Client(endpoint, cache, budget=100, account="t")
        works = (client.ask("/do", {"a": i % 40}, read, family="judge") for i in range(60))
        assert loop.spread(works, 16) == [3] * 60
        client.write_free()
    assert len(heard) == 40, "each question once"
    assert all(charged >= asked for asked, charged in heard)
    assert cache.spent("judge").cost == pytest.approx(40 * 0.25)


def test_an_answer_that_came_from_elsewhere_while_we_waited_is_taken(cache: CallCache) -> None:
    arguments: dict[str, Any] = {}

    async def waits(seconds: float) -> None:  # meanwhile another process has paid for it
        cache.put("judge", "judge", arguments, 9, seconds=0.0)

    def fails(h: Any) -> None:
        h.send_response(500)
        h.send_header("Content-Length", "0")
        h.end_headers()

    server = Server({"/v1/do": [fails]})
    with server.running():
        endpoint = Endpoint("judge", f"{server.url}/v1", rate=0)
        client = Client(endpoint, cache, budget=100, account="t", sleep=waits)
        arguments |= {"url": endpoint.url, "path": "/do", "body": {"a": 1}}
        assert client.post("/do", {"a": 1}, lambda v: Paid(v["n"]), family="judge") == 9
        client.write_free()
    assert len(server.requests) == 1
