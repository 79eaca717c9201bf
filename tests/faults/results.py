"""What a cycle leaves behind, so that two of them can be compared byte by byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

TIMES = ("seconds", "peak_memory_mb")


def digests(folder: Path) -> dict[str, str]:
    """Return sha256 by path of all that a cycle leaves below build/, data/ and reports/, and of ledger and lock file.

    Left out is what holds times and paths: notes (names with a dot in front), and the seconds and memory in latest.json.
    """
    found: dict[str, str] = {}
    files = [p for top in ("build", "data", "reports") for p in (folder / top).rglob("*")]
    files += [folder / name for name in ("cycles.yaml", "dvc.lock", "data.dvc")]
    for path in sorted(p for p in files if p.is_file() and not p.name.startswith(".")):
        data = path.read_bytes()
        if path.name == "latest.json":
            data = json.dumps({k: v for k, v in json.loads(data).items() if k not in TIMES}).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found
