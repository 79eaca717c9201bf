"""One event loop a process, in a thread of its own: code that is no coroutine waits for coroutines here (ours)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner = 0


def current() -> asyncio.AbstractEventLoop:
    """Return this process's loop, started when it is first asked for (a forked child has none of its parent's threads)."""
    global _loop, _owner, _lock
    if _owner != os.getpid():
        _lock = threading.Lock()  # a fork may have copied it held
    with _lock:
        if _loop is None or _owner != os.getpid():
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="services", daemon=True).start()
        return _loop


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop and return its result; an interrupt here cancels it there."""
    waiting = asyncio.run_coroutine_threadsafe(work, current())
    try:
        return waiting.result()
    except BaseException:
        waiting.cancel()
        raise


def gather(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines side by side and return their results in order; the first error cancels the others and is raised."""

    async def together() -> list[T]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(w) for w in works]
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        return [t.result() for t in tasks]

    return run(together())


def spread(works: Iterable[Coroutine[Any, Any, T]], at_once: int) -> list[T]:
    """Run coroutines, `at_once` at a time, and return their results in order.

    The next work is drawn from `works` when there is room for it, so a generator holds in memory what is under way and no
    more. After the first error nothing new begins, what is under way is finished (it is paid for), and the error is raised.
    """
    rows = enumerate(works)
    found: dict[int, T] = {}
    errors: list[Exception] = []

    async def one_after_another() -> None:
        while not errors:
            try:
                row = next(rows, None)
                if row is None:
                    return
                found[row[0]] = await row[1]
            except Exception as e:
                errors.append(e)

    async def together() -> list[T]:
        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        if errors:
            raise errors[0]
        return [found[i] for i in range(len(found))]

    return run(together())
