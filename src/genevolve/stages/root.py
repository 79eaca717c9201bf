"""Stage `root`: the champion that a new campaign begins with, and what earlier nights left for later ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from genevolve.settings import Settings


def run(settings: Settings, *, champion: Path, out: Path) -> dict[str, Any]:
    """Copy what the campaign's start put aside: policy/, memory.jsonl, history.jsonl, fresh.jsonl."""
    shutil.copytree(champion, out, dirs_exist_ok=True)
    lines = {p.stem: sum(1 for line in p.open("rb") if line.strip()) for p in sorted(champion.glob("*.jsonl"))}
    return {"carried": lines}
