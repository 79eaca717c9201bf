"""A contact sheet for human eyes: ground truth beside render.

`python -m genevolve.render.contact OUT.png FOLDER_OF_SVG_FILES` draws 24 made-up scenes.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from genevolve.render.scenery import FONT

PAIRS_A_ROW = 4
EDGE = 10
CAPTION = 26


def contact_sheet(pairs: Sequence[tuple[str, bytes, bytes | None]], scale: float = 0.5) -> bytes:
    """Return one PNG of (caption, ground truth, render) rows, four pairs a row; a missing render is a grey field."""
    from PIL import Image, ImageDraw, ImageFont

    side = round(320 * scale)
    wide, high = 2 * side + 4, side + CAPTION
    rows = -(-len(pairs) // PAIRS_A_ROW)
    columns = min(PAIRS_A_ROW, max(1, len(pairs)))
    sheet = Image.new("RGB", (columns * (wide + EDGE) + EDGE, rows * (high + EDGE) + EDGE), (250, 248, 243))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(str(FONT), 11)
    for i, (caption, *pictures) in enumerate(pairs):
        x, y = EDGE + (i % PAIRS_A_ROW) * (wide + EDGE), EDGE + (i // PAIRS_A_ROW) * (high + EDGE)
        for j, png in enumerate(pictures):
            if png is None:
                picture = Image.new("RGB", (side, side), (205, 205, 210))
            else:
                picture = Image.open(io.BytesIO(png)).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (x + j * (side + 4), y))
        while caption and font.getlength(caption) > wide:
            caption = caption[:-2].rstrip(" …") + "…"
        pen.text((x, y + side + 5), caption, fill=(60, 58, 66), font=font)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _samples(folder: Path) -> list[tuple[str, bytes, bytes | None]]:
    """Draw 24 made-up scenes from a folder of SVG files: gold program left, a loosely worded one right."""
    import random
    from typing import get_args

    from genevolve.dataset.wording import gold_prompt
    from genevolve.render.base import RenderJob
    from genevolve.render.compositor import Compositor
    from genevolve.scene import Colour, Light, Material, Pattern, Position, Scene, Subject, TextPlace

    files = sorted(p for p in folder.glob("*.svg") if len(p.stem) in (5, 11))
    dice = random.Random(5)
    titles = ("OPEN DAY", "WINTER FAIR", "GRAND OPENING", "HELLO", "SUMMER MARKET", "LOST AND FOUND", "NIGHT RUN")
    jobs: list[RenderJob] = []
    for i in range(24):
        two = dice.random() < 0.45
        places = dice.choice((("left", "right"), ("upper", "lower"), ("right", "left"), (None, None)))
        subjects = tuple(
            Subject(
                entity=f"sample:{j}",
                count=dice.choice((None, 1, 2, 3, 4)),
                position=places[j] if two else dice.choice((None, None, *get_args(Position))),
                colour=dice.choice((None, *get_args(Colour))),
            )
            for j in range(1 + two)
        )
        scene = Scene(
            subjects=subjects,
            text=dice.choice((None, *titles)),
            text_place=dice.choice(get_args(TextPlace)),
            light=dice.choice(get_args(Light)),
            material=dice.choice((None, *get_args(Material))),
            pattern=dice.choice((None, *get_args(Pattern))),
        )
        references = tuple(dice.choice(files).read_bytes() for _ in subjects)
        gold = gold_prompt(scene)
        loose = loosen(gold)
        jobs += [RenderJob(f"sample-{i}", gold, references, 1), RenderJob(f"sample-{i}", loose, references, 1)]
    start = time.process_time()
    pictures = Compositor().render(jobs)
    print(
        f"{len(jobs)} pictures, {1000 * (time.process_time() - start) / len(jobs):.1f} CPU-ms each, caches cold at the start"
    )
    out = []
    for i in range(24):
        gt = pictures[2 * i]
        assert gt is not None
        out.append(
            (
                jobs[2 * i].gen_prompt.replace("The first reference image, shown whole and unaltered, ", ""),
                gt,
                pictures[2 * i + 1],
            )
        )
    return out


def loosen(gold: str) -> str:
    """Return a gold program in loose wording: the same wishes, none of the orders."""
    for exact, loose in (
        (", shown whole and unaltered", ""),
        ("exactly one copy", "one of it"),
        ("exactly ", ""),
        (" separate copies", " of them"),
        ("placed entirely in the left half", "on the left"),
        ("placed entirely in the right half", "on the right"),
        ("placed entirely in the upper half", "towards the top"),
        ("placed entirely in the lower half", "towards the bottom"),
        ("each on its own solid", "with"),
        ("The exact text", "The words"),
        (" in large bold letters on a plain banner", ""),
        (" light fills the whole background", " mood"),
        (" ground with soft contact shadows below", " feel"),
        ("A backdrop pattern of even", "Maybe"),
    ):
        gold = gold.replace(exact, loose)
    return gold


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m genevolve.render.contact OUT.png FOLDER_OF_SVG_FILES")
    Path(sys.argv[1]).write_bytes(contact_sheet(_samples(Path(sys.argv[2]))))
