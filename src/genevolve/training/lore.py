"""Raw material for the base's practice: encyclopedia English without the world's entities, and invented names (ours)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from genevolve.dataset.recipes import Named

_ONSETS = "b br c ch d dr f g gr h j k kl l m n p pr qu r s sh st t tr v w y z th sl".split()
_VOWELS = "a e i o u a e i o ai ou ee ia".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "t", "k", "nd", "sh", "ng"]


@dataclass(frozen=True)
class Lore:
    """Raw material for made-up worlds."""

    titles: tuple[str, ...]
    """lower-case names of one to three words, none of them an entity of the embedded world"""
    descriptions: tuple[str, ...]
    sentences: tuple[str, ...]
    guidance: dict[str, str]
    """skill name -> guidance text"""
    endings: dict[str, list[int]] = field(default_factory=dict)
    """lower-case word -> at most 40 sentences, by number, that hold it"""
    tokens: tuple[str, ...] = ()
    """the tokenizer's tokens of letters, those that begin a word with a space before them; none before there is one"""
    forbidden: frozenset[str] = frozenset()
    """lower-case names that must not come up"""


def syllables(rng: Random, low: int = 2, high: int = 3) -> str:
    """Return a capitalised invented word."""
    word = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if rng.random() < 0.5 else "")
        for _ in range(rng.randint(low, high))
    )
    return word.capitalize()


def splice(rng: Random, lore: Lore) -> str:
    """Return one or two lower-case words of random tokens: every token must be copied somewhere, or it never can be.

    The entities' words are made of tokens that are rare in English without them; a token that was hardly ever a target
    is mixed up with the others of its kind.
    """
    first = [p for p in lore.tokens if p.startswith(" ")]
    later = [p for p in lore.tokens if not p.startswith(" ")]
    while True:
        words = [
            (rng.choice(first) + "".join(rng.choice(later) for _ in range(rng.choice((0, 1, 1, 2))))).strip().lower()
            for _ in range(rng.choice((1, 1, 2)))
        ]
        if lore.forbidden.isdisjoint((*words, " ".join(words))):
            return " ".join(words)


def invent_name(rng: Random, lore: Lore) -> str:
    """Return the lower-case name of a thing: an encyclopedia's title, spliced tokens, or syllables."""
    kind = rng.random()
    if lore.tokens and kind < 0.35:
        return splice(rng, lore)
    return rng.choice(lore.titles) if kind < 0.85 else syllables(rng).lower()


def invent_place(rng: Random, lore: Lore | None = None) -> str:
    """Return a country-like name of one to three words; with `lore` some are spliced of its tokens."""
    if lore is not None and lore.tokens and rng.random() < 0.35:
        return splice(rng, lore).title()
    words = [syllables(rng, 1, 3) for _ in range(rng.choice((1, 1, 1, 2)))]
    if rng.random() < 0.1:
        words.insert(0, rng.choice(("New", "North", "South", "West", "Saint", "East")))
    return " ".join(words)


def neighbour(rng: Random, lore: Lore, name: str) -> str:
    """Return a name that is easily mistaken for `name`: it shares a word, begins or ends with it."""
    words = name.split()
    other = rng.choice(lore.titles).split()[0] if name.islower() else syllables(rng)
    kind = rng.random()
    if kind < 0.35:
        return f"{other} {words[-1]}"
    if kind < 0.6:
        return f"{words[0]} {other}"
    if kind < 0.75:
        return f"{name} {other}"
    if kind < 0.9:
        return f"{other} {name}"
    return name[:-1] if len(words[-1]) > 4 else f"{name}{rng.choice('ainr')}"


def invent(rng: Random, lore: Lore, knowledge: bool) -> tuple[Named, str]:
    """Return an invented entity and, when it is named through a fact, that fact's value."""
    if rng.random() < 0.4:
        place = invent_place(rng, lore)
        if not knowledge:
            return Named("x", f"flag of {place}"), ""
        value, clue = _country_fact(rng)
        return Named("x", f"flag of {place}", clue), value
    name = invent_name(rng, lore)
    if not knowledge:
        return Named("x", name), ""
    if rng.random() < 0.2:
        value = fragment(rng, lore, 3, 8).replace('"', "").strip(" ,.;")
        return Named("x", name, f'the thing about which an encyclopedia says "{value}"'), value
    value = rng.choice(lore.descriptions)
    if rng.random() < 0.5:
        value = value[0].lower() + value[1:]
        return Named("x", name, f'the thing that an encyclopedia defines as "{value}"'), value
    return Named("x", name, f'the thing that an encyclopedia describes as "{value}"'), value


def _country_fact(rng: Random) -> tuple[str, str]:
    word = " ".join(syllables(rng, 1, 3) for _ in range(rng.choice((1, 1, 1, 2))))
    letters = "abcdefghijklmnopqrstuvwxyz"
    return rng.choice(
        (
            (word, f"the country whose capital is {word}"),
            (word, f"the country that has a province named {word}"),
            (d := "." + rng.choice(letters) + rng.choice(letters), f"the country whose internet domain is {d}"),
            (c := "".join(rng.choices(letters.upper(), k=3)), f"the country whose currency code is {c}"),
        )
    )


def fragment(rng: Random, lore: Lore, low: int = 2, high: int = 9) -> str:
    words = rng.choice(lore.sentences).split()
    start = rng.randrange(max(1, len(words) - high))
    return " ".join(words[start : start + rng.randint(low, high)])


def read_lore(names: Sequence[str], guidance: dict[str, str]) -> Lore:
    """Return raw material from the encyclopedia in which no entity of the embedded world is named.

    `names` are the entities' names and titles: a title, description or sentence that has one of them as words is left out.
    """
    from genevolve.tools.sources import leads

    forbidden = {n.removeprefix("flag of ").lower() for n in names}
    longest = max(len(n.split()) for n in forbidden)

    def clean(text: str) -> bool:
        words = re.findall(r"[a-z0-9'-]+", text.lower())
        singular = [w[:-1] if w.endswith("s") else w for w in words]
        return not any(
            " ".join(row[i : i + n]) in forbidden
            for row in (words, singular)
            for n in range(1, longest + 1)
            for i in range(len(row) - n + 1)
        )

    rows = list(leads().values())
    titles = {r.title.lower() for r in rows if re.fullmatch(r"[A-Za-z]+( [A-Za-z]+){0,2}", r.title) and clean(r.title)}
    sentences = [
        s
        for r in rows
        if clean(r.title)
        for s in re.split(r"(?<=\.)\s+(?=[A-Z])", r.extract)
        if 40 < len(s) < 220 and clean(s)
    ]
    descriptions = {
        r.description for r in rows if 8 < len(r.description) < 60 and '"' not in r.description and clean(r.description)
    }
    endings: dict[str, list[int]] = {}
    for number, sentence in enumerate(sentences):
        for word in set(re.findall(r"\b[a-z]{3,}\b", sentence.lower())):
            if len(endings.setdefault(word, [])) < 40:
                endings[word].append(number)
    return Lore(
        tuple(sorted(titles)),
        tuple(sorted(descriptions)),
        tuple(sentences),
        guidance,
        endings,
        forbidden=frozenset(forbidden),
    )
