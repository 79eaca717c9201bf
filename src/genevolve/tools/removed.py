"""A tool that was taken away: in its place stands one that refuses every call (an arm of the ablation)."""

from __future__ import annotations

from typing import NoReturn

from genevolve.tools.base import ToolError


class Removed:
    """Stands where any of the three tools would."""

    def search(self, query: str, top_k: int = 5) -> NoReturn:
        raise ToolError("there is no such tool here.")

    def read(self, skill_name: str) -> NoReturn:
        raise ToolError("there is no such tool here.")
