"""One HTTP exchange with everything bounded: addresses given, total seconds, bytes of the body (ours).

On httpcore, because what a stranger's server may do is decided below the level of httpx: which address is dialled, and
that the time for *all* reads together is limited, a drip of one byte a second included. A connection serves one exchange:
no pool to share between threads and forks, and a handshake is short beside a search.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpcore
import httpx

STEP_SECONDS = 10.0
"""Longest wait for a connection, or for the next bytes of an answer."""


class WireError(Exception):
    """An exchange failed. `reason` is one of a few fixed phrases, without anything the other side wrote."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host as the system resolves it; raise OSError when it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def dial(address: str, port: int, seconds: float) -> httpcore.NetworkStream:
    """Connect to an address (not a name) and port."""
    return httpcore.SyncBackend().connect_tcp(address, port, timeout=seconds)


@cache
def tls() -> ssl.SSLContext:
    """Return the verifying TLS context (certifi's roots, or SSL_CERT_FILE), made once in a process: it takes 20 ms."""
    return httpx.create_ssl_context()


@dataclass(frozen=True)
class Net:
    """How the network is reached; tests put their own parts here."""

    look_up: Callable[[str, int], list[str]] = look_up
    dial: Callable[[str, int, float], httpcore.NetworkStream] = dial
    clock: Callable[[], float] = time.monotonic
    """Seconds; deadlines are times of this clock."""
    tls: Callable[[], ssl.SSLContext] = tls
    resolvers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "resolve"))
    """`getaddrinfo` knows no time limit, so it runs where it can be left behind."""

    def addresses(self, url: httpx.URL, deadline: float) -> list[str]:
        """Return the addresses of a URL's host; raise WireError ('no address' or 'time')."""
        try:
            found = self.resolvers.submit(self.look_up, url.raw_host.decode("ascii").strip("[]"), port_of(url))
            return found.result(max(0.0, deadline - self.clock()))
        except LateError:
            raise WireError("time") from None
        except (OSError, UnicodeError):
            raise WireError("no address") from None


def port_of(url: httpx.URL) -> int:
    return {"http": 80, "https": 443}[url.scheme] if url.port is None else url.port


@dataclass(frozen=True)
class Answer:
    """What came back; header names are lower case, of equal ones the first counts. The body is not decoded."""

    status: int
    headers: dict[str, str]
    body: bytes


def exchange(
    method: str,
    url: httpx.URL,
    addresses: Sequence[str],
    net: Net,
    *,
    headers: Sequence[tuple[str, str]] = (),
    content: bytes = b"",
    most: int,
    deadline: float,
    read: frozenset[int] = frozenset({200}),
) -> Answer:
    """Send one request to one of `addresses` and return the answer, its body only for the statuses in `read`.

    TLS verifies the name in `url`, whatever the address. Follows nothing, decodes nothing, reads no proxy from the
    environment. Raises WireError: 'time', 'connection', 'certificate', 'bytes' (more than `most`), 'HTTP'.
    """
    sent = [("Host", url.netloc.decode("ascii")), *headers, ("Accept-Encoding", "identity"), ("Connection", "close")]
    if content:
        sent.append(("Content-Length", str(len(content))))
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    waits = dict.fromkeys(("connect", "read", "write", "pool"), STEP_SECONDS)
    pool = httpcore.ConnectionPool(ssl_context=net.tls(), network_backend=_Backend(addresses, net, deadline))
    try:
        with pool, pool.stream(method, target, headers=sent, content=content, extensions={"timeout": waits}) as got:
            found: dict[str, str] = {}
            for name, value in got.headers:
                found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
            return Answer(got.status, found, _body(got, found, most) if got.status in read else b"")
    except httpcore.TimeoutException:
        raise WireError("time") from None
    except (httpcore.NetworkError, OSError) as e:
        certificate = isinstance(e, ssl.SSLError) or any(isinstance(a, ssl.SSLError) for a in e.args)
        raise WireError("certificate" if certificate else "connection") from None
    except (httpcore.ProtocolError, httpcore.UnsupportedProtocol):
        raise WireError("HTTP") from None


def _body(got: httpcore.Response, headers: dict[str, str], most: int) -> bytes:
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > most:  # h11 has refused lengths of more than 20 digits
        raise WireError("bytes")
    body = bytearray()
    for chunk in got.iter_stream():
        body += chunk
        if len(body) > most:
            raise WireError("bytes")
    return bytes(body)


class _Backend(httpcore.NetworkBackend):
    """Dials the given addresses, whatever the name; all it opens shares one deadline."""

    def __init__(self, addresses: Sequence[str], net: Net, deadline: float) -> None:
        self._addresses, self._net, self._deadline = addresses, net, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failed: Exception = httpcore.ConnectError()
        for address in self._addresses:
            try:
                stream = self._net.dial(address, port, _left(self._net, self._deadline, timeout))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                failed = e
            else:
                return _Stream(stream, self._net, self._deadline)
        raise failed


class _Stream(httpcore.NetworkStream):
    """A stream on which every wait ends at the deadline."""

    def __init__(self, inner: httpcore.NetworkStream, net: Net, deadline: float) -> None:
        self._inner, self._net, self._deadline = inner, net, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._net, self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._net, self._deadline, timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(self._net, self._deadline, timeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._net, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(net: Net, deadline: float, timeout: float | None) -> float:
    left = deadline - net.clock()
    if left <= 0:
        raise httpcore.ReadTimeout("the time for the whole exchange is over")
    return min(left, STEP_SECONDS if timeout is None else timeout)
