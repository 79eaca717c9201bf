"""Pictures from URLs that strangers chose (ours): the one place of the package that follows an address from the web.

Every hop is checked anew: scheme, port, and all addresses its name has now; then exactly those addresses are dialled, so a
name that changes its mind between check and connection (DNS rebinding) changes nothing. No proxy, no cookie, no referrer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx

from genevolve.tools.addresses import is_public
from genevolve.tools.picture import Refused, Size, redraw
from genevolve.tools.wire import Net, WireError, exchange, port_of

PASSING = frozenset({"time", "connection", "no address", *(f"HTTP {n}" for n in (408, 425, 429, 500, 502, 503, 504))})
"""Reasons that may be gone tomorrow; all others are remembered with the URL."""
LONGEST_URL = 2000
_MOVED = frozenset({301, 302, 303, 307, 308})
_HEADERS = (
    ("User-Agent", "Mozilla/5.0 (compatible; genevolve; reference pictures)"),
    ("Accept", "image/jpeg,image/png,image/webp,image/gif"),
)


@dataclass(frozen=True)
class Limits:
    """What one picture may cost."""

    bytes: int = 15_000_000
    seconds: float = 12.0
    """All of it: names, connections, redirects, body."""
    redirects: int = 5
    ports: frozenset[int] = frozenset({80, 443})
    size: Size = field(default_factory=Size)


class Fetcher:
    """Downloads pictures; safe to use from many threads."""

    def __init__(self, net: Net | None = None, limits: Limits | None = None) -> None:
        self.net = net or Net()
        self.limits = limits or Limits()

    def fetch(self, url: str) -> tuple[bytes, str]:
        """Return (bytes, 'png' or 'jpg') of the picture behind a URL, redrawn; raise Refused."""
        try:
            return redraw(self._download(url), self.limits.size)
        except Refused:
            raise
        except (
            Exception
        ):  # strangers' bytes go through several parsers: what one of them forgot costs a picture, no more
            raise Refused("unexpected") from None

    def _download(self, url: str) -> bytes:
        """Return the bytes behind a URL; raise Refused."""
        deadline = self.net.clock() + self.limits.seconds
        here = _parse(url)
        try:
            for _ in range(self.limits.redirects + 1):
                addresses = self._checked(here, deadline)
                answer = exchange(
                    "GET", here, addresses, self.net, headers=_HEADERS, most=self.limits.bytes, deadline=deadline
                )
                if answer.status in _MOVED:
                    here = _parse(answer.headers.get("location", ""), here)
                    continue
                if answer.status != 200:
                    raise Refused(f"HTTP {answer.status}")
                if answer.headers.get("content-encoding", "identity").strip().lower() != "identity":
                    raise Refused(
                        "encoding"
                    )  # we asked for none; unpacking it is how a small answer becomes a large one
                return answer.body
        except WireError as e:
            raise Refused(e.reason) from None
        raise Refused("redirects")

    def _checked(self, url: httpx.URL, deadline: float) -> list[str]:
        """Return the addresses of a hop, all of them public; raise Refused or WireError."""
        if url.scheme not in ("http", "https"):
            raise Refused("scheme")
        if url.userinfo:
            raise Refused("credentials")
        if port_of(url) not in self.limits.ports:
            raise Refused("port")
        if not url.host:
            raise Refused("URL")
        addresses = self.net.addresses(url, deadline)
        if not addresses:
            raise Refused("no address")
        if not all(map(is_public, addresses)):
            raise Refused("private address")
        return addresses


def _parse(text: str, base: httpx.URL | None = None) -> httpx.URL:
    """Return a URL without its fragment, relative ones against `base`; raise Refused."""
    if not text or len(text) > LONGEST_URL:
        raise Refused("URL")
    try:
        url = base.join(text) if base is not None else httpx.URL(text)
        _ = url.host  # decodes an international name, and raises if it is none
        return url.copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise Refused("URL") from None
