"""What `genevolve doctor` says of one thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    said: str
    blocks: str = ""
    """what does not work without it, and what to do"""

    def line(self) -> str:
        tail = "" if self.ok else f"; blocks {self.blocks}"
        return f"{'ok     ' if self.ok else 'MISSING'}  {self.what:<16} {self.said}{tail}"
