"""Ways in which a generator behind HTTP goes wrong, as replies of the loopback server of `tests/tools/web.py`."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from typing import Any

from tests.render.tiny import picture
from tests.tools.web import Reply, Server, endless, reset, said, send, status


def bomb() -> bytes:
    """A PNG of a few bytes whose header says 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


Wrap = Callable[[Any], Any]
"""Makes a service's answer of what stands where its base64 picture should."""


def faults(wrap: Wrap) -> dict[str, Callable[[Server], Reply]]:
    """Return the faults after which another try may help, by name."""

    def inside(data: bytes) -> Callable[[Server], Reply]:
        return lambda _: said(wrap(base64.b64encode(data).decode()))

    return {
        "429": lambda _: status(429, Retry_After="7"),
        "500": lambda _: status(500, b"<h1>oops</h1>"),
        "503": lambda _: status(503, Retry_After="9"),
        "hang": lambda server: server.hang(),
        "cut JSON": lambda _: send(b'{"success": true, "image": "iVBOR', Content_Type="application/json"),
        "wrong form": lambda _: said({"ok": 1}),
        "a list": lambda _: said([1]),
        "HTML": lambda _: send(b"<!doctype html><p>Sign in</p>", Content_Type="text/html"),
        "slow drip": lambda _: endless(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"),
        "reset": lambda _: reset,
        "no base64": lambda _: said(wrap("@@@@")),
        "a number": lambda _: said(wrap(7)),
        "bomb": inside(bomb()),
        "truncated": inside(picture("red", (300, 200))[:200]),
        "mislabelled": inside(b"<html>no picture</html>"),
        "an SVG": inside(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        "a dot": inside(picture("red", (1, 1))),
    }
