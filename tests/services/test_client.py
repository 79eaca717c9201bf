"""A configured service is asked once, again where that may help, and what it costs is known. Real servers on loopback."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from genevolve.errors import SettingsError
from genevolve.services import loop, wire
from genevolve.services.cache import BudgetError, CallCache, call_key
from genevolve.services.client import POLL, BadAnswer, CallError, Client, DataUrl, Paid, _bytes, _packed
from genevolve.services.endpoint import Endpoint, ServiceError
from genevolve.services.patience import Patience, retry_after
from tests.tools.web import Reply, Server, endless, moved, reset, said, send, status

SECRET = "sk-do-not-print-me"


def read(value: Any) -> Paid:
    if not isinstance(value, dict) or "n" not in value:
        raise BadAnswer("wrong form")
    return Paid(value["n"], tokens=7, cost=0.25)


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Any]:
    """Give a function that starts a server with a script and returns (client, server, seconds slept)."""
    stack = []

    def start(
        script: Reply | list[Reply], budget: float = 100.0, patience: Patience | None = None, **fields: Any
    ) -> Any:
        server = Server({"/v1/do": script})
        stack.append(server.running())
        stack[-1].__enter__()
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        where = {"url": f"{server.url}/v1", "key": SecretStr(SECRET), "rate": 1e6} | fields
        endpoint = Endpoint("judge", **where)
        cache = CallCache(tmp_path / "calls.sqlite")
        how = {"sleep": sleep, "draw": lambda: 1.0, "now": lambda: 1000.0 + sum(slept)}
        client = Client(endpoint, cache, budget=budget, account="t", patience=patience or Patience(attempts=3), **how)
        return client, server, slept

    yield start
    for running in stack:
        running.__exit__(None, None, None)


def test_a_call_of_a_family_is_made_once_and_its_price_is_kept(play: Any) -> None:
    client, server, _ = play(said({"n": 3}))
    assert [client.post("/do", {"a": 1}, read, family="judge") for _ in range(3)] == [3, 3, 3]
    assert client.post("/do", {"a": 2}, read) == client.post("/do", {"a": 2}, read) == 3, (
        "without a family nothing is kept"
    )
    assert len(server.requests) == 3
    method, path, headers, body = server.requests[0]
    assert (method, path, headers["authorization"], json.loads(body)) == (
        "POST",
        "/v1/do",
        f"Bearer {SECRET}",
        {"a": 1},
    )
    spent = client.cache.spent("judge")
    assert (spent.calls, spent.cached, spent.cost, spent.tokens) == (5, 2, 0.75, 21)


def test_equal_calls_at_the_same_time_are_one(play: Any) -> None:
    client, server, _ = play([])
    both = threading.Event()

    def slowly(h: Any) -> None:
        both.wait(20)
        said({"n": 3})(h)

    server.script["/v1/do"] = [slowly]

    async def many() -> list[Any]:
        tasks = [asyncio.create_task(client.ask("/do", {"a": 1}, read, family="judge")) for _ in range(20)]
        while not server.requests:
            await asyncio.sleep(0.005)
        both.set()
        return await asyncio.gather(*tasks)

    assert loop.run(many()) == [3] * 20
    assert len(server.requests) == 1


def test_equal_calls_of_two_processes_are_one(play: Any) -> None:
    client, server, slept = play([], usd_call=1.0)
    waits = threading.Event()

    def slowly(h: Any) -> None:
        waits.wait(20)
        said({"n": 3})(h)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        waits.set()

    server.script["/v1/do"] = [slowly]
    client._sleep = sleep
    code = f"""
from pathlib import Path
from genevolve.services.cache import CallCache
from genevolve.services.client import Client, Paid
from genevolve.services.endpoint import Endpoint
endpoint = Endpoint("judge", {client.endpoint.url!r}, usd_call=1.0)
client = Client(endpoint, CallCache(Path({str(client.cache.path)!r})), budget=9.0, account="t")
print(client.post("/do", {{"a": 1}}, lambda value: Paid(value["n"]), family="judge"))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        while not server.requests and child.poll() is None:
            time.sleep(0.01)
        assert client.post("/do", {"a": 1}, read, family="judge") == 3
        assert child.communicate(timeout=60)[0] == "3\n"
    assert len(server.requests) == 1
    assert set(slept) == {POLL}
    spent = client.cache.spent("judge")
    assert (spent.calls, spent.cached, spent.cost) == (2, 1, 1.0)


ASKED = {"a": 1}


@contextmanager
def another(client: Client) -> Iterator[tuple[subprocess.Popen[str], Callable[[str], str]]]:
    """Run a process that claims the call of ASKED, or lets go of it, when told to; give it, and what tells it."""
    arguments = {"url": client.endpoint.url, "path": "/do", "body": ASKED}
    code = "import sys; from genevolve.services.cache import CallCache; cache = CallCache(sys.argv[1])\n"
    code += "for line in sys.stdin: print(getattr(cache, line.strip())(sys.argv[2]), flush=True)"
    command = [sys.executable, "-c", code, str(client.cache.path), call_key("judge", "judge", arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def tell(what: str) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            print(what, file=process.stdin, flush=True)
            return process.stdout.readline().strip()

        yield process, tell
        process.kill()


@pytest.mark.parametrize("holder", ["answers", "is killed", "hangs"])
def test_a_call_that_another_process_makes_is_waited_for_as_long_as_that_may_help(play: Any, holder: str) -> None:
    client, server, slept = play(said({"n": 3}), patience=Patience(attempts=1, total=1.0))
    with another(client) as (process, tell):
        assert tell("claim") == "True"

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            if holder == "answers":
                arguments = {"url": client.endpoint.url, "path": "/do", "body": ASKED}
                client.cache.put("judge", "judge", arguments, 4, seconds=0.0)
            elif holder == "is killed":
                process.kill()
                process.wait()

        client._sleep = sleep
        assert client.post("/do", ASKED, read, family="judge") == (4 if holder == "answers" else 3)
    assert slept == [POLL] * (4 if holder == "hangs" else 1)
    assert len(server.requests) == (0 if holder == "answers" else 1)


def test_a_call_that_failed_or_was_given_up_is_free_for_other_processes(play: Any) -> None:
    client, server, _ = play(status(500))
    with another(client) as (_, tell):
        with pytest.raises(CallError):
            client.post("/do", ASKED, read, family="judge")
        assert (tell("claim"), tell("let_go")) == ("True", "None")
        server.script["/v1/do"] = [server.hang()]
        server.requests.clear()

        async def given_up() -> None:
            task = asyncio.create_task(client.ask("/do", ASKED, read, family="judge"))
            while not server.requests:
                await asyncio.sleep(0.005)
            assert tell("claim") == "False"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        loop.run(given_up())
        assert tell("claim") == "True"


@pytest.mark.parametrize(
    ("bad", "slept", "cost"),
    [
        ([status(429, Retry_After="7")], [7.0], 0.25),
        ([status(429, Retry_After="Thu, 01 Jan 1970 00:16:45 GMT")], [5.0], 0.25),
        ([status(503, Retry_After="86400")], [30.0], 0.25),
        ([status(500), status(502)], [0.5, 1.0], 0.25),
        ([reset], [0.5], 1.25),
        ([send(b'{"n": ', length=6)], [0.5], 1.25),
        ([send(b'{"n": ', length=99)], [0.5], 1.25),
        ([send(b"<html>Sign in</html>", Content_Type="text/html")], [0.5], 1.25),
        ([send(b"[" * 100_000)], [0.5], 1.25),
        ([said({"other": 1})], [0.5], 1.25),
    ],
)
def test_a_passing_fault_is_waited_out(play: Any, bad: list[Reply], slept: list[float], cost: float) -> None:
    client, _, waited = play([*bad, said({"n": 3})], usd_call=1.0)
    assert client.post("/do", {}, read, family="judge") == 3
    assert waited == slept
    assert client.cache.spent().cost == cost, "what may have been counted is counted"


@pytest.mark.parametrize(
    ("reply", "says", "requests"),
    [
        (status(500), "HTTP 500", 3),
        (said([]), "wrong form", 3),
        (reset, "connection", 3),
        (
            status(400, b'{"error": {"message": "Too long\\u0007 for sk-do-not-print-me"}}'),
            r"HTTP 400\) It says: Too long for \*\*\*",
            1,
        ),
        (status(422, b"<html>"), r"HTTP 422\)$", 1),
    ],
)
def test_a_lasting_fault_is_this_calls_and_nothing_is_kept(play: Any, reply: Reply, says: str, requests: int) -> None:
    client, server, _ = play(reply)
    with pytest.raises(CallError, match=says):
        client.post("/do", {}, read, family="judge")
    assert len(server.requests) == requests
    server.script["/v1/do"] = [said({"n": 3})]
    assert client.post("/do", {}, read, family="judge") == 3


@pytest.mark.parametrize("reply", [status(401), status(403), status(402), status(404), moved("http://127.0.0.1:1/")])
def test_a_refused_key_or_address_ends_the_command(play: Any, reply: Reply) -> None:
    client, server, _ = play(reply)
    with pytest.raises(ServiceError, match="check GENEVOLVE_JUDGE_"):
        client.post("/do", {}, read, family="judge")
    assert len(server.requests) == 1
    assert client.cache.spent().cost == 0


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\n\r\n{", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_drip_and_a_hang_are_cut_off(play: Any, start: bytes) -> None:
    client, server, _ = play(endless(start), patience=Patience(attempts=1, attempt=0.2))
    with pytest.raises(CallError, match=r"time|connection"):  # h11 refuses headers without end
        client.post("/do", {}, read)
    server.script["/v1/do"] = [server.hang()]
    with pytest.raises(CallError, match="time"):
        client.post("/do", {}, read)


def test_a_server_that_is_not_there_costs_nothing(play: Any) -> None:
    client, _, slept = play([], usd_call=1.0, url="http://127.0.0.1:9/v1")
    with pytest.raises(CallError, match="no connection"):
        client.post("/do", {}, read)
    assert slept == [0.5, 1.0]
    assert client.cache.spent().cost == 0


def test_the_budget_stops_before_it_is_passed(play: Any) -> None:
    client, server, _ = play(said({"n": 3}), budget=1.0, usd_in=100_000.0, usd_out=200_000.0)
    assert client.post("/do", {"a": 1}, read, tokens_in=2, tokens_out=4) == 3  # .2 + .8 reserved, .25 paid
    with pytest.raises(BudgetError):
        client.post("/do", {"a": 2}, read, tokens_in=2, tokens_out=4)
    assert len(server.requests) == 1


def test_calls_that_cost_more_than_was_reserved_end_the_command_at_the_next(play: Any) -> None:
    client, server, _ = play(said({"n": 3}), budget=0.9, usd_call=0.1)  # .25 paid

    async def two() -> list[Any]:
        return await asyncio.gather(*(client.ask("/do", {"a": a}, read) for a in range(2)))

    for _ in range(2):
        loop.run(two())
    with pytest.raises(BudgetError, match=r"\$1\.0000 are spent"):
        client.post("/do", {"a": 4}, read)
    assert len(server.requests) == 4


def test_calls_have_a_rate(play: Any) -> None:
    client, _, slept = play(said({"n": 3}), rate=4.0)
    for a in range(3):
        client.post("/do", {"a": a}, read)
    assert slept == [0.25, 0.25]


def test_tokens_have_a_rate(play: Any) -> None:
    client, _, slept = play(said({"n": 3}), tokens_per_minute=600.0, rate=1e6)
    for a in range(2):
        client.post("/do", {"a": a}, read, tokens_in=5, tokens_out=15)
    assert slept == pytest.approx([2.0])


def test_one_error_ends_the_others_and_is_raised_itself(play: Any) -> None:
    client, _, _ = play(status(401))
    with pytest.raises(ServiceError):
        loop.gather(client.ask("/do", {"a": a}, read) for a in range(4))


def test_the_environment_says_where_and_a_wrong_word_is_a_sentence() -> None:
    where = {"GENEVOLVE_JUDGE_URL": "https://a.example/v1/", "OPENAI_API_KEY": SECRET, "GENEVOLVE_JUDGE_TPM": "60000"}
    found = Endpoint.from_environment("judge", key="OPENAI_API_KEY", environment=where)
    assert (found.url, found.tokens_per_minute, found.key) == ("https://a.example/v1", 60000, SecretStr(SECRET))
    assert SECRET not in repr(found)
    assert found.headers() == {"authorization": f"Bearer {SECRET}"}
    near = where | {"GENEVOLVE_JUDGE_URL": "http://10.1.2.3:8000/v1"}
    assert Endpoint.from_environment("judge", environment=near).key is None
    for wrong, says in (
        ({"GENEVOLVE_JUDGE_URL": ""}, "GENEVOLVE_JUDGE_URL is not set"),
        ({"GENEVOLVE_JUDGE_URL": "http://a.example/v1"}, "must begin with https"),
        ({"GENEVOLVE_JUDGE_URL": "ftp://a.example"}, "must be like"),
        ({"GENEVOLVE_JUDGE_URL": "https://u:p@a.example"}, "must be like"),
        ({"GENEVOLVE_JUDGE_RATE": "fast"}, "GENEVOLVE_JUDGE_RATE must be a number"),
        ({"GENEVOLVE_JUDGE_KEY": "two words"}, "GENEVOLVE_JUDGE_KEY holds spaces"),
    ):
        with pytest.raises(SettingsError, match=says):
            Endpoint.from_environment("judge", key="OPENAI_API_KEY", environment=where | wrong)


def test_retry_after_reads_numbers_and_dates() -> None:
    assert retry_after({"retry-after": "1.5"}, 0, 30) == 1.5
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 4, 30) == 6
    assert retry_after({"retry-after": "-4"}, 0, 30) == retry_after({}, 0, 30) == 0


def test_works_begin_when_there_is_room_and_come_back_in_order() -> None:
    begun: list[int] = []
    now = most = 0

    async def work(n: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return n

    def works() -> Iterator[Any]:
        for n in range(10):
            begun.append(n)
            assert now < 3, "drawn when there is room, not before"
            yield work(n)

    assert loop.spread(works(), 3) == list(range(10))
    assert (most, begun) == (3, list(range(10)))
    assert loop.spread([], 3) == []


def test_after_an_error_nothing_begins_and_what_is_under_way_is_finished() -> None:
    finished, begun = [], []

    async def work(n: int, failed: asyncio.Event) -> None:
        begun.append(n)
        if n == 1:
            await asyncio.sleep(0)  # until the third has begun
            failed.set()
            raise ServiceError("no")
        await failed.wait()
        await asyncio.sleep(0.01)
        finished.append(n)

    failed = asyncio.Event()
    with pytest.raises(ServiceError):
        loop.spread((work(n, failed) for n in range(10)), 3)
    assert (sorted(begun), sorted(finished)) == ([0, 1, 2], [0, 2])
    with pytest.raises(ZeroDivisionError):
        loop.spread((1 / 0 for _ in range(2)), 2)  # type: ignore[misc]


def test_a_picture_counts_by_its_content_and_is_not_kept_twice(play: Any) -> None:
    client, server, _ = play(said({"n": 3}))
    one, two = (DataUrl(c * 1000, "image/png") for c in (b"a", b"b"))
    for url in (one, two, DataUrl(b"a" * 1000, "image/png")):
        client.post("/do", {"parts": [{"image_url": {"url": url}}]}, read, family="judge")
    assert len(server.requests) == 2
    sent = json.loads(server.requests[0][3])["parts"][0]["image_url"]["url"]
    assert sent == f"data:image/png;base64,{base64.b64encode(one.data).decode()}", "the service gets it whole"
    with client.cache._turn() as db:
        assert all(len(row[0]) < 500 for row in db.execute("SELECT arguments FROM answers"))


@given(st.lists(st.text(max_size=20) | st.binary(max_size=40), max_size=6))
def test_a_body_is_the_json_it_would_be_whatever_stands_in_it(parts: list[str | bytes]) -> None:
    def body(write: Any) -> dict[str, Any]:
        rows = [{"url": p if isinstance(p, str) else write(p)} for p in parts]
        return {"model": "m", "messages": [{"content": rows}], "temperature": 0.0, "seed": None}

    light, pieces = _packed(body(lambda data: DataUrl(data, "image/png")))
    content = b"".join(_bytes(pieces))
    assert sum(map(len, pieces)) == len(content)
    assert content == json.dumps(body(lambda data: "data:image/png;base64," + base64.b64encode(data).decode())).encode()
    assert json.loads(light) == body(lambda data: f"data:image/png;sha256,{hashlib.sha256(data).hexdigest()}")


def test_a_body_that_is_no_json_is_the_programmers_error() -> None:
    with pytest.raises(TypeError, match="bytes is not JSON"):
        _packed({"a": b"x"})


def test_a_service_that_refuses_the_first_calls_ends_the_command_and_one_that_has_answered_does_not(play: Any) -> None:
    client, server, _ = play(status(400, b'{"error": {"message": "max_tokens is not supported"}}'))
    for a in range(7):
        with pytest.raises(CallError):
            client.post("/do", {"a": a}, read)
    with pytest.raises(ServiceError, match=r"first 8 calls \(HTTP 400\)\. It says: max_tokens is not supported"):
        client.post("/do", {"a": 7}, read)
    server.script["/v1/do"] = [said({"n": 3}), status(400)]
    client.post("/do", {"a": 8}, read)
    for a in range(9, 20):
        with pytest.raises(CallError):
            client.post("/do", {"a": a}, read)


def test_free_calls_reach_the_ledger_together_and_at_the_latest_when_the_client_is_closed(play: Any) -> None:
    client, server, _ = play([status(500), said({"n": 3})], rate=0)
    for _ in range(3):
        assert client.post("/do", {}, read, free=True) == 3
    assert len(server.requests) == 4
    client.write_free()
    spent = client.cache.spent("judge")
    assert (spent.calls, spent.tokens, spent.cost) == (4, 21, 0), "a row an attempt"
    client.post("/do", {}, read, free=True)
    deadline = time.monotonic() + 20
    while client.cache.spent("judge").calls < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.cache.spent("judge").calls == 5, "within a second or so by itself"


def test_free_is_not_free_where_calls_have_a_price(play: Any) -> None:
    client, _, _ = play(said({"n": 3}), usd_call=1.0, budget=0.5)
    with pytest.raises(BudgetError):
        client.post("/do", {}, read, free=True)


def test_no_rate_asks_no_queue(play: Any) -> None:
    client, _, slept = play(said({"n": 3}), rate=0)
    for a in range(3):
        client.post("/do", {"a": a}, read)
    assert slept == []


def test_a_look_says_the_status_and_is_not_charged(play: Any) -> None:
    client, server, slept = play([status(503, Retry_After="2"), said({"n": 3})], usd_call=1.0)
    server.script["/elsewhere"] = [status(404, b"<html>")]
    assert loop.run(client.look("/do")) == (200, {"n": 3})
    assert loop.run(client.look("/elsewhere", {"a": 1}, root=True)) == (404, None)
    assert [(m, p) for m, p, *_ in server.requests] == [("GET", "/v1/do")] * 2 + [("POST", "/elsewhere")]
    assert slept == [2.0]
    assert client.cache.spent().calls == 0
    server.script["/v1/do"] = [status(401)]
    with pytest.raises(ServiceError, match="refused the key"):
        loop.run(client.look("/do"))
    server.script["/v1/do"] = [status(500)]
    with pytest.raises(CallError, match="HTTP 500"):
        loop.run(client.look("/do"))


def test_a_path_beside_the_base_urls_v1(play: Any) -> None:
    client, server, _ = play(said({"n": 3}))
    server.script["/do"] = [said({"n": 4})]
    assert client.post("/do", {}, read, root=True) == 4
    assert client.post("/do", {}, read) == 3


def test_pictures_are_sent_again_with_an_attempt_that_is_made_again(play: Any) -> None:
    client, server, _ = play([status(500), said({"n": 3})])
    body = {"a": [DataUrl(b"one picture", "image/png"), "between", DataUrl(b"", "image/webp")], "b": "é"}
    assert client.post("/do", body, read) == 3
    first, second = (json.loads(sent) for *_, sent in server.requests)
    picture = base64.b64encode(b"one picture").decode()
    assert first == second == {
        "a": [f"data:image/png;base64,{picture}", "between", "data:image/webp;base64,"], "b": "é",
    }  # fmt: skip


def test_a_proxy_of_the_environment_is_used_but_for_this_machine(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, server, _ = play(said({"n": 3}), url="http://judge.invalid/v1", key=None)
    assert wire.proxy_of("http://judge.invalid/v1") is None
    monkeypatch.setenv("http_proxy", server.url)
    server.script["http://judge.invalid/v1/do"] = [said({"n": 4})]
    through = Client(client.endpoint, client.cache, budget=1.0, account="t", patience=Patience(attempts=1))
    assert through.post("/do", {"a": 1}, read) == 4
    assert wire.proxy_of(server.url) is None
    monkeypatch.setenv("no_proxy", "judge.invalid")
    assert wire.proxy_of("http://judge.invalid/v1") is None
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(SettingsError, match=r"The proxy for a\.example in the environment is none that http"):
        wire.proxy_of("https://a.example/v1")


def test_a_process_that_closes_nothing_ends_without_a_word(tmp_path: Path) -> None:
    server = Server({"/v1/do": said({"n": 3})})
    script = f"""
from pathlib import Path
from genevolve.services.cache import CallCache
from genevolve.services.client import Client, Paid
from genevolve.services.endpoint import Endpoint
client = Client(Endpoint("judge", {server.url + "/v1"!r}), CallCache(Path({str(tmp_path)!r}) / "c"), budget=1.0, account="t")
print(client.post("/do", {{}}, lambda value: Paid(value["n"])))
"""
    with server.running():
        done = subprocess.run([sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert "Unclosed" not in done.stderr, done.stderr
