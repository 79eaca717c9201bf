"""Files are there whole or not at all, also after a kill or on a full disk; and what large ones hold is read once."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any


def write_whole(path: str | Path, data: str | bytes | Iterable[str]) -> Path:
    """Write text (UTF-8, line ends as given) or bytes beside `path`, rename it there, and return the path.

    An iterable of strings is written piece by piece. Folders are made. Raises OSError, or what the iterable raises; then
    `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        if isinstance(data, bytes):
            temporary.write_bytes(data)
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as stream:
                stream.writelines([data] if isinstance(data, str) else data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is no such file, or it holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


class Picture(bytes):
    """A picture file's bytes. What they are called by, their SHA-256, is worked out once however many parts ask for it."""

    @classmethod
    def of(cls, data: bytes) -> Picture:
        return data if isinstance(data, Picture) else cls(data)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self).hexdigest()


DIGESTS = Path(".cache/digests")
"""Where `sha256_of` notes what large files hold."""
LARGE = 64 * 2**20
"""Bytes from which on a file is read once; smaller ones are read anew every time."""
SETTLED = 2.0
"""Seconds a file must have been left alone before its digest is noted."""


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes; that of a large file is noted, so that 16 GB of weights are read once.

    A note is found by the file's real path, inode, size, and the nanoseconds of its mtime and ctime. Whatever writes to
    the file or puts another in its place sets its ctime, which no program can set back; a file that changed within the
    last two seconds, where a clock may be too coarse to tell two writes apart, is not noted. So a note can only be wrong
    where the clock itself was turned back, or on a file system that keeps no ctime: remove `.cache/digests` there.
    """
    real = Path(path).resolve()
    before = real.stat()
    if before.st_size < LARGE:
        return _read(real)
    facts = (str(real), before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    note = DIGESTS / hashlib.sha256(repr(facts).encode()).hexdigest()
    with suppress(OSError, ValueError):
        found = note.read_text(encoding="ascii")
        if len(found) == 64:
            return found
    digest, after = _read(real), real.stat()
    changed = max(after.st_mtime, after.st_ctime)
    same = (after.st_ino, after.st_size, after.st_mtime_ns, after.st_ctime_ns) == facts[1:]
    if same and time.time() - changed > SETTLED:
        with suppress(OSError):  # a folder that cannot be written: the file is read again next time
            write_whole(note, digest)
    return digest


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
