"""The ledger's calls of one event loop, made off that loop: the database may wait for another process, or for the disk (ours).

Calls that come while others are being written wait for them and are then written together, in one transaction. Each caller
goes on when its own call is written, as it would by itself; at hundreds of calls a second a transaction each was a fifth of
our CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from genevolve.services.cache import CallCache

T = TypeVar("T")
Waiting = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Books:
    """One cache's ledger and answers, for the coroutines of one loop at a time."""

    def __init__(self, cache: CallCache) -> None:
        self.cache = cache
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._waiting: list[Waiting] = []
        self._writing = False
        self._owner: object = None

    async def do(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Return what `work` returns, or raise what it raises: any call of the cache, or several that belong together."""
        running = asyncio.get_running_loop()
        if self._owner is not running:
            self._waiting, self._writing, self._owner = [], False, running
        future: asyncio.Future[T] = running.create_future()
        self._waiting.append((partial(work, *arguments, **named), future))
        if not self._writing:
            self._write(running)
        return await future

    def later(self, seconds: float, work: Callable[..., Any], *arguments: Any) -> None:
        """Have a call made after some seconds, for which nobody waits."""
        asyncio.get_running_loop().call_later(seconds, self._thread.submit, work, *arguments)

    def _write(self, running: asyncio.AbstractEventLoop) -> None:
        taken, self._waiting = [row for row in self._waiting if not row[1].cancelled()], []
        self._writing = bool(taken)
        if taken:
            self._thread.submit(self._together, running, taken)

    def _together(self, running: asyncio.AbstractEventLoop, taken: list[Waiting]) -> None:
        try:
            found = self.cache.together([work for work, _ in taken])
        except Exception as e:
            found = [e] * len(taken)
        running.call_soon_threadsafe(self._tell, running, taken, found)

    def _tell(self, running: asyncio.AbstractEventLoop, taken: list[Waiting], found: list[Any]) -> None:
        self._write(running)
        for (_, future), value in zip(taken, found, strict=True):
            if future.cancelled():
                continue
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)
