"""Picture files of a stranger's folder: a path that stays inside, a plain file, a picture that decodes whole (ours).

Bytes are read once, and those very bytes are decoded and then copied: nothing can change in between. They are copied as they
are, because a judge compares with the ground truth, and a redrawn one would be another.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from genevolve.files import write_whole
from genevolve.tools.picture import FORMATS

ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif"}
_PART = re.compile(r"[^\x00-\x1f\x7f\\/:*?\"<>|]{1,200}")


class PictureError(ValueError):
    """A picture is not taken; the message is one of a few phrases, `detail` says more."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Bounds:
    """What one picture may be."""

    bytes: int = 40_000_000
    pixels: int = 40_000_000
    """Width times height as its header says, before anything is decoded."""
    short_side: int = 8
    long_to_short: int = 100


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded whole."""

    data: bytes
    format: str
    """JPEG, PNG, WEBP or GIF: what the bytes are, whatever the name says"""

    @property
    def ending(self) -> str:
        return ENDINGS[self.format]


def clean_path(text: object) -> str:
    """Return a relative path in its one normal form; raise PictureError for an absolute one, `..`, and odd characters."""
    if not isinstance(text, str) or not text.strip():
        raise PictureError("no path")
    path = PurePosixPath(text.strip())
    if path.is_absolute() or re.match(r"[A-Za-z]:|\\\\|~", text.strip()):
        raise PictureError("an absolute path", text)
    if ".." in path.parts:
        raise PictureError("a path that leads out of the folder", text)
    if not path.parts or len(str(path)) > 500 or not all(_PART.fullmatch(p) for p in path.parts):
        raise PictureError("no usable path", text[:100])
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise PictureError("no usable path") from None
    return str(path)


def load_picture(roots: Sequence[Path], path: str, bounds: Bounds | None = None) -> Picture:
    """Return the picture at a relative path below the first root that has it; raise PictureError."""
    bounds = bounds or Bounds()
    clean = clean_path(path)
    for root in roots:
        data = _read(root, clean, bounds)
        if data is not None:
            return decode(data, bounds)
    raise PictureError("no such file", clean)


def _read(root: Path, clean: str, bounds: Bounds) -> bytes | None:
    """Return a file's bytes, None when there is none; raise PictureError for a link, a device, or too many bytes.

    Every folder on the way is opened by itself and no link is followed, so that not even a race leads out of `root`.
    """
    *folders, name = PurePosixPath(clean).parts
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    held: list[int] = []
    try:
        held.append(os.open(root, flags | os.O_DIRECTORY))
        for folder in folders:
            held.append(os.open(folder, flags | os.O_DIRECTORY, dir_fd=held[-1]))
        file = os.open(name, flags | os.O_NONBLOCK, dir_fd=held[-1])  # a FIFO must not hold us up
    except FileNotFoundError:
        return None
    except OSError as e:
        link = any(p.is_symlink() for p in (root / clean, *(root / clean).parents))
        raise PictureError("a link" if link else "cannot be read", clean if link else str(e.strerror)) from None
    finally:
        for handle in held:
            os.close(handle)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise PictureError("not a plain file", clean)
    with os.fdopen(file, "rb") as stream:
        data = stream.read(bounds.bytes + 1)
    if len(data) > bounds.bytes:
        raise PictureError("too many bytes", clean)
    return data


def decode(data: bytes, bounds: Bounds | None = None) -> Picture:
    """Return the picture of some bytes, its first frame decoded to the last row; raise PictureError."""
    bounds = bounds or Bounds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is ours, and lower
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise PictureError("too many pixels") from None
        except Exception:  # a decoder fed with hostile bytes may raise anything
            raise PictureError("not a JPEG, PNG, WEBP or GIF picture") from None
        with image:
            width, height = image.size
            if width * height > bounds.pixels:
                raise PictureError("too many pixels", f"{width} x {height}")
            low, high = sorted((width, height))
            if low < bounds.short_side or high > bounds.long_to_short * low:
                raise PictureError("too thin or too small", f"{width} x {height}")
            found = str(image.format)
            try:
                image.load()
            except Exception:
                raise PictureError("a broken picture") from None
    return Picture(data, found)


def embedded(value: object) -> tuple[bytes | None, object]:
    """Return (bytes, path) of a picture column: a path, or what `datasets` writes to Parquet: {bytes, path}."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value), None
    if isinstance(value, Mapping):
        data = value.get("bytes")
        return (bytes(data) if isinstance(data, (bytes, bytearray)) else None), value.get("path")
    return None, value


def take(roots: Sequence[Path], value: object) -> Picture:
    """Return the picture of a column, in whichever form it is there; raise PictureError."""
    data, path = embedded(value)
    return load_picture(roots, clean_path(path)) if data is None else decode(data)


def take_picture(roots: Sequence[Path], value: object, target: Path) -> PictureError | None:
    """Copy a column's picture to `target`; return why not."""
    try:
        write_whole(target, take(roots, value).data)
    except PictureError as e:
        return e
    return None


def take_truth(roots: Sequence[Path], value: object, folder: Path, name: str) -> str | PictureError:
    """Copy a column's picture to folder/NAME with its own ending, and return the ending; or why not."""
    try:
        picture = take(roots, value)
    except PictureError as e:
        return e
    write_whole(folder / f"{name}{picture.ending}", picture.data)
    return picture.ending
