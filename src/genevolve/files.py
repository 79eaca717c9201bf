"""Files are there whole or not at all, also after a kill or on a full disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path


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
