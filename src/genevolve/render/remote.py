"""What the generators behind HTTP share: side by side, each picture made once and kept by what was asked for (ours)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve.files import write_whole
from genevolve.render.base import RenderJob
from genevolve.render.pictures import Sent, for_wire, rendered
from genevolve.services import loop
from genevolve.services.cache import CallCache, call_key
from genevolve.services.client import BadAnswer, CallError
from genevolve.services.steady import Steady
from genevolve.tools.picture import Refused

log = logging.getLogger(__name__)

Body = dict[str, Any]


class Kept:
    """A folder of pictures that were paid for. The name of a file is the hash of all that was asked for.

    The picture itself is the cache: it is looked for before a call, and lies there whole before the call's caller has it.
    Requests with their pictures would not fit into the ledger's database.
    """

    def __init__(
        self,
        folder: Path,
        backend: str,
        body: Callable[[RenderJob, Sequence[Sent]], Body],
        ask: Callable[[Body], Awaitable[bytes | None]],
        ledger: CallCache,
    ) -> None:
        """`body` makes a job's request, `ask` sends it and returns a PNG, or None where there is none to be had; `ledger`
        counts the pictures that were kept."""
        self.folder, self.backend, self._body, self._ask, self._ledger = folder, backend, body, ask, ledger
        self._flights: dict[str, asyncio.Future[bytes | None]] = {}
        self._steady = Steady("The generator")

    def render(self, jobs: Sequence[RenderJob], beside: Mapping[str, Any]) -> list[bytes | None]:
        """Return one PNG per job, None where it is missing; `beside` are the settings that a request does not name.

        Raises ServiceError, BudgetError and TryLaterError: the command cannot go on.
        """
        return loop.gather(self._one(job, dict(beside)) for job in jobs)

    async def _one(self, job: RenderJob, beside: Body) -> bytes | None:
        try:
            body, key = await asyncio.to_thread(self._asked, job, beside)
        except Refused as e:
            log.warning("request %s: a reference is of no use (%s)", job.request_id, e.reason)
            return None
        flight = self._flights.get(key)
        if flight is None:  # the loop is one thread: nothing comes between this look and the next line
            flight = self._flights[key] = asyncio.ensure_future(self._made(self.folder / f"{key}.png", body, job))
            flight.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(flight)  # a picture that is being paid for is kept, though the command ends

    def _asked(self, job: RenderJob, beside: Body) -> tuple[Body, str]:
        body = self._body(job, [for_wire(data) for data in job.references])
        asked = {"body": body, "request_id": job.request_id, "seed": job.seed, **beside}
        return body, call_key("render", self.backend, asked)

    def _landed(self, key: str, flight: asyncio.Future[bytes | None]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # perhaps nobody else looks at it

    async def _made(self, path: Path, body: Body, job: RenderJob) -> bytes | None:
        if path.is_file():
            await asyncio.to_thread(self._ledger.note, self.backend, cached=True)
            return await asyncio.to_thread(path.read_bytes)
        try:
            picture = await self._ask(body)
        except CallError as e:
            self._steady.failed(e)
            log.warning("request %s: %s", job.request_id, e.reason)
            return None
        self._steady.answered()
        if picture is None:
            log.warning("request %s: the %s generator drew nothing", job.request_id, self.backend)
            return None
        await asyncio.to_thread(write_whole, path, picture)
        return picture


def picture_of(data: Any) -> bytes:
    """Return base64 text of a picture as a PNG of ours; raise BadAnswer, so that the call is made again."""
    if not isinstance(data, str):
        raise BadAnswer("wrong form")
    try:
        return rendered(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        raise BadAnswer("no base64") from None
    except Refused as e:
        raise BadAnswer(e.reason) from None
