"""Writing whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from genevolve.files import write_whole


def test_text_bytes_and_pieces_are_written_and_folders_made(tmp_path: Path) -> None:
    assert write_whole(tmp_path / "a" / "b.txt", "é\n").read_bytes() == b"\xc3\xa9\n"
    assert write_whole(tmp_path / "b.png", b"\x89P").read_bytes() == b"\x89P"
    assert write_whole(tmp_path / "c.txt", (f"{i}\n" for i in range(3))).read_text() == "0\n1\n2\n"


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def pieces() -> Iterator[str]:
        yield "half"
        raise OSError(28, "No space left on device")

    path = write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="No space"):
        write_whole(path, pieces())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]
