"""What a stranger calls a picture is decoded for real, bounded, and written anew."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genevolve.tools.base import ToolError
from genevolve.tools.picture import Refused, Size, keep, kept, redraw
from tests.tools.web import picture

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><rect width="99" height="99"/></svg>'


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "jpg"), ("GIF", "png")])
def test_the_four_formats_are_written_anew(kind: str, suffix: str) -> None:
    data, found = redraw(picture(kind, (200, 100)))
    image = opened(data)
    assert (found, image.size, image.mode) == (suffix, (200, 100), "RGB")
    assert all(abs(a - b) < 6 for a, b in zip(image.getpixel((50, 50)), (255, 0, 0), strict=True))
    assert redraw(picture(kind, (200, 100))) == (data, found), "the same input gives the same bytes"


def test_the_long_side_is_bounded() -> None:
    assert opened(redraw(picture("JPEG", (4000, 1000)))[0]).size == (1024, 256)
    assert opened(redraw(picture("PNG", (300, 3000)), Size(long_side=600))[0]).size == (60, 600)


def test_transparency_stays_and_an_opaque_alpha_goes() -> None:
    clear = opened(redraw(picture("WEBP", mode="RGBA", colour=(255, 0, 0, 0)))[0])
    assert (clear.format, clear.mode, clear.getpixel((5, 5))[3]) == ("PNG", "RGBA", 0)
    assert opened(redraw(picture("PNG", mode="RGBA", colour=(255, 0, 0, 255)))[0]).mode == "RGB"


@pytest.mark.parametrize(("mode", "colour"), [("CMYK", (0, 255, 255, 0)), ("L", 128), ("1", 1)])
def test_other_modes_become_rgb(mode: str, colour: object) -> None:
    assert opened(redraw(picture("JPEG" if mode == "CMYK" else "PNG", mode=mode, colour=colour))[0]).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    image = opened(redraw(picture("PNG", mode="I;16", colour=0x8000))[0])
    assert image.getpixel((3, 3)) == (128, 128, 128)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    image = opened(redraw(out.getvalue())[0])
    assert image.getpixel((9, 9)) == (255, 0, 0)
    assert getattr(image, "n_frames", 1) == 1


def test_the_picture_is_turned_upright_and_says_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    exif[0x010E] = "taken at home"
    data, _ = redraw(picture("JPEG", (200, 100), exif=exif, comment=b"a comment"))
    image = opened(data)
    assert image.size == (100, 200)
    assert not image.getexif()
    assert b"home" not in data
    assert b"a comment" not in data
    text = PngInfo()
    text.add_text("Author", "somebody", zip=True)
    clean = opened(redraw(picture("PNG", pnginfo=text, icc_profile=b"x" * 200))[0])
    assert clean.info == {}


def _png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def _webp_canvas(width: int, height: int) -> bytes:
    frames = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    data = bytearray(out.getvalue())
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_png(7000, 7000, bytes(7000 * 876)), "pixels"),
        (_png(60000, 60000, b""), "pixels"),
        (struct.pack("<6sHH", b"GIF89a", 65535, 65535) + b"\0\0\0;", "not a picture"),
        (picture("GIF")[:6] + struct.pack("<HH", 65535, 65535) + picture("GIF")[10:], "pixels"),
        (_webp_canvas(16384, 16384), "pixels"),
        (picture("JPEG", (2000, 2000), colour="white")[:-3000], "broken picture"),
        (_png(64, 64, b"short"), "broken picture"),
        (b"<html><body>404</body></html>", "not a picture"),
        (SVG, "not a picture"),
        (b"", "not a picture"),
        (picture("TIFF"), "not a picture"),
        (picture("BMP"), "not a picture"),
        (picture("ICO", (64, 64)), "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (picture("PNG", (1, 1)), "too small"),
        (picture("PNG", (9000, 40)), "too small"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_no_picture_is_refused_with_one_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Refused) as e:
        redraw(data)
    assert e.value.reason == reason


def test_a_name_is_the_hash_of_what_was_written(tmp_path: Path) -> None:
    data, suffix = redraw(picture())
    name = keep(data, suffix, tmp_path / "images")
    assert name == f"{hashlib.sha256(data).hexdigest()}.png"
    assert keep(data, suffix, tmp_path / "images") == name
    assert [p.name for p in (tmp_path / "images").iterdir()] == [name]
    assert kept(name, tmp_path / "images") == data
    with pytest.raises(ToolError, match="search for it again"):
        kept(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "x.png", "a" * 64 + ".svg", "a" * 64 + ".png\n", ""]
)
def test_a_name_from_a_record_is_checked(name: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no name of a downloaded picture"):
        kept(name, tmp_path)
