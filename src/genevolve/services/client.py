"""JSON over HTTP to a service that the user configured: asked once, again where that may help, paid once (ours).

Many calls are under way on one event loop, in a thread of its own (`loop.py`); callers that are no coroutines use
`Client.post`. What a stranger's server may send is bounded too, but addresses are not checked here as they are for
downloads (`tools/fetch.py`): the user named this server.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pybase64
from pydantic_core import from_json

from genevolve.files import Picture
from genevolve.services import loop, wire
from genevolve.services.books import Books
from genevolve.services.cache import CallCache, call_key
from genevolve.services.endpoint import Endpoint, ServiceError
from genevolve.services.patience import AGAIN, Patience, retry_after

T = TypeVar("T")
MOST_BYTES = 64 * 2**20
FIRST = 8
"""So many calls refused as they are, and none answered, end the command: all others would be refused, too."""
POLL = 0.25
"""Seconds between two looks for the answer to a call that another process is making."""
SAID = 300
"""Most characters of a service's own error text that an error of ours repeats."""


class CallError(Exception):
    """A call failed for good; the sample it was for is missing. `reason` is short and holds no secret."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadAnswer(ValueError):
    """Raised by a `read` function: the answer has not the promised form. The call is made again."""


@dataclass(frozen=True)
class Paid:
    """What a read answer is worth keeping, and what it cost."""

    value: Any
    """any JSON value but null"""
    tokens: int = 0
    cost: float | None = None
    """dollars; None: what was reserved"""


@dataclass(frozen=True)
class DataUrl:
    """A picture inside a body, written as a data URL only when the call is sent: in memory it is held once."""

    data: bytes
    media_type: str

    @property
    def head(self) -> bytes:
        return f"data:{self.media_type};base64,".encode()

    def encoded(self) -> tuple[bytes, bytes]:
        """Return the URL in two pieces: putting a megabyte together here would only copy it once more."""
        return self.head, pybase64.b64encode(self.data)

    def __len__(self) -> int:
        """Return how many bytes the URL has."""
        return len(self.head) + 4 * -(-len(self.data) // 3)

    def digest(self) -> str:
        return f"data:{self.media_type};sha256,{Picture.of(self.data).sha256}"


class Client:
    """One service for all threads and coroutines of a process."""

    def __init__(
        self,
        endpoint: Endpoint,
        cache: CallCache,
        *,
        budget: float,
        account: str,
        patience: Patience | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`budget`: dollars the account (one command) may spend; `draw` gives the jitter, 0..1; `now` is Unix time."""
        self.endpoint, self.cache, self.budget, self.account = endpoint, cache, budget, account
        self.patience = patience or Patience(attempts=6, attempt=300, total=1800)
        self._sleep, self._draw, self._now = sleep, draw, now
        self._books = Books(cache)
        self._proxy = wire.proxy_of(endpoint.url)
        self._room: asyncio.Semaphore | None = None
        self._owner: object = None
        self._flights: dict[str, asyncio.Future[Any]] = {}
        self._free: list[tuple[float, int]] = []
        self._written = weakref.finalize(self, _write_free, cache, endpoint.name, self._free)  # at the latest, at exit
        self._proved, self._refused = False, 0

    def post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], Paid], **how: Any) -> Any:
        """As `ask`, from code that is no coroutine."""
        return loop.run(self.ask(path, body, read, **how))

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], Paid],
        *,
        family: str = "",
        tokens_in: int = 0,
        tokens_out: int = 0,
        free: bool = False,
        root: bool = False,
    ) -> Any:
        """POST `body` as JSON (a DataUrl stands for a string) to the base URL + `path`; return what `read` makes of the answer.

        `root`: the path stands beside the base URL's /v1. `read` raises BadAnswer for an answer it cannot use. `family` names
        the kind of call: a call of a family is paid once, its value kept for ever under service, path and body; without one
        nothing is kept. The two numbers are the most tokens the call may take: they are reserved in the budget and in the
        token rate. `free`: the call costs nothing, so no budget is asked before it is made, and the ledger hears of it within
        a second. Raises CallError when this call failed, ServiceError and BudgetError when the command cannot go on.
        """
        name = self.endpoint.name
        url = self.root if root else self.endpoint.url
        price = self.endpoint.cost(tokens_in, tokens_out)
        free = free and not price and not family
        light, pieces = _packed(body)
        arguments = {"url": url, "path": path, "body": json.loads(light) if family else None}
        key = call_key(family, name, arguments) if family else ""
        work = _Ask(f"{url}{path}", pieces, arguments, read, family, key, tokens_in + tokens_out, price, free)
        if not family:
            return await self._paid(work)
        flying = self._flights.get(key)
        if flying is not None:  # the loop is one thread: nothing comes between this look and the next line
            return await asyncio.shield(flying)
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        flight.add_done_callback(lambda f: None if f.cancelled() else f.exception())  # perhaps nobody else waits for it
        try:
            value = await self._paid(work)
            flight.set_result(value)
            return value
        except asyncio.CancelledError:
            flight.cancel()
            self._books.later(0.0, self.cache.let_go, key)  # the books may be claiming it just now
            raise
        except BaseException as e:
            flight.set_exception(e)
            raise
        finally:
            self.cache.let_go(key)
            del self._flights[key]

    async def _paid(self, ask: _Ask) -> Any:
        """Return the call's stored value, or make the call, again where that may help, and store what it brings."""
        async with self._open():
            deadline = time.monotonic() + self.patience.total
            for attempt in range(1, self.patience.attempts + 1):
                known, waited, call = await self._admitted(ask)
                if known is not None:
                    return known
                deadline += waited  # in our own queue: no fault of the service
                try:
                    if call is None:
                        return await self._free_attempt(ask, deadline)
                    return await self._attempt(ask, call, deadline)
                except _Lost as e:
                    lost = e
                pause = self.patience.pause(attempt, lost.wait, self._draw())
                if attempt == self.patience.attempts or time.monotonic() + pause >= deadline:
                    break
                await self._sleep(pause)
            raise CallError(f"the {self.endpoint.name} service does not answer ({lost.reason})")

    async def _attempt(self, ask: _Ask, call: int, deadline: float) -> Any:
        """Make the call once, charged as number `call` of the ledger; raise _Lost where another attempt may help."""
        start = time.monotonic()
        seconds = max(0.001, min(deadline - start, self.patience.attempt))
        cost = ask.price  # after a failure in the middle the service may have counted it, and so do we
        try:
            status, headers, answer = await self._exchange(ask.url, ask.pieces, seconds)
            if status == 200:
                paid = ask.read(_json(answer))
                self._proved = True
                await self._books.do(self._keep, ask, paid, call, time.monotonic() - start)
                return paid.value
            cost = 0.0
            raise self._failure(status, headers, answer)
        except BadAnswer as e:
            await self._books.do(self._settle, call, time.monotonic() - start, cost)
            raise _Lost(str(e)) from None
        except (_Lost, CallError, ServiceError) as e:
            cost = 0.0 if isinstance(e, _Lost) and e.free else cost
            await self._books.do(self._settle, call, time.monotonic() - start, cost)
            raise

    async def _free_attempt(self, ask: _Ask, deadline: float) -> Any:
        """As `_attempt`, for a call without a price whose answer is not kept: it touches no database, for a policy's server
        is asked hundreds of times a second. The ledger has its row within a second."""
        start = time.monotonic()
        seconds = max(0.001, min(deadline - start, self.patience.attempt))
        tokens = 0
        try:
            status, headers, answer = await self._exchange(ask.url, ask.pieces, seconds)
            if status != 200:
                raise self._failure(status, headers, answer)
            paid = ask.read(_json(answer))
            self._proved = True
            tokens = paid.tokens
            return paid.value
        except BadAnswer as e:
            raise _Lost(str(e)) from None
        finally:
            if not self._free:
                self._books.later(1.0, self.write_free)
            self._free.append((time.monotonic() - start, tokens))

    def write_free(self) -> None:
        """Write the free calls that the ledger has no row of yet."""
        _write_free(self.cache, self.endpoint.name, self._free)

    def _failure(self, status: int, headers: Mapping[str, str], answer: bytes) -> Exception:
        if status not in AGAIN:
            return self._refusal(status, answer)
        return _Lost(f"HTTP {status}", wait=retry_after(headers, self._now(), self.patience.longest_wait))

    async def look(
        self, path: str, body: Mapping[str, Any] | None = None, *, root: bool = False, seconds: float = 0.0
    ) -> tuple[int, Any]:
        """Return (status, JSON or None) of a GET, or of a POST where there is a body: what a server is and can do.

        `root`: the path stands beside the base URL's /v1. Asked again as other calls are, never charged. `seconds`: for a
        POST that sets the server to work for so long; it is sent again only where the server refused it for now or never
        got it. Raises ServiceError for a refused key, CallError when no answer comes.
        """
        base = self.root if root else self.endpoint.url
        limit = max(seconds, min(60, self.patience.attempt))
        content = None if body is None else [json.dumps(body).encode()]
        reason = ""
        for attempt in range(1, self.patience.attempts + 1):
            wait = 0.0
            try:
                status, headers, answer = await self._exchange(f"{base}{path}", content, limit)
                if status in (401, 402, 403):
                    raise self._refusal(status, answer)
                value = _json_or_none(answer)
                if status == 200 and value is None and answer.lstrip()[:1] in (b"{", b"["):
                    raise _Lost("no JSON")  # cut off: what it would have said of the server must not be read as a no
                if status not in AGAIN:
                    return status, value
                reason, wait = f"HTTP {status}", retry_after(headers, self._now(), self.patience.longest_wait)
            except _Lost as e:
                reason = e.reason
                if seconds and not e.free:  # it may be at work: a second load would only stand behind the first
                    break
            if attempt < self.patience.attempts:
                await self._sleep(self.patience.pause(attempt, wait, self._draw()))
        raise CallError(f"the {self.endpoint.name} service does not answer ({reason})")

    @property
    def root(self) -> str:
        """The base URL without /v1: where servers keep what is not OpenAI's."""
        return self.endpoint.url.removesuffix("/v1")

    def _keep(self, ask: _Ask, paid: Paid, call: int, seconds: float) -> None:
        cost = ask.price if paid.cost is None else paid.cost
        if ask.family:
            found: dict[str, Any] = {"seconds": seconds, "tokens": paid.tokens, "cost": cost}
            found |= {"call": call, "key": ask.key}
            self.cache.put(ask.family, self.endpoint.name, ask.arguments, paid.value, **found)
        else:
            self.cache.settle(call, seconds=seconds, tokens=paid.tokens, cost=cost)

    def _settle(self, call: int, seconds: float, cost: float) -> None:
        self.cache.settle(call, seconds=seconds, cost=cost)

    def _refusal(self, status: int, answer: bytes) -> Exception:
        """Return the error of a status that will not change: the command's end for a key or an address, else this call's."""
        name, said = self.endpoint.name, said_by(answer, self.endpoint)
        if status in (401, 402, 403):
            which = self.endpoint.variable("KEY")
            return ServiceError(
                f"The {name} service refused the key (HTTP {status}): check {which} and its credit.{said}"
            )
        if status in (404, 405) or 300 <= status < 400:
            which = self.endpoint.variable("URL")
            return ServiceError(
                f"The {name} service does not know this (HTTP {status}): check {which} and the model.{said}"
            )
        self._refused += 1
        if self._refused >= FIRST and not self._proved:  # what it refuses is how it is asked, not what
            return ServiceError(f"The {name} service refused each of the first {FIRST} calls (HTTP {status}).{said}")
        return CallError(f"the {name} service refused the call (HTTP {status}){said}")

    async def _admitted(self, ask: _Ask) -> tuple[Any, float, int | None]:
        """Return (the stored value, 0, None), or wait for the call's turn, charge it and return (None, the seconds waited,
        its number in the ledger, None for a free call). A call that another process is making is waited for."""
        if ask.free and not (self.endpoint.rate or self.endpoint.tokens_per_minute):
            return None, 0.0, None
        waited = 0.0
        while (found := await self._books.do(self._look_and_charge, ask, waited < self.patience.total)) is None:
            await self._sleep(POLL)
            waited += POLL
        known, turn, call = found
        if turn > 0:
            await self._sleep(turn)
            if not ask.free:  # only now: what stands in the queue must not use up the budget of what is asked before it
                call = await self._books.do(self._charge, ask)
        return known, waited + turn, call

    def _look_and_charge(self, ask: _Ask, patient: bool) -> tuple[Any, float, int | None] | None:
        """Look for a stored value; where there is none, take the call's turn and, if that is now, charge it.

        Return None, having done nothing, where another process is making the call; who is no longer `patient` makes it too.
        """
        if ask.family:
            known = self.cache.get(ask.family, self.endpoint.name, ask.arguments, ask.key)
            if known is not None:
                return known, 0.0, None
            if patient and not self.cache.claim(ask.key):
                return None
        turn = self._turn(ask.tokens)
        return None, turn, None if ask.free or turn > 0 else self._charge(ask)

    def _turn(self, tokens: int) -> float:
        """Take a turn: calls a second, and tokens a minute, over all processes; return the seconds to wait."""
        e = self.endpoint
        turn = self.cache.next_turn(e.name, e.rate, self._now(), 1) if e.rate else 0.0
        if e.tokens_per_minute and tokens:
            speed = e.tokens_per_minute / 60
            turn = max(turn, self.cache.next_turn(f"{e.name} tokens", speed, self._now(), tokens))
        return turn

    def _charge(self, ask: _Ask) -> int:
        return self.cache.reserve(self.endpoint.name, self.account, ask.price, self.budget)

    def _open(self) -> asyncio.Semaphore:
        """Return the room for calls of the running loop, to which the connections belong."""
        running = asyncio.get_running_loop()
        if self._room is None or self._owner is not running:
            self._owner = running
            self._room = asyncio.Semaphore(self.endpoint.concurrency)
        return self._room

    async def _exchange(
        self, url: str, pieces: Sequence[bytes | DataUrl] | None, seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send one POST, or a GET without `pieces`; return status, headers (any case) and body, all within `seconds` and MOST_BYTES."""
        sent = {**self.endpoint.headers(), "content-type": "application/json", "accept": "application/json"}
        data: bytes | AsyncIterator[bytes] | None = None
        if pieces is not None:
            sent["content-length"] = str(sum(map(len, pieces)))
            data = _written(pieces) if len(pieces) > 1 else b"".join(_bytes(pieces))
        method = "GET" if pieces is None else "POST"
        try:
            async with (
                asyncio.timeout(seconds),
                wire.session().request(
                    method, url, data=data, headers=sent, proxy=self._proxy, allow_redirects=False
                ) as got,
            ):
                body = bytearray()
                async for chunk in got.content.iter_any():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        raise _Lost("more bytes than allowed")
                return got.status, got.headers, bytes(body)
        except TimeoutError:
            raise _Lost("time") from None
        except wire.NoConnection:
            raise _Lost("no connection", free=True) from None
        except wire.Broken:
            raise _Lost("connection") from None


@dataclass(frozen=True)
class _Ask:
    """One call, ready to be sent."""

    url: str
    pieces: Sequence[bytes | DataUrl]
    arguments: Mapping[str, Any]
    read: Callable[[Any], Paid]
    family: str
    key: str
    tokens: int
    price: float
    free: bool


class _Lost(Exception):
    """No usable answer came. `free`: the service cannot have counted the call; `wait`: seconds it asks for."""

    def __init__(self, reason: str, free: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.free, self.wait = reason, free, wait


def _bytes(pieces: Sequence[bytes | DataUrl]) -> Iterator[bytes]:
    """Give a body piece by piece, pictures as base64: that needs no escaping, and looking for characters to escape in
    megabytes of it, or putting them together first, costs more than all the rest of a call."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            yield from piece.encoded()


async def _written(pieces: Sequence[bytes | DataUrl]) -> AsyncIterator[bytes]:
    for piece in _bytes(pieces):
        yield piece


def _packed(body: Mapping[str, Any]) -> tuple[str, list[bytes | DataUrl]]:
    """Return (the body as JSON with the sha256 of each picture in its place; the body as JSON around its pictures).

    The first is what the cache knows a question by: pictures are kept where they were made, and not a second time with
    every question about them.
    """
    mark = uuid.uuid4().hex
    pictures: list[DataUrl] = []

    def default(value: Any) -> str:
        if not isinstance(value, DataUrl):
            raise TypeError(f"{type(value).__name__} is not JSON")
        pictures.append(value)  # they are met in the order in which they are written
        return mark

    first, *behind = json.dumps(body, default=default).split(mark)
    light: list[str] = [first]
    pieces: list[bytes | DataUrl] = [first.encode()]
    for picture, piece in zip(pictures, behind, strict=True):
        light += [picture.digest(), piece]
        pieces += [picture, piece.encode()]
    return "".join(light), pieces


def _json(body: bytes) -> Any:
    try:
        return from_json(body, cache_strings="keys")
    except ValueError:
        raise BadAnswer("no JSON") from None


def _json_or_none(body: bytes) -> Any:
    try:
        return _json(body)
    except BadAnswer:
        return None


def _write_free(cache: CallCache, name: str, calls: list[tuple[float, int]]) -> None:
    taken, calls[:] = list(calls), []
    if taken:
        cache.note_free(name, taken)


def said_by(answer: bytes, endpoint: Endpoint) -> str:
    """Return ' It says: ...' with the error text of an answer, shortened, printable and without the key; or ''."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return ""
    found = value.get("error", value) if isinstance(value, dict) else None
    text = found.get("message", found.get("detail")) if isinstance(found, dict) else found
    if not isinstance(text, str):
        return ""
    if endpoint.key is not None:
        text = text.replace(endpoint.key.get_secret_value(), "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * SAID]).split())
    return f" It says: {line[:SAID]}" if line else ""
