"""How long a call to a service is tried, and what its Retry-After asks for (ours)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Statuses after which the same call may succeed."""


@dataclass(frozen=True)
class Patience:
    """How long a call is tried; seconds."""

    attempts: int = 5
    attempt: float = 20.0
    total: float = 60.0
    """All attempts and the waits between them."""
    first_wait: float = 0.5
    """Doubled with each attempt; the wait is drawn from 0 up to it."""
    longest_wait: float = 30.0
    """Most that a Retry-After is obeyed."""

    def pause(self, attempt: int, asked: float, drawn: float) -> float:
        """Return the seconds to wait after attempt number `attempt` (from 1): what the service asked for at least, and
        `drawn` (0..1) of an exponentially growing wait."""
        return max(asked, drawn * self.first_wait * 2 ** (attempt - 1))


def retry_after(headers: Mapping[str, str], now: float, most: float) -> float:
    """Return the seconds a Retry-After asks for, as a number or a date, at most `most`; 0 without one.

    `headers` has lower-case names; `now` is Unix time.
    """
    text = headers.get("retry-after", "").strip()
    try:
        wait = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else _until(text, now)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(0.0, wait), most)


def _until(date: str, now: float) -> float:
    when = parsedate_to_datetime(date)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now
