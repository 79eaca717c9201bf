"""What the pictures show, looked at as pixels."""

import io
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from genevolve.dataset.wording import gold_prompt
from genevolve.render.base import RenderJob
from genevolve.render.compositor import Compositor, plan
from genevolve.render.contact import contact_sheet
from genevolve.render.layout import cells, subject_boxes
from genevolve.render.style import (
    BANNER,
    BANNER_RGB,
    CANVAS,
    GROUND_TOP,
    LIGHTS,
    MARGIN,
    MATERIALS,
    PLATES,
    half,
    subject_zone,
)
from genevolve.scene import Colour, Light, Material, Position, Scene, Subject

FLAG = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><rect x="5" y="17" width="62" height="38" fill="#1e50a0"/>
<rect x="5" y="30" width="62" height="12" fill="#fff"/></svg>"""
CAT = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><defs><linearGradient id="g"><stop offset="0" stop-color="#333"/>
</linearGradient></defs><circle cx="36" cy="36" r="26" fill="url(#g)"/><path d="M20 20 14 6l16 8z" fill="#111"/></svg>"""


def pixels(scene: Scene, *files: bytes, seed: int = 0) -> np.ndarray:
    return draw(gold_prompt(scene), *files, seed=seed)


def draw(prompt: str, *files: bytes, seed: int = 0) -> np.ndarray:
    (png,) = Compositor().render([RenderJob("r", prompt, files, seed)])
    assert png is not None
    image = Image.open(io.BytesIO(png))
    assert image.size == (CANVAS, CANVAS)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 6) -> np.ndarray:
    return (np.abs(picture - np.array(colour)).max(axis=-1)) <= tolerance


def blobs(mask: np.ndarray, least: int = 150) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of the connected parts of a mask."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    out = []
    while left:
        todo, part = [left.pop()], []
        while todo:
            y, x = todo.pop()
            part.append((y, x))
            for n in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if n in left:
                    left.remove(n)
                    todo.append(n)
        if len(part) >= least:
            ys, xs = [p[0] for p in part], [p[1] for p in part]
            out.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return out


@pytest.mark.parametrize("colour", get_args(Colour))
@pytest.mark.parametrize(("count", "position"), [(1, "left"), (2, "right"), (3, "upper"), (4, "lower")])
def test_plates_have_their_colour_number_and_half(colour: Colour, count: int, position: Position):
    light: Light = "bright daylight"
    scene = Scene(
        subjects=(Subject(entity="x", count=count, position=position, colour=colour),), light=light, material="marble"
    )
    plates = blobs(near(pixels(scene, CAT), PLATES[colour]), least=300)
    assert len(plates) == count
    zone = half(position, subject_zone(None))
    for left, top, right, bottom in plates:
        assert zone[0] <= left
        assert zone[1] <= top
        assert right <= zone[2]
        assert bottom <= zone[3]


@pytest.mark.parametrize("light", get_args(Light))
@pytest.mark.parametrize("material", get_args(Material))
def test_light_and_material_show(light: Light, material: Material):
    scene = Scene(subjects=(Subject(entity="x", count=1, position="upper"),), light=light, material=material)
    picture = pixels(scene, CAT, seed=2)
    lights = {
        name: np.abs(picture[4:12, 100:220].mean(axis=(0, 1)) - style.top).sum() for name, style in LIGHTS.items()
    }
    assert min(lights, key=lambda n: lights[n]) == light
    strip = np.median(picture[GROUND_TOP + 30 : CANVAS - 20, 60:260].reshape(-1, 3), axis=0)
    grounds = {name: np.abs(strip - main).sum() for name, (main, _) in MATERIALS.items()}
    assert min(grounds, key=lambda n: grounds[n]) == material


@pytest.mark.parametrize("place", ["top", "bottom"])
def test_the_banner_has_its_place_and_nothing_else_in_it(place):
    scene = Scene(subjects=(Subject(entity="x", count=4, colour="red"),), text="OPEN DAY", text_place=place)
    picture = pixels(scene, CAT)
    left, top, right, bottom = (round(v) for v in BANNER[place])
    inside = picture[top + 4 : bottom - 4, left + 8 : right - 8]
    assert near(inside, BANNER_RGB, 2).mean() > 0.6
    assert inside.reshape(-1, 3).std(axis=0).min() > 20  # there is lettering
    assert (inside.max(axis=-1) - inside.min(axis=-1)).max() < 24  # ink on paper only: no plate reaches in


def test_patterns_differ_from_each_other_and_from_none():
    pictures = []
    for pattern in ("stripes", "dots", "rays", "confetti"):
        scene = Scene(subjects=(Subject(entity="x", count=1, position="lower"),), light="pink dawn", pattern=pattern)
        pictures.append(pixels(scene, CAT)[:140])
    for i, a in enumerate(pictures):
        assert a[:, 60:260].std(axis=1).mean() > 3
        for b in pictures[i + 1 :]:
            assert np.abs(a - b).mean() > 5


def test_same_bytes_again_after_the_caches_are_cold():
    script = (
        "import hashlib;from genevolve.render.base import RenderJob;from genevolve.render.compositor import Compositor;"
        f"print(hashlib.sha256(Compositor().render([RenderJob('r', 'The first reference image.', ({FLAG!r},), 7)])[0]).hexdigest())"
    )
    import hashlib
    import os
    import subprocess
    import sys

    here = Compositor().render([RenderJob("r", "The first reference image.", (FLAG,), 7)])[0]
    env = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert hashlib.sha256(here).hexdigest() == there


def test_leaving_whole_out_alters_the_subject_under_most_seeds():
    changed = 0
    for seed in range(12):
        job = RenderJob("r", "The first reference image, exactly one copy.", (FLAG,), seed)
        changed += plan(job).subjects[0].alteration != "none"
    assert 4 <= changed <= 12


@pytest.mark.parametrize("variant", range(4))
@pytest.mark.parametrize("how", ["recolour", "crop"])
def test_an_altered_subject_looks_clearly_different(how, variant):
    from genevolve.render.sprite import sprite

    for file in (FLAG, CAT):
        plain = np.asarray(sprite(file, "none", 0, "red", 120, 120)[0]).astype(int)
        other = np.asarray(sprite(file, how, variant, "red", 120, 120)[0]).astype(int)
        assert (np.abs(plain - other).max(axis=-1) > 40).mean() > 0.06


def test_missing_references_are_grey_placeholders():
    scene = Scene(
        subjects=(Subject(entity="a", count=1, position="left"), Subject(entity="b", count=1, position="right"))
    )
    alone = pixels(scene, CAT)
    assert near(alone[:, 160:], (185, 188, 196), 4).sum() > 1500
    assert near(alone[:, :160], (185, 188, 196), 4).sum() < 300
    assert near(draw("Nothing at all."), (185, 188, 196), 4).sum() > 300


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"not a picture",
        b"\x89PNG\r\n\x1a\nbroken",
        b"<svg",
        b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 0 0'><rect/></svg>",
        b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 72 72'></svg>",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='wide'><rect width='9' height='9'/></svg>",
        b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 72 72'>" + b"<g>" * 1500 + b"</g>" * 1500 + b"</svg>",
        b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 72 72'>"
        + b"<g>" * 400
        + b"<rect/>"
        + b"</g>" * 400
        + b"</svg>",
        b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 72 72'><path d='M1e300 nan L'/><rect width='-9' x='inf'/></svg>",
        b"<!DOCTYPE svg [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><svg xmlns='http://www.w3.org/2000/svg'><text>&b;</text></svg>",
        b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 72 72'><image href='file:///etc/passwd' width='72' height='72'/>"
        b"<script>1</script></svg>",
    ],
)
def test_a_bad_file_becomes_a_placeholder(file):
    scene = Scene(subjects=(Subject(entity="a", count=1, position="left"),), light="warm sunset")
    assert near(pixels(scene, file), (185, 188, 196), 4).sum() > 1500


def test_a_raster_reference_is_drawn_too():
    out = io.BytesIO()
    Image.new("RGB", (300, 200), (10, 200, 90)).save(out, "PNG")
    scene = Scene(subjects=(Subject(entity="a", count=2, position="upper", colour="purple"),))
    assert len(blobs(near(pixels(scene, out.getvalue()), (10, 200, 90)))) == 2


def test_boxes_never_overlap_and_keep_to_their_halves():
    positions = get_args(Position)
    for text in (None, "top", "bottom"):
        zone = subject_zone(text)
        for a in (None, *positions):
            for b in (None, *positions):
                first, second = subject_boxes([a, b], zone)
                assert first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]
                for position, box in ((a, first), (b, second)):
                    if position:
                        own = half(position, zone)
                        assert own[0] <= box[0]
                        assert own[1] <= box[1]
                        assert box[2] <= own[2]
                        assert box[3] <= own[3]


@pytest.mark.parametrize("disc", [True, False])
def test_cells_stay_in_their_box_apart_and_large_enough(disc):
    zone = subject_zone("top")
    for box in (zone, *(half(p, zone) for p in get_args(Position))):
        for count in (1, 2, 3, 4):
            for aspect in ((1.0, 1.0),) if disc else ((1.0, 1.0), (1.0, 0.62), (0.4, 1.0)):
                placed = cells(count, aspect, disc, box)
                assert len(placed) == count
                for i, (x, y, w, h) in enumerate(placed):
                    assert box[0] - 1 <= x
                    assert box[1] - 1 <= y
                    assert x + w <= box[2]
                    assert y + h <= box[3]
                    assert max(w, h) >= 60
                    assert x >= MARGIN - 1
                    for x2, y2, w2, h2 in placed[i + 1 :]:
                        apart = x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
                        distance = np.hypot(x + w / 2 - x2 - w2 / 2, y + h / 2 - y2 - h2 / 2)
                        assert apart or (disc and distance >= w + 4)


def test_a_contact_sheet_holds_all_pairs():
    png = Compositor().render([RenderJob("r", "The first reference image.", (CAT,), 1)])[0]
    assert png is not None
    sheet = Image.open(io.BytesIO(contact_sheet([("a caption that is far too long to fit " * 4, png, None)] * 6)))
    assert sheet.width > 4 * 320
    assert sheet.height > 2 * 160


def test_lettering_with_markup_is_drawn_as_letters():
    prompt = "The exact text '</text>&<X>' in large bold letters on a plain banner at the top."
    assert near(draw(prompt, CAT)[20:60, 20:300], BANNER_RGB, 2).mean() > 0.4
