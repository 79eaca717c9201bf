"""What the generator does where the text is loose or silent: seeded guesses, as real generators make them. (Ours.)

A guess depends on sha256(run seed, request id, slot) only, never on the words of the prompt, so that two policies that
leave the same slot open see the same guess. An exact slot is obeyed; a loose one is obeyed with probability
LOOSE_OBEYED, else it comes out wrong; an open one is a uniform guess over the vocabulary and "none".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

from genevolve.render.program import OPEN, Layout, Slot, SubjectLayout
from genevolve.scene import Colour, Light, Material, Pattern, Position, TextPlace

LOOSE_OBEYED = 0.5
OPEN_WHOLE = 1 / 3
"""How often a subject comes out unaltered when the text does not say so."""

Alteration = Literal["none", "recolour", "crop"]
OPPOSITE: dict[Position, Position] = {"left": "right", "right": "left", "upper": "lower", "lower": "upper"}
T = TypeVar("T")


@dataclass(frozen=True)
class SubjectPlan:
    """One subject as it will be drawn. `reference` None: a grey placeholder."""

    reference: int | None
    count: int = 1
    position: Position | None = None
    colour: Colour | None = None
    alteration: Alteration = "none"
    variant: int = 0
    """Which of four tints or corners an altered subject gets."""


@dataclass(frozen=True)
class Plan:
    """Every slot decided: what the compositor draws."""

    subjects: tuple[SubjectPlan, ...]
    text: str | None = None
    text_place: TextPlace = "top"
    light: Light | None = None
    material: Material | None = None
    pattern: Pattern | None = None


class Dice:
    """Seeded numbers per slot; the same slot always falls the same way."""

    def __init__(self, seed: int, request_id: str) -> None:
        self.key = f"{seed}\0{request_id}\0"

    def uniform(self, slot: str) -> float:
        """Return a number in [0, 1)."""
        digest = hashlib.sha256((self.key + slot).encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:7], "big") / 2**56

    def pick(self, slot: str, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[int(self.uniform(slot) * len(options))]

    def order(self, slot: str, options: Sequence[T]) -> list[T]:
        """Return the options in a seeded order."""
        return [options[i] for i in sorted(range(len(options)), key=lambda i: self.uniform(f"{slot}/{i}"))]

    def obeyed(self, slot: str, stated: Slot) -> bool:
        """Return whether a stated slot comes out as stated."""
        return stated.sureness == "exact" or self.uniform(f"{slot}/obey") < LOOSE_OBEYED


def decide(layout: Layout, references: int, seed: int, request_id: str) -> Plan:
    """Return the plan for a parsed prompt with so many reference files."""
    dice = Dice(seed, request_id)
    subjects = layout.subjects or [SubjectLayout(i) for i in range(min(references, 2))] or [SubjectLayout(0)]
    plans = [_subject(dice, s, references) for s in subjects]
    plans = _colours(dice, subjects, plans)
    plans = _positions(dice, subjects, plans)
    return Plan(
        subjects=tuple(plans),
        text=_text(dice, layout.text),
        text_place=_choice(dice, "text_place", layout.text_place, get_args(TextPlace), with_none=False) or "top",
        light=_choice(dice, "light", layout.light, get_args(Light)),
        material=_choice(dice, "material", layout.material, get_args(Material)),
        pattern=_choice(dice, "pattern", layout.pattern, get_args(Pattern)),
    )


def _choice(dice: Dice, slot: str, stated: Slot, vocabulary: tuple[T, ...], with_none: bool = True) -> T | None:
    """Return the value of a slot: stated, or the first other (or any) value in the slot's seeded order."""
    options: list[T | None] = [*([None] if with_none else []), *vocabulary]
    order = dice.order(slot, options)
    if stated == OPEN:
        return order[0]
    if dice.obeyed(slot, stated):
        return next(v for v in vocabulary if v == stated.value)
    return next(v for v in order if v != stated.value)


def _subject(dice: Dice, stated: SubjectLayout, references: int) -> SubjectPlan:
    name = f"subject{stated.ordinal}"
    whole = (
        dice.uniform(f"{name}.whole/obey") < OPEN_WHOLE
        if stated.whole == OPEN
        else dice.obeyed(f"{name}.whole", stated.whole)
    )
    known = stated.ordinal < references
    return SubjectPlan(
        reference=stated.ordinal if known else None,
        count=_count(dice, f"{name}.count", stated.count),
        alteration="none" if whole or not known else dice.pick(f"{name}.whole/how", ("recolour", "crop")),
        variant=dice.pick(f"{name}.whole/variant", (0, 1, 2, 3)),
    )


def _count(dice: Dice, slot: str, stated: Slot) -> int:
    if stated.value is None:
        return dice.pick(slot, (1, 1, 2, 3, 4))  # vocabulary and "none", and none means one
    count = int(stated.value)
    if dice.obeyed(slot, stated):
        return count
    return {1: 2, 4: 3}.get(count) or count + dice.pick(f"{slot}/off", (-1, 1))


def _colours(dice: Dice, stated: list[SubjectLayout], plans: list[SubjectPlan]) -> list[SubjectPlan]:
    """Decide the plates: a wrong one has another colour, or none because its colour went to the other subject."""
    colours: list[Colour | None] = []
    moved: list[Colour | None] = [None, None]
    for i, s in enumerate(stated):
        slot = f"subject{s.ordinal}.colour"
        colour = _choice(dice, slot, s.colour, get_args(Colour))
        if s.colour.sureness == "loose" and colour != s.colour.value and dice.uniform(f"{slot}/moved") < 0.5:
            other = 1 - i
            if other < len(stated) and stated[other].colour == OPEN:
                moved[other] = next(c for c in get_args(Colour) if c == s.colour.value)
                colour = None
        colours.append(colour)
    return [replace(p, colour=moved[i] or colours[i]) for i, p in enumerate(plans)]


def _positions(dice: Dice, stated: list[SubjectLayout], plans: list[SubjectPlan]) -> list[SubjectPlan]:
    """Decide the halves: a wrong one is the opposite half; an unplaced subject beside a placed one gets the free one."""
    chosen: list[Position | None] = []
    for s in stated:
        slot = f"subject{s.ordinal}.position"
        value = next((p for p in get_args(Position) if p == s.position.value), None)
        if value is None:
            chosen.append(dice.pick(slot, (None, *get_args(Position))))
        else:
            chosen.append(value if dice.obeyed(slot, s.position) else OPPOSITE[value])
    if len(stated) == 2:
        a, b = (s.position != OPEN for s in stated)
        if not a and not b:
            first: Position = chosen[0] or "left"
            chosen = [first, OPPOSITE[first]]
        elif a != b:
            placed = 0 if a else 1
            anchor = chosen[placed]
            chosen[1 - placed] = OPPOSITE[anchor] if anchor else None
    return [replace(p, position=c) for p, c in zip(plans, chosen, strict=True)]


def _text(dice: Dice, stated: Slot) -> str | None:
    """Return the lettering: as stated, or with one letter dropped, doubled or swapped; nobody guesses unasked words."""
    if stated.value is None or dice.obeyed("text", stated):
        return stated.value
    return misspell(stated.value, dice.pick("text/how", ("drop", "double", "swap")), dice.uniform("text/where"))


def misspell(text: str, how: Literal["drop", "double", "swap"], where: float) -> str:
    """Return the text with one letter wrong, always different from the text; `where` in [0, 1) picks the letter."""
    letters = [i for i, c in enumerate(text) if c.isalnum()]
    if not letters:
        return text + "?"
    if how == "swap":
        pairs = [i for i in letters if i + 1 in letters and text[i] != text[i + 1]]
        if pairs:
            i = pairs[int(where * len(pairs))]
            return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    i = letters[int(where * len(letters))]
    if how == "drop" and len(letters) > 1:
        return text[:i] + text[i + 1 :]
    return text[: i + 1] + text[i] + text[i + 1 :]
