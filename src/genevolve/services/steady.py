"""Is a service down, or is it one question that it cannot use? (ours)"""

from __future__ import annotations

import threading

from genevolve.errors import TryLaterError
from genevolve.services.client import CallError

DOWN = 8
"""Calls in a row that a service leaves unanswered before the command ends: it is down, and records would be lost."""


class Steady:
    """Tells a service that is down from one that cannot use a single question. For all threads of a process."""

    def __init__(self, what: str, down: int = DOWN) -> None:
        """`what` stops when the service is down, as its sentence says: after `down` calls in a row without an answer."""
        self.what, self.down = what, down
        self._silent, self._lock = 0, threading.Lock()

    def answered(self) -> None:
        with self._lock:
            self._silent = 0

    def failed(self, error: CallError) -> None:
        """Count a call that failed for good; raise TryLaterError after `down` that were not answered, one after the other."""
        with self._lock:
            self._silent = self._silent + 1 if "does not answer" in error.reason else 0
            down = self._silent >= self.down
        if down:
            raise TryLaterError(
                f"{self.what} stops: {error.reason}. What was paid for is kept; the same command goes on from here."
            ) from None
