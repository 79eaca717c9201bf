"""What can go wrong while GenEvolve-Data is built or read."""

from __future__ import annotations

from genevolve.errors import GenEvolveError


class DatasetError(GenEvolveError):
    """The dataset cannot be built as asked, or a check on it failed; one sentence for the user."""
