"""Trajectories on disk as they come, one line each: what a killed run had played is not played again (ours)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genevolve.records import RecordError, Trajectory, dump, parse

NAME = "playing.jsonl"


class Journal:
    """An append-only file: a line that says what is played, then a line a record; of two with one id the later counts.

    Lines are handed to the system as they are written, so a kill costs at most the line under way; it is cut off when
    the journal is opened again. For all threads.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Open `path`; what stands there for another `about` is thrown away. Raises OSError."""
        self.path, self.known = path, dict[str, Trajectory]()
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps(dict(about), sort_keys=True).encode() + b"\n"
        whole = self._read(head)
        self._stream = path.open("r+b" if whole else "wb")
        self._stream.truncate(whole)
        self._stream.seek(whole)
        if not whole:
            self._write(head)

    def _read(self, head: bytes) -> int:
        """Read the whole lines of a journal that begins with `head`; return where they end."""
        if not self.path.is_file():
            return 0
        with self.path.open("rb") as stream:
            if stream.readline() != head:
                return 0
            end = stream.tell()
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = parse(line, Trajectory, str(self.path))
                except RecordError:
                    break  # a torn page of a machine that went down: what stands behind it is played again
                self.known[record.id] = record
                end = stream.tell()
        return end

    def add(self, record: Trajectory) -> None:
        """Write a record."""
        line = dump(record).encode() + b"\n"
        with self._lock:
            self.known[record.id] = record
            self._write(line)

    def _write(self, line: bytes) -> None:
        self._stream.write(line)
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()
