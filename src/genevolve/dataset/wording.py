"""The generator-facing English of a program: for each requirement an exact wording and loose ones (ours).

The skills teach the exact wordings; the generator always obeys them and takes loose ones as a hint it may miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from genevolve.scene import NUMBERS, Scene

ORDINALS = ("The first reference image", "The second reference image")

KINDS = ("whole", "count", "position", "colour", "text", "light", "material", "pattern")

_LOOSE = {
    "count": ("{0} of them", "some {0}"),
    "position": ("on the {0} side", "towards the {0} side"),
    "colour": ("with {0}", "with some {0}"),
    "text": ("The words '{0}' at the {1}.", "Some lettering '{0}' at the {1}."),
    "light": ("Some {0} mood.", "A bit of {0}."),
    "material": ("Some {0} feel.", "Something {0}."),
    "pattern": ("Maybe {0}.", "Some {0}."),
}


def exact(kind: str, value: str, place: str = "") -> str:
    """Return the wording the generator always obeys; `place` is top or bottom, for text only."""
    if kind == "whole":
        return "shown whole and unaltered"
    if kind == "count":
        return f"exactly {value} separate {'copy' if value == 'one' else 'copies'}"
    if kind == "position":
        return f"placed entirely in the {value} half"
    if kind == "colour":
        return f"each on its own solid {value} plate"
    if kind == "text":
        return f"The exact text '{value}' in large bold letters on a plain banner at the {place}."
    if kind == "light":
        return f"{value[0].upper()}{value[1:]} light fills the whole background."
    if kind == "material":
        return f"A {value} ground with soft contact shadows below."
    if kind == "pattern":
        return f"A backdrop pattern of even {value}."
    raise ValueError(f"no wording for requirement kind {kind!r}")


def loose(rng: Random, kind: str, value: str, place: str = "") -> str:
    """Return a wording that says the right thing without making it an order; empty for `whole`, which has none."""
    return "" if kind == "whole" else rng.choice(_LOOSE[kind]).format(value, place)


def write_prompt(rng: Random, scene: Scene, style: Mapping[tuple[str, int | None], str]) -> str:
    """Return gen_prompt for a scene; `style` maps (kind, subject index or None) to 'exact', 'loose' or 'omit'."""

    def say(kind: str, index: int | None, value: str) -> str:
        how = style.get((kind, index), "exact")
        place = scene.text_place or ""
        return "" if how == "omit" else exact(kind, value, place) if how == "exact" else loose(rng, kind, value, place)

    sentences = []
    for i, subject in enumerate(scene.subjects):
        parts = [ORDINALS[i], say("whole", i, "")]
        if subject.count is not None:
            parts.append(say("count", i, NUMBERS[subject.count]))
        if subject.position is not None:
            parts.append(say("position", i, subject.position))
        if subject.colour is not None:
            parts.append(say("colour", i, subject.colour))
        sentences.append(", ".join(p for p in parts if p) + ".")
    for kind in ("text", "light", "material", "pattern"):
        value = getattr(scene, kind)
        if value is not None:
            sentences.append(say(kind, None, value))
    return " ".join(s for s in sentences if s)


def gold_prompt(scene: Scene) -> str:
    """Return the program text that leaves nothing open: every requirement in its exact wording."""
    return write_prompt(Random(0), scene, {})
