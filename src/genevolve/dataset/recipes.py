"""Recipes -> scenes -> requests in English (method.md, section 2; wording ours, for the embedded world).

A request says what the picture must show and nothing about tools or skills. The generator's exact wordings never
occur in it: turning a wish into an order the generator obeys is the policy's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, get_args

from genevolve.scene import NUMBERS, Colour, Light, Material, Pattern, Position, Scene, Subject, TextPlace

OPENINGS = ("Make a poster of", "Draw", "Design a card with", "Paint", "I would like a picture of", "Create a print of")

COUNT = {
    "one": ("shown once", "only one of it", "a single one"),
    "two": ("shown twice", "two of it", "as a pair of two"),
    "three": ("shown three times", "three of it", "as a group of three"),
    "four": ("shown four times", "four of it", "as a group of four"),
}
POSITION = {
    "left": ("on the left side", "to the left", "in the left part"),
    "right": ("on the right side", "to the right", "in the right part"),
    "upper": ("in the upper part", "high up", "above the middle"),
    "lower": ("in the lower part", "low down", "below the middle"),
}
COLOUR = ("with a {0} plate under it", "resting on {0} plates", "on a {0} plate")
TEXT = ('with the sign "{0}" at the {1}', 'and a banner at the {1} saying "{0}"', 'with "{0}" written at the {1}')
LIGHT = ("in {0} light", "lit by a {0}", "under a {0}")
MATERIAL = ("standing on {0} ground", "above {0} ground", "on a {0} floor")
PATTERN = ("with {0} behind it", "before a backdrop of {0}", "with {0} in the backdrop")

WORDS = (
    "OPEN DAY SALE MUSIC NIGHT FREE TODAY WELCOME HOME SUMMER FAIR WINTER GAMES FRESH NEWS GRAND TOUR LITTLE STAR "
    "BLUE RIVER GOLDEN HOUR CITY PARK MARKET HELLO WORLD FIRST STEP HAPPY FEAST GREAT SHOW SCHOOL CLUB NORTH COAST "
    "SWEET DREAM QUIET PLACE LUCKY NUMBER STORY TIME SAFE TRIP EARLY BIRD FAMILY SPRING AUTUMN PARADE SILENT VALLEY "
    "HARBOR MORNING SECRET GARDEN MIDNIGHT EXPRESS FOREST TRAIL DESERT WIND OCEAN SONG LOCAL HEROES PAPER LANTERN "
    "COPPER KETTLE VELVET ROAD SILVER BRIDGE RAPID TRANSIT HIDDEN TEMPLE PLANET SEVEN COFFEE BREAK GENTLE GIANT "
    "WONDER MUSEUM ARCADE FESTIVAL VILLAGE ORCHARD THUNDER MEADOW COMPASS JOURNEY LEGEND MARBLE PALACE ISLAND "
    "BREEZE CANYON ECHO "
).split()
"""Lettering is made of one to three of these; the splits share the words, hardly ever a whole line."""


@dataclass(frozen=True)
class Named:
    """How a request may speak of one entity."""

    entity: str
    name: str
    """the words that find its picture: 'flag of Bhutan', 'giraffe'"""
    clue: str | None = None
    """a definite description that names it through a fact, or None"""
    category: str = "other"

    def phrase(self) -> str:
        """Return the noun phrase of the request."""
        if self.clue is None:
            article = "the" if self.name.startswith("flag of ") else "an" if self.name[0].lower() in "aeiou" else "a"
            return f"{article} {self.name}"
        return ("the flag of " if self.name.startswith("flag of ") else "") + self.clue


def make_lettering(rng: Random) -> str:
    """Return one to three upper-case words of at most 18 characters."""
    while True:
        text = " ".join(rng.sample(WORDS, rng.choice((1, 2, 2, 2, 3))))
        if 4 <= len(text) <= 18:
            return text


def make_scene(rng: Random, entities: Sequence[str], text_share: float = 0.65) -> Scene:
    """Return a scene over one or two entities with two to four requirements (`text_share` of scenes have lettering)."""
    two = len(entities) == 2
    chosen: dict[str, Any] = {}
    kinds = ["count", "position", "colour", "light", "material", "pattern"]
    rng.shuffle(kinds)
    budget = rng.choice((1, 2, 2, 3)) if two else rng.choice((1, 2, 3, 3))
    wanted = set(kinds[:budget])
    positions = rng.choice((("left", "right"), ("right", "left"), ("upper", "lower"), ("lower", "upper")))
    colours = rng.sample(get_args(Colour), 2)
    subjects = tuple(
        Subject(
            entity=e,
            count=(rng.choice((1, 2)) if two else rng.choice((1, 2, 3, 4))) if "count" in wanted else None,
            position=(positions[i] if two else rng.choice(get_args(Position))) if "position" in wanted else None,
            colour=colours[i] if "colour" in wanted else None,
        )
        for i, e in enumerate(entities)
    )
    if rng.random() < text_share:
        chosen["text"] = make_lettering(rng)
        chosen["text_place"] = rng.choice(get_args(TextPlace))
    for kind, values in (("light", get_args(Light)), ("material", get_args(Material)), ("pattern", get_args(Pattern))):
        if kind in wanted:
            chosen[kind] = rng.choice(values)
    return Scene(subjects=subjects, **chosen)


def write_question(rng: Random, scene: Scene, named: Sequence[Named]) -> str:
    """Return the request's English; `named` runs parallel to `scene.subjects`."""
    subjects = [", ".join([n.phrase(), *_details(rng, s)]) for s, n in zip(scene.subjects, named, strict=True)]
    whole: list[str] = []
    if scene.text is not None:
        whole.append(rng.choice(TEXT).format(scene.text, scene.text_place))
    for value, forms in ((scene.light, LIGHT), (scene.material, MATERIAL), (scene.pattern, PATTERN)):
        if value is not None:
            whole.append(rng.choice(forms).format(value))
    rng.shuffle(whole)
    return f"{rng.choice(OPENINGS)} {', and '.join(subjects)}" + "".join(f", {w}" for w in whole) + "."


def _details(rng: Random, subject: Subject) -> list[str]:
    out = []
    if subject.count is not None:
        out.append(rng.choice(COUNT[NUMBERS[subject.count]]))
    if subject.position is not None:
        out.append(rng.choice(POSITION[subject.position]))
    if subject.colour is not None:
        out.append(rng.choice(COLOUR).format(subject.colour))
    return out


def difficulty(scene: Scene, knowledge: bool) -> str:
    """Return easy, medium or hard: two subjects, a fact to find and many requirements each add weight (ours)."""
    weight = len(scene.requirements()) + 2 * (len(scene.subjects) - 1) + 2 * knowledge
    return "easy" if weight <= 3 else "medium" if weight <= 5 else "hard"
