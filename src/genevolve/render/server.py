"""The renderer server: `POST /generate` of the GenEvolve and Gen-Searcher releases over workers of ours (FastAPI).

Request [R]: {"prompt", "image_urls": [data URIs], "seed", "num_inference_steps", "true_cfg_scale", "negative_prompt",
"width", "height"}; answer: {"success": true, "image": base64 PNG}, or {"success": false, "message"}. Ours beside: 'request_id'
with 'run_seed', from which guesses and noise are drawn as in this package's own runs; a bearer token; 503 with Retry-After
when the queue is full; no http addresses in 'image_urls', because a server that follows a stranger's address is a hole.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, SecretStr, ValidationError

from genevolve.render.base import Options, RenderError, RenderJob
from genevolve.render.pictures import reference
from genevolve.render.worker import Worker, WorkerLost
from genevolve.tools.picture import Refused

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one caller may ask for and how long things may take."""

    queue: int = 32
    """Jobs that wait; beyond them callers are sent away for a while."""
    body: int = 48 * 2**20
    """Bytes of a request."""
    images: int = 4
    body_seconds: float = 60.0
    """From the first to the last byte of a request."""
    job_seconds: float = 900.0
    """One picture; a worker that takes longer is replaced."""
    rest: float = 20.0
    """Seconds before a worker that would not start is tried again."""


class Ask(BaseModel):
    """The body of a request; what is not named here is ignored, as the releases' server does."""

    prompt: str = Field(min_length=1, max_length=8000)
    image_urls: list[str] = []
    seed: int | None = Field(default=0, ge=0, lt=2**63)
    num_inference_steps: int | None = Field(default=None, ge=1, le=200)
    true_cfg_scale: float | None = Field(default=None, ge=0, le=30)
    negative_prompt: str | None = Field(default=None, max_length=8000)
    num_images_per_prompt: int | None = Field(default=1, ge=1, le=1)
    width: int | None = Field(default=None, ge=64, le=2048)
    height: int | None = Field(default=None, ge=64, le=2048)
    request_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,80}$")
    run_seed: int | None = Field(default=None, ge=0, lt=2**63)

    def job(self, references: Sequence[bytes]) -> RenderJob:
        wish = Options(self.width, self.height, self.num_inference_steps, self.true_cfg_scale, self.negative_prompt)
        if self.request_id is not None and self.run_seed is not None:
            return RenderJob(self.request_id, self.prompt, tuple(references), self.run_seed, wish)
        return RenderJob("", self.prompt, tuple(references), self.seed or 0, wish)


class Refusal(Exception):
    """An answer that is no picture."""

    def __init__(self, status: int, message: str, wait: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.wait = status, message, wait

    def response(self) -> JSONResponse:
        headers = {} if self.wait is None else {"Retry-After": str(self.wait)}
        return JSONResponse({"success": False, "message": self.message}, self.status, headers)


class Desk:
    """The queue and those who work it off, one job at a time each."""

    def __init__(self, workers: Sequence[Worker], limits: Limits) -> None:
        self.workers, self.limits = list(workers), limits
        self.up = [True] * len(self.workers)
        self.busy = 0
        self._queue: asyncio.Queue[tuple[RenderJob, asyncio.Future[bytes | None]]] = asyncio.Queue()
        self._waiting: set[asyncio.Future[bytes | None]] = set()
        """jobs in the queue whose callers are still there"""
        self._threads = ThreadPoolExecutor(len(self.workers), "worker")
        self._seconds = 10.0
        """a running mean of a picture's"""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def wait(self) -> int:
        """Return the seconds after which a caller may find room."""
        share = self._seconds * (self.waiting + 1) / max(1, sum(self.up))
        return max(1, min(60, math.ceil(share / 2)))

    def submit(self, job: RenderJob) -> asyncio.Future[bytes | None]:
        """Return the future picture of a job; raise Refusal when there is no room, or nobody to draw."""
        if not any(self.up):
            raise Refusal(503, "No generator is running; one is being started.", 30)
        if self.waiting >= self.limits.queue:
            raise Refusal(503, f"The queue of {self.limits.queue} programs is full.", self.wait())
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        self._queue.put_nowait((job, future))
        return future

    def open(self) -> None:
        self._tasks = [asyncio.create_task(self._work(i)) for i in range(len(self.workers))]

    async def close(self) -> None:
        """End the workers, those that draw too, and the jobs that still wait."""
        for task in self._tasks:
            task.cancel()
        for worker in self.workers:
            worker.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown()

    async def _work(self, number: int) -> None:
        worker, loop = self.workers[number], asyncio.get_running_loop()
        while True:
            job, future = await self._queue.get()
            if future.done():  # its caller has gone
                continue
            self._waiting.discard(future)
            start = time.monotonic()
            self.busy += 1
            try:
                picture = await loop.run_in_executor(self._threads, worker.render, job, self.limits.job_seconds)
            except WorkerLost as e:
                log.error("worker %d is lost: %s", number, e)
                if not future.done():
                    future.set_exception(
                        Refusal(500, "The generator's process was lost; the program may be sent again.")
                    )
                await self._again(number)
            else:
                self._seconds += 0.2 * (time.monotonic() - start - self._seconds)
                if not future.done():
                    future.set_result(picture)
            finally:
                self.busy -= 1

    async def _again(self, number: int) -> None:
        """Start a lost worker, however often that takes; the others go on."""
        self.up[number] = False
        while not self.up[number]:
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, self.workers[number].start)
            except RenderError as e:
                log.error("worker %d: %s", number, e)
                await asyncio.sleep(self.limits.rest)
            else:
                self.up[number] = True


def make_app(
    workers: Sequence[Worker], *, model: str = "", token: SecretStr | None = None, limits: Limits | None = None
) -> FastAPI:
    """Return the application over workers that have been started; it stops them at its end."""
    limits = limits or Limits()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        desk = app.state.desk = Desk(workers, limits)
        desk.open()
        try:
            yield
        finally:
            await desk.close()

    app = FastAPI(title="genevolve renderer", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> JSONResponse:
        desk: Desk = app.state.desk
        down = [i for i, up in enumerate(desk.up) if not up]
        state = {
            "status": "healthy" if len(down) < len(desk.up) else "unhealthy",
            "num_gpus": len(desk.up),
            "disabled_gpus": down,
            "model": model,
            "busy": desk.busy,
            "waiting": desk.waiting,
            "queue": limits.queue,
        }
        return JSONResponse(state, 200 if len(down) < len(desk.up) else 503)

    @app.post("/generate")
    async def generate(request: Request) -> JSONResponse:
        try:
            allowed = _allowed(request, token)
            body = await _body(request, limits, keep=allowed)
            if not allowed:
                raise Refusal(401, "The bearer token is missing or wrong.")
            ask = _ask(body, limits)
            references = [_reference(i, url) for i, url in enumerate(ask.image_urls, 1)]
            await asyncio.to_thread(_check, references)
            picture = await _wait(request, app.state.desk.submit(ask.job(references)))
        except Refusal as e:
            return e.response()
        if picture is None:  # this program will fail again: no status that asks for another try
            return JSONResponse({"success": False, "message": "The generator drew nothing for this program."})
        return JSONResponse({"success": True, "image": base64.b64encode(picture).decode()})

    return app


def _allowed(request: Request, token: SecretStr | None) -> bool:
    if token is None:
        return True
    sent = request.headers.get("authorization", "").encode()
    return hmac.compare_digest(sent, f"Bearer {token.get_secret_value()}".encode())


async def _body(request: Request, limits: Limits, keep: bool) -> bytes:
    """Read a request's body, bounded in bytes and time; without `keep` it is read, so that the answer is, and dropped."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body:
        raise Refusal(413, f"The request is larger than {limits.body} bytes.")
    body, count = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                count += len(chunk)
                if count > limits.body:
                    raise Refusal(413, f"The request is larger than {limits.body} bytes.")
                if keep:
                    body += chunk
    except TimeoutError:
        raise Refusal(408, f"The request did not arrive within {limits.body_seconds:g} s.") from None
    return bytes(body)


def _ask(body: bytes, limits: Limits) -> Ask:
    try:
        ask = Ask.model_validate_json(body)
    except ValidationError as e:
        first = e.errors()[0]
        if first["type"] == "json_invalid":
            raise Refusal(400, "The request is not JSON.") from None
        field = ".".join(str(part) for part in first["loc"]) or "the request"
        raise Refusal(422, f"{field}: {first['msg']}.") from None
    if len(ask.image_urls) > limits.images:
        raise Refusal(422, f"image_urls: at most {limits.images} pictures, not {len(ask.image_urls)}.")
    return ask


def _reference(number: int, url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not re.fullmatch(r"data:image/[a-z0-9.+-]{1,40};base64", head, re.IGNORECASE):
        raise Refusal(
            422, f"image_urls: picture {number} must be a data URI (data:image/png;base64,...); no address is followed."
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, f"image_urls: picture {number} is not base64.") from None


def _check(references: Sequence[bytes]) -> None:
    """Decode the pictures once here: a bad one is the caller's fault, and told so before a GPU waits for it."""
    for number, data in enumerate(references, 1):
        try:
            if data.lstrip()[:1] == b"<":
                raise Refused("not a picture")  # no drawings (SVG) from strangers
            reference(data)
        except Refused as e:
            raise Refusal(422, f"image_urls: picture {number} is refused ({e.reason}).") from None


async def _wait(request: Request, future: asyncio.Future[bytes | None]) -> bytes | None:
    """Return the future picture; give it up when the caller goes away, so that nobody draws for no one."""
    try:
        while not future.done():
            await asyncio.wait({future}, timeout=1.0)
            if not future.done() and await request.is_disconnected():
                raise Refusal(499, "The caller has gone.")
        return future.result()
    finally:
        if not future.done():
            future.cancel()


def start_all(workers: Sequence[Worker]) -> None:
    """Start workers side by side; raise RenderError, and leave none running, when one of them cannot."""
    try:
        with ThreadPoolExecutor(len(workers)) as threads:
            list(threads.map(Worker.start, workers))
    except BaseException:
        for worker in workers:
            worker.stop()
        raise


def server(app: FastAPI, host: str, port: int, limits: Limits, on_ready: Callable[[int], None]) -> uvicorn.Server:
    """Return the server; its `run` serves until SIGINT or SIGTERM, lets no new caller in then, and ends jobs in two minutes.

    `on_ready` is told the port once callers are let in.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_ready(self.servers[0].sockets[0].getsockname()[1])

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        ws="none",
        limit_concurrency=limits.queue + 64,
        timeout_graceful_shutdown=120,
        server_header=False,
    )
    return Server(config)
