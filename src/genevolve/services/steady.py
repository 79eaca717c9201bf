"""Is a service down, or is it one question that it cannot use? (ours)"""

from __future__ import annotations

from genevolve.errors import TryLaterError
from genevolve.services.client import CallError

DOWN = 8
"""Calls in a row that a service leaves unanswered before the command ends: it is down, and records would be lost."""


class Steady:
    """Tells a service that is down from one that cannot use a single question."""

    def __init__(self, what: str) -> None:
        """`what` stops when the service is down, as its sentence says."""
        self.what = what
        self._silent = 0

    def answered(self) -> None:
        self._silent = 0

    def failed(self, error: CallError) -> None:
        """Count a call that failed for good; raise TryLaterError after DOWN that were not answered, one after the other."""
        self._silent = self._silent + 1 if "does not answer" in error.reason else 0
        if self._silent >= DOWN:
            raise TryLaterError(
                f"{self.what} stops: {error.reason}. What was paid for is kept; the same command goes on from here."
            ) from None
