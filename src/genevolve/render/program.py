"""Reads the generator-facing English of a program into a Layout: which slot is stated exactly, loosely, or left open.

The grammar is the table the eight skills teach (ours). The reader is tolerant of small variations and ignores what it
does not know; it sees the text only, never a scene. Any string is safe: it is cut, cleaned and scanned with bounded
regular expressions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Sureness = Literal["exact", "loose"]
MAX_PROMPT = 4000
"""Characters of a prompt that are read; no honest program is a tenth as long."""
MAX_TEXT = 32
"""Characters of lettering that are drawn."""


class Slot(NamedTuple):
    """What the text says of one thing. `sureness` None: it says nothing, the slot is open (value is then None)."""

    value: str | None = None
    sureness: Sureness | None = None


OPEN = Slot()


@dataclass
class SubjectLayout:
    """What the text says of one reference; `ordinal` 0 is the first reference image."""

    ordinal: int
    whole: Slot = OPEN
    count: Slot = OPEN
    position: Slot = OPEN
    colour: Slot = OPEN


@dataclass
class Layout:
    """What a prompt says; subjects in the order of their ordinals, at most two."""

    subjects: list[SubjectLayout] = field(default_factory=list)
    text: Slot = OPEN
    text_place: Slot = OPEN
    light: Slot = OPEN
    material: Slot = OPEN
    pattern: Slot = OPEN


_COUNTS = {"one": "1", "single": "1", "two": "2", "three": "3", "four": "4", "1": "1", "2": "2", "3": "3", "4": "4"}
_HALVES = {"left": "left", "right": "right", "upper": "upper", "top": "upper", "lower": "lower", "bottom": "lower"}
_MATERIALS = {"wood": "wooden", "wooden": "wooden", "marble": "marble", "sand": "sandy", "sandy": "sandy"}
_MATERIALS |= {"grass": "grassy", "grassy": "grassy"}
_LIGHTS = {
    "warm sunset": "warm sunset", "sunset": "warm sunset",
    "cool moonlight": "cool moonlight", "moonlight": "cool moonlight", "moonlit": "cool moonlight",
    "bright daylight": "bright daylight", "daylight": "bright daylight",
    "pink dawn": "pink dawn", "dawn": "pink dawn",
}  # fmt: skip
_PATTERNS = {"stripes": "stripes", "striped": "stripes", "stripe": "stripes", "dots": "dots", "dotted": "dots"}
_PATTERNS |= {"dot": "dots", "rays": "rays", "ray": "rays", "confetti": "confetti"}
_COLOUR = r"(red|blue|green|yellow|purple|orange)"
_NUMBER = r"(one|two|three|four|[1-4]|a single|single)"
_HALF = r"(left|right|upper|top|lower|bottom)"
_LIGHT = r"(warm sunset|cool moonlight|bright daylight|pink dawn)"
_MATERIAL = r"(wooden|marble|sandy|grassy)"
_PATTERN = r"(stripes|dots|rays|confetti)"


def _re(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)


_ORDINAL = _re(
    r"\b(?:(first|second|1st|2nd) (?:reference|image|picture)(?: image| picture)?"
    r"|(?:reference|image)(?: image)? (?:no\.? ?)?([12]|one|two)\b)"
)
# A closing quote is one that the sentence goes on or ends after; else the next one, so that "DOGS' DAY" stays whole.
_QUOTES = (
    re.compile(r"(?<!\w)['\"‘“](.{1,80}?)['\"’”](?=\s+(?:in|at|on|across|along|near)\b|\s*[.,;]?\s*$|[.,;]\s+[A-Z])"),
    re.compile(r"(?<!\w)['\"‘“](.{1,80}?)['\"’”](?!\w)"),
)
_SENTENCE = re.compile(r"[.!?;\n]+(?:\s|$)")

# (exact wording, loose wordings) of the slots of one subject; group 1 is the value.
_SUBJECT_RULES: dict[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "whole": (
        _re(r"\b(whole and unaltered)\b"),
        _re(r"\b(whole|unaltered|unchanged|complete|intact|in full|uncropped|as it is)\b"),
    ),
    "count": (
        _re(rf"\bexactly {_NUMBER}(?: (?:separate|distinct|identical|single|individual))* cop(?:y|ies)\b"),
        _re(
            rf"\b{_NUMBER}(?: of (?:it|them|these|those)| times|(?: separate| distinct| identical)* (?:copy|copies|pieces))\b"
        ),
    ),
    "position": (
        _re(rf"\b(?:entirely|completely|fully|wholly) (?:in|within|inside) the {_HALF}(?:-hand)? half\b"),
        _re(rf"\b(?:on|to|in|at|near|along|towards?)(?: the)?(?: far)? {_HALF}\b"),
    ),
    "colour": (
        _re(rf"\bon (?:its|their|an?|the)(?: own)?(?: single| plain| separate)? solid {_COLOUR}(?: round)? plates?\b"),
        _re(rf"(?:\b(?:with|in|on|over|some)(?: [a-z]{{1,12}}){{0,3}}? {_COLOUR}\b)"),
    ),
}
_SCENE_RULES: dict[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "light": (
        _re(rf"\b{_LIGHT} light(?:ing)? fill(?:s|ing) (?:the )?(?:whole|entire|full) (?:background|picture)\b"),
        _re(r"\b(warm sunset|sunset|cool moonlight|moonlight|moonlit|bright daylight|daylight|pink dawn|dawn)\b"),
    ),
    "material": (
        _re(rf"\b{_MATERIAL} ground with soft contact shadows?\b"),
        _re(r"\b(wooden|wood|marble|sandy|sand|grassy|grass)\b"),
    ),
    "pattern": (
        _re(rf"\bbackdrop pattern of(?: (?:even|regular|evenly spaced|soft|fine))? {_PATTERN}\b"),
        _re(r"\b(stripes|striped|stripe|dots|dotted|dot|rays|ray|confetti)\b"),
    ),
}
_TEXT_WORD = _re(
    r"\b(?:text|words?|lettering|letters|title|caption|says|reads|reading|saying|label(?:led)?|sign|banner)\b"
)
_TEXT_PLACE = _re(r"\b(?:at|on|along|near|towards?|across|in|to)(?: the)?(?: very)? (top|bottom)\b")
_CANONICAL = {"count": _COUNTS, "position": _HALVES, "light": _LIGHTS, "material": _MATERIALS, "pattern": _PATTERNS}


def parse_prompt(gen_prompt: str) -> Layout:
    """Return what the prompt states; an exact wording beats a loose one, and the first of equals stands."""
    text = "".join(c if c.isprintable() else " " for c in gen_prompt[:MAX_PROMPT])
    layout = Layout()
    text, quotes = _cut_quotes(text)
    current: SubjectLayout | None = None
    for sentence in _SENTENCE.split(text):
        marks = list(_ORDINAL.finditer(sentence))
        for rule in _SCENE_RULES:
            _apply(layout, rule, _SCENE_RULES[rule], sentence, allow_loose=not marks)
        _read_text(layout, sentence, quotes)
        if (
            not marks and current is not None
        ):  # "Each copy sits on its own solid red plate." goes on with the last subject
            _read_subject(current, sentence, allow_loose=False)
        for i, mark in enumerate(marks):
            end = marks[i + 1].start() if i + 1 < len(marks) else len(sentence)
            current = _subject(layout, mark)
            # What stands before the first ordinal belongs to it too: "Exactly two copies of the first reference image".
            _read_subject(current, sentence[0 if i == 0 else mark.start() : end], allow_loose=True)
    layout.subjects.sort(key=lambda s: s.ordinal)
    return layout


def _cut_quotes(text: str) -> tuple[str, list[str]]:
    """Return the text with quoted lettering replaced by QUOTE<i>, so that its words are not read as instructions."""
    quotes: list[str] = []

    def keep(match: re.Match[str]) -> str:
        quotes.append(" ".join(match.group(1).split())[:MAX_TEXT].strip())
        return f" QUOTE{len(quotes) - 1} "

    for pattern in _QUOTES:
        text = pattern.sub(keep, text)
    return text, quotes


def _subject(layout: Layout, mark: re.Match[str]) -> SubjectLayout:
    word = (mark.group(1) or mark.group(2)).lower()
    ordinal = 0 if word in ("first", "1st", "1", "one") else 1
    for subject in layout.subjects:
        if subject.ordinal == ordinal:
            return subject
    layout.subjects.append(SubjectLayout(ordinal))
    return layout.subjects[-1]


def _read_subject(subject: SubjectLayout, text: str, allow_loose: bool) -> None:
    for name, rules in _SUBJECT_RULES.items():
        _apply(subject, name, rules, text, allow_loose)


def _apply(
    target: Layout | SubjectLayout,
    name: str,
    rules: tuple[re.Pattern[str], re.Pattern[str]],
    text: str,
    allow_loose: bool,
) -> None:
    """Fill one slot of the target if the text says more of it than was known."""
    known: Slot = getattr(target, name)
    exact, loose = rules
    if known.sureness == "exact":
        return
    if match := exact.search(text):
        setattr(target, name, Slot(_canonical(name, match.group(1)), "exact"))
    elif allow_loose and known.sureness is None and (match := loose.search(text)):
        setattr(target, name, Slot(_canonical(name, match.group(1)), "loose"))


def _canonical(name: str, raw: str) -> str:
    word = " ".join(raw.lower().split()).removeprefix("a ")
    return "yes" if name == "whole" else _CANONICAL.get(name, {}).get(word, word)


def _read_text(layout: Layout, sentence: str, quotes: list[str]) -> None:
    """Read a sentence's lettering; exact needs 'exact text', 'large bold letters', 'plain banner' and the place."""
    match = re.search(r"QUOTE(\d{1,4})", sentence)
    if not match or layout.text.sureness == "exact" or not (_TEXT_WORD.search(sentence) or layout.text == OPEN):
        return
    number = int(match.group(1))
    value = quotes[number] if number < len(quotes) else ""
    if not value:
        return
    place = _TEXT_PLACE.search(sentence)
    low = " ".join(sentence.lower().split())
    exact = "exact text" in low and "large bold letters" in low and "plain banner" in low and place is not None
    if exact or layout.text == OPEN:
        layout.text = Slot(value, "exact" if exact else "loose")
        # A stated place is followed even in loose wording: a loose text already risks its letters.
        layout.text_place = Slot(place.group(1).lower(), "exact") if place else OPEN
