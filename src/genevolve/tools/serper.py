"""Text and image search by a Serper-compatible service (https://serper.dev): the two web tools of the paper's setting.

POST {url}/search and {url}/images with the header X-API-KEY and {"q", "num"}. A call is paid once (`cache.CallCache`), made by
one of those that ask at the same time, at a bounded rate, and within the command's budget. What comes back is hostile: it is
cut to size here and escaped where observations are written (`agent.format.escape`).
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr

from genevolve.errors import SettingsError
from genevolve.services.cache import CallCache, call_key
from genevolve.services.client import CallError
from genevolve.services.endpoint import ServiceError, base_url, key_of, number
from genevolve.services.patience import AGAIN, Patience, retry_after
from genevolve.services.steady import Steady
from genevolve.tools.addresses import is_public
from genevolve.tools.base import ImageHit, SearchHit, ToolError
from genevolve.tools.fetch import PASSING, Fetcher
from genevolve.tools.picture import Refused, keep
from genevolve.tools.wire import Answer, Net, WireError, exchange

KEY, URL, USD, RATE = "SERPER_API_KEY", "GENEVOLVE_SERPER_URL", "GENEVOLVE_SERPER_USD", "GENEVOLVE_SERPER_RATE"
"""Variables of the environment: the key; the service; dollars a credit; calls a second of all processes together."""
DEFAULTS = {URL: "https://google.serper.dev", USD: "0.001", RATE: "20"}

BACKEND = "serper"
WEB = "web/"
"""Begins the `file` of a picture from the web, as 'images/' begins one of the embedded world."""
MOST_RESULTS = 20
PAGE = 10
"""Results one credit buys: so many are always asked for, and one cached answer serves every smaller `top_k`."""
TITLE, SNIPPET, LINK = 160, 400, 2000
"""Most characters of each that are kept."""
MOST_BYTES = 4_000_000
FREE = frozenset({"no address", "certificate"})
"""Failures before the question was sent. After any other one the service may have counted it, and so do we."""

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """Where the service is, what it costs and how fast it may be asked. The key shows itself in no text."""

    url: str
    key: SecretStr
    usd: float
    rate: float

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Service:
        """Return the service the environment names; raise SettingsError, one sentence, for a missing or wrong variable."""
        values = DEFAULTS | {k: v for k, v in (os.environ if environment is None else environment).items() if v}
        key = key_of(values, KEY)
        if key is None:
            raise SettingsError(
                f"{KEY} is not set: world.search and world.image_search 'serper' need the key of a search service."
            )
        return cls(base_url(values[URL], URL, key), key, number(values, USD, 0), number(values, RATE, 1e-3))


class Flights:
    """Equal calls under way at the same time are made once; all who asked get the one answer, or its exception."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flying: dict[str, Future[Any]] = {}

    def share(self, key: str, make: Callable[[], T]) -> T:
        with self._lock:
            flight, mine = self._flying.get(key), key not in self._flying
            if flight is None:
                flight = self._flying[key] = Future()
        if not mine:
            return flight.result()  # type: ignore[no-any-return]
        try:
            made = make()
            flight.set_result(made)
            return made
        except BaseException as e:
            flight.set_exception(e)
            raise
        finally:
            with self._lock:
                del self._flying[key]


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt."""

    rows: list[dict[str, str]] | None = None
    reason: str = ""
    """why there are no rows"""
    paid: float = 0.0
    """dollars"""
    wait: float | None = None
    """seconds to wait at least before the next attempt; None: another would fail too"""
    useless: bool = False
    """no question will be answered with this key"""


class Serper:
    """The service as a function: what was asked in, cleaned rows out. For all threads of a process."""

    def __init__(
        self,
        service: Service,
        cache: CallCache,
        *,
        budget: float,
        account: str,
        net: Net | None = None,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`budget`: dollars the account (one command) may spend; `draw` gives the jitter, 0..1; `now` is Unix time."""
        self.service, self.cache, self.budget, self.account = service, cache, budget, account
        self.net, self.patience = net or Net(), patience or Patience()
        self._sleep, self._draw, self._now = sleep, draw, now
        self._flights, self._steady = Flights(), Steady("The search")

    def ask(self, kind: str, query: str, top_k: int) -> list[dict[str, str]]:
        """Return the rows of a 'search' ({title, url, snippet}) or of 'images' ({title, url, image}), best first.

        Raises ToolError when the service has no answer to this query, BudgetError, ServiceError and TryLaterError when it is of
        no use to go on: what a policy does without a search says nothing of the policy.
        """
        num = PAGE if top_k <= PAGE else MOST_RESULTS
        arguments = {"service": self.service.url, "q": " ".join(query.split()), "num": num}

        def make() -> list[dict[str, str]]:
            known = self.cache.get(kind, BACKEND, arguments)
            if known is None:
                with self.cache.alone(kind, BACKEND, arguments):  # another process may be asking just this
                    known = self.cache.get(kind, BACKEND, arguments)
                    if known is None:
                        known = self._paid(kind, arguments)
            return list(known)

        return self._flights.share(call_key(kind, BACKEND, arguments), make)

    def _paid(self, kind: str, arguments: dict[str, Any]) -> list[dict[str, str]]:
        """Make the call, again where that may help; store and return its rows."""
        price = self.service.usd * (1 if arguments["num"] <= PAGE else 2)
        deadline, reason = self.net.clock() + self.patience.total, ""
        for attempt in range(1, self.patience.attempts + 1):
            turn = self.cache.next_turn(BACKEND, self.service.rate, self._now())
            if turn > 0:
                self._sleep(turn)
                deadline += turn  # waiting in our own queue is no fault of the service
            call = self.cache.reserve(BACKEND, self.account, price, self.budget)
            start = self.net.clock()
            outcome = self._attempt(kind, arguments, price, deadline)
            seconds = max(0.0, self.net.clock() - start)
            if outcome.rows is not None:
                self.cache.put(kind, BACKEND, arguments, outcome.rows, seconds=seconds, cost=outcome.paid, call=call)
                self._steady.answered()
                return outcome.rows
            self.cache.settle(call, seconds=seconds, cost=outcome.paid)
            if outcome.useless:
                raise ServiceError(
                    f"The search service refused {KEY} ({outcome.reason}): check the key and its credits."
                )
            if outcome.wait is None:
                self._steady.answered()
                raise ToolError(f"The search service refused this query ({outcome.reason}); ask in other words.")
            reason = outcome.reason
            pause = self.patience.pause(attempt, outcome.wait, self._draw())
            if attempt == self.patience.attempts or self.net.clock() + pause >= deadline:
                break
            self._sleep(pause)
        self._steady.failed(CallError(f"the search service does not answer ({reason})"))
        raise ToolError(f"The search service does not answer ({reason}); go on with what you have.")

    def _attempt(self, kind: str, arguments: dict[str, Any], price: float, deadline: float) -> Outcome:
        try:
            answer = self._post(kind, arguments, min(deadline, self.net.clock() + self.patience.attempt))
        except WireError as e:
            return Outcome(reason=e.reason, paid=0.0 if e.reason in FREE else price, wait=0.0)
        if answer.status == 200:
            rows, reason = read_rows(kind, answer.body)
            return Outcome(rows, reason, price, None if reason == "wrong form" else 0.0)
        useless = answer.status in (401, 402, 403) or b"not enough credits" in answer.body[:2000].lower()
        longest = self.patience.longest_wait
        wait = retry_after(answer.headers, self._now(), longest) if answer.status in AGAIN else None
        return Outcome(reason=f"HTTP {answer.status}", wait=wait, useless=useless)

    def _post(self, kind: str, arguments: dict[str, Any], deadline: float) -> Answer:
        url = httpx.URL(f"{self.service.url}/{kind}")
        addresses = self.net.addresses(url, deadline)
        if url.scheme == "http" and any(map(is_public, addresses)):
            raise WireError("no address")  # 'localhost' that is not this machine
        key = ("X-API-KEY", self.service.key.get_secret_value())
        headers = (key, ("Content-Type", "application/json"), ("Accept", "application/json"))
        content = json.dumps({"q": arguments["q"], "num": arguments["num"]}).encode()
        wanted = frozenset({200, 400})
        return exchange(
            "POST",
            url,
            addresses,
            self.net,
            headers=headers,
            content=content,
            most=MOST_BYTES,
            deadline=deadline,
            read=wanted,
        )


def read_rows(kind: str, body: bytes) -> tuple[list[dict[str, str]] | None, str]:
    """Return (cleaned rows, '') of an answer, or (None, 'no JSON' or 'wrong form'). Rows without title or link are left out."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None, "no JSON"
    found = value.get("organic" if kind == "search" else "images") if isinstance(value, dict) else None
    if not isinstance(found, list):
        return None, "wrong form"
    rows = []
    for item in found[:MOST_RESULTS]:
        if not isinstance(item, dict):
            continue
        row = {"title": clean(item.get("title"), TITLE), "url": _link(item.get("link"))}
        if kind == "search":
            row["snippet"] = clean(item.get("snippet"), SNIPPET)
            needed = row["url"] and (row["title"] or row["snippet"])
        else:
            row["image"] = _link(item.get("imageUrl"))
            needed = row["image"] and row["title"]
        if needed:
            rows.append(row)
    if found and not rows:
        return None, "wrong form"
    return rows, ""


def clean(value: Any, most: int) -> str:
    """Return one line of at most `most` characters: no control, format or unpaired characters, no picture id of ours.

    Tags stay; they are escaped where an observation is written.
    """
    if not isinstance(value, str):
        return ""
    text = value[: 4 * most]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    text = re.sub(
        r"IMG_(?=[0-9])", "IMG ", text, flags=re.IGNORECASE
    )  # 'IMG_001' in a title would pass for a result's id
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _link(value: Any) -> str:
    """Return a web address of at most LINK printable characters, else ''."""
    ok = isinstance(value, str) and len(value) <= LINK and value.isprintable() and re.match(r"https?://", value, re.I)
    return value if ok else ""


class SerperSearch:
    """Text search."""

    def __init__(self, serper: Serper) -> None:
        self.serper = serper

    def search(self, query: str, top_k: int = 5) -> list[SearchHit]:
        """Return at most top_k (1..20) results, best first."""
        limit = max(1, min(int(top_k), MOST_RESULTS))
        rows = self.serper.ask("search", query, limit)[:limit]
        return [SearchHit(title=r["title"], url=r["url"], snippet=r["snippet"]) for r in rows]


class SerperImageSearch:
    """Image search whose pictures lie on our disk, redrawn, before the policy hears of them."""

    def __init__(self, serper: Serper, fetcher: Fetcher, folder: Path, side_by_side: int = 16) -> None:
        self.serper, self.fetcher, self.folder = serper, fetcher, folder
        self.refused: Counter[str] = Counter()
        """How many pictures this process did not take, by reason; the cache's ledger has those of all."""
        self._flights = Flights()
        self._threads = ThreadPoolExecutor(side_by_side, "picture")
        self._passing: dict[str, float] = {}

    def search(self, query: str, top_k: int = 5) -> list[ImageHit]:
        """Return at most top_k (1..20) results, best first; those whose picture is refused are passed over."""
        limit = max(1, min(int(top_k), MOST_RESULTS))
        rest = self.serper.ask("images", query, limit)
        hits: dict[str, ImageHit] = {}
        while rest and len(hits) < limit:  # as many at a time as are still missing: no picture is loaded for nothing
            wave, rest = rest[: limit - len(hits)], rest[limit - len(hits) :]
            for row, file in zip(wave, self._threads.map(lambda r: self.file(r["image"]), wave), strict=True):
                if file is not None:
                    hits.setdefault(file, ImageHit(title=row["title"], url=row["url"] or row["image"], file=file))
        return list(hits.values())

    def file(self, url: str) -> str | None:
        """Return the `file` of the picture behind a URL, loading it when it is new; None when it is refused."""
        return self._flights.share(url, lambda: self._file(url))

    def _file(self, url: str) -> str | None:
        cache, arguments = self.serper.cache, {"url": url}
        known = cache.get("picture", "web", arguments)
        if known is not None:
            if "refused" in known:
                self.refused[known["refused"]] += 1
                return None
            if (self.folder / known["file"]).is_file():
                return WEB + str(known["file"])
        clock = self.fetcher.net.clock
        if clock() < self._passing.get(url, 0.0):
            return None
        start = clock()
        try:
            name = keep(*self.fetcher.fetch(url), self.folder)
        except Refused as e:
            self.refused[e.reason] += 1
            if e.reason in PASSING:
                self._passing[url] = clock() + 600  # the other rollouts of the request need not wait for it too
            else:
                cache.put("picture", "web", arguments, {"refused": e.reason}, seconds=0.0)
            cache.note(f"web: {e.reason}", clock() - start)
            return None
        cache.put("picture", "web", arguments, {"file": name}, seconds=clock() - start)
        return WEB + name
