"""HTTP to services that the user configured: one aiohttp session for all clients of a process (ours).

aiohttp, for what a call costs here: a fifth of httpx's CPU with a small body, half with two pictures in it. Pages and
pictures of strangers are loaded by `tools/fetch.py`, which checks every address.
"""

from __future__ import annotations

import asyncio
import atexit
import os
from contextlib import suppress
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx

from genevolve.errors import SettingsError

IDLE = 30.0
"""Seconds a connection is kept that nobody uses."""
NoConnection = aiohttp.ClientConnectorError
"""Nothing was sent: the service cannot have counted the call."""
Broken = (aiohttp.ClientError, OSError)
_sessions: dict[int, tuple[asyncio.AbstractEventLoop, aiohttp.ClientSession]] = {}
"""By process: a forked child must neither use nor close what its parent has open."""


def session() -> aiohttp.ClientSession:
    """Return this process's session, for coroutines on its services loop."""
    running = asyncio.get_running_loop()
    known = _sessions.get(os.getpid())
    if known is None:
        atexit.register(_close)
    if known is None or known[0] is not running or known[1].closed:
        tls = httpx.create_ssl_context()  # with httpx's certificates: every part of a command trusts the same
        wires = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE, ssl=tls)  # how many at once: each client's own
        none = aiohttp.ClientTimeout(total=None)  # each call has its own
        opened = aiohttp.ClientSession(connector=wires, timeout=none, cookie_jar=aiohttp.DummyCookieJar())
        known = _sessions[os.getpid()] = (running, opened)
    return known[1]


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for an address, none for this machine's own.

    Raises SettingsError for one that is not spoken to by HTTP.
    """
    at = httpx.URL(url)
    if at.host in ("localhost", "127.0.0.1", "::1") or proxy_bypass(at.host):
        return None
    known = getproxies()
    proxy = known.get(at.scheme) or known.get("all")
    if proxy and not proxy.lower().startswith(("http://", "https://")):
        raise SettingsError(f"The proxy for {at.host} in the environment is none that http:// or https:// leads to.")
    return proxy or None


def _close() -> None:
    """Close the session at the process's end; the loop's thread still runs then."""
    loop, opened = _sessions.pop(os.getpid(), (None, None))
    if loop is not None and opened is not None and loop.is_running():
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(opened.close(), loop).result(5)
