"""A web on loopback: a real HTTP server that plays a script, names that lead where a test says, and a clock that obeys."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore
from PIL import Image

from genevolve.tools.wire import Net

Reply = Callable[[BaseHTTPRequestHandler], None]

PUBLIC = "93.184.215.14"
"""What names resolve to unless a test says otherwise; nothing is ever sent there: `dial` leads to the loopback server."""


class LoopbackHTTPServer(ThreadingHTTPServer):
    request_queue_size = 256
    """Five, as is the default, are too few: where more connect at once on a busy machine, the system resets some."""


class Server:
    """Answers from `script` by path: a list gives one reply a request, the last one again and again."""

    def __init__(self, script: Mapping[str, Reply | list[Reply]]) -> None:
        self.script = {path: list(r) if isinstance(r, list) else [r] for path, r in script.items()}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.over = threading.Event()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            body = b""

            def do_GET(self) -> None:
                body = self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with outer._lock:
                    outer.requests.append(
                        (self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                    )
                    replies = outer.script.get(self.path.partition("?")[0], [status(404)])
                    reply = replies.pop(0) if len(replies) > 1 else replies[0]
                self.close_connection = True
                with suppress(BrokenPipeError, ConnectionResetError):
                    reply(self)

            do_POST = do_GET

            def end_headers(self) -> None:
                self.send_header("Connection", "close")  # as it is: a client must not take it for one to use again
                super().end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = LoopbackHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[Server]:
        thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            self.http.shutdown()
            thread.join()
            self.http.server_close()

    def hang(self) -> Reply:
        """Say nothing until the test is over."""
        return lambda _: self.over.wait(30) and None


def send(body: bytes, code: int = 200, length: int | None = None, **headers: str) -> Reply:
    """Answer with a body; `length` may lie. Header names are written with _ for -."""

    def reply(h: BaseHTTPRequestHandler) -> None:
        h.send_response(code)
        for name, value in headers.items():
            h.send_header(name.replace("_", "-"), value)
        h.send_header("Content-Length", str(len(body) if length is None else length))
        h.send_header("Connection", "close")  # as it will be: a client that kept it would lose its next request
        h.end_headers()
        h.wfile.write(body)

    return reply


def status(code: int, body: bytes = b"", **headers: str) -> Reply:
    return send(body, code, **headers)


def moved(to: str, code: int = 302) -> Reply:
    return send(b"", code, Location=to)


def said(value: Any) -> Reply:
    return send(json.dumps(value).encode(), Content_Type="application/json")


def reset(h: BaseHTTPRequestHandler) -> None:
    """Close the connection with a reset, in the middle of an answer."""
    import socket
    import struct

    h.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    h.wfile.flush()
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    h.connection.close()


def endless(start: bytes = b"HTTP/1.1 200 OK\r\n\r\n", drop: bytes = b" ") -> Reply:
    """Drip for ever; `start` may end inside the headers."""

    def reply(h: BaseHTTPRequestHandler) -> None:
        h.wfile.write(start)
        while True:
            h.wfile.write(drop)
            h.wfile.flush()

    return reply


class Clock:
    """Seconds that pass when someone sleeps, and `tick` more at each look."""

    def __init__(self, tick: float = 0.0) -> None:
        self.time, self.tick = 1000.0, tick
        self.slept: list[float] = []

    def __call__(self) -> float:
        self.time += self.tick
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


class Names:
    """A resolver and dialler: every public address is the loopback server, every dialled address is noted."""

    def __init__(
        self, port: int, hosts: Mapping[str, list[str]] | None = None, clock: Clock | None = None, **net: Any
    ) -> None:
        self.port, self.hosts = port, dict(hosts or {})
        self.asked: list[str] = []
        self.dialled: list[tuple[str, int]] = []
        parts = {"clock": clock} if clock is not None else {}
        self.net = Net(look_up=self.look_up, dial=self.dial, **parts, **net)

    def look_up(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        found = self.hosts.get(host, [PUBLIC])
        if not found:
            raise OSError("Name or service not known")
        return found

    def dial(self, address: str, port: int, seconds: float) -> httpcore.NetworkStream:
        self.dialled.append((address, port))
        return httpcore.SyncBackend().connect_tcp("127.0.0.1", self.port, timeout=5)


def picture(
    kind: str = "PNG", size: tuple[int, int] = (80, 60), mode: str = "RGB", colour: Any = "red", **how: Any
) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, kind, **how)
    return out.getvalue()
