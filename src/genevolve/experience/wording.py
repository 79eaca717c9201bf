"""How a generation prompt words each kind of requirement: exact, loose or absent (ours; see the skills).

The summariser's own reading, on purpose not the generator's parser: experience sees trajectories, never the
renderer's insides.
"""

from __future__ import annotations

import re
from enum import IntEnum

from genevolve.scene import SKILL_OF


class Wording(IntEnum):
    """How firmly a prompt states a requirement; ordered, so that the weakest statement is the minimum."""

    ABSENT = 0
    LOOSE = 1
    EXACT = 2


_EXACT = {
    "whole": r"\bshown whole and unaltered\b",
    "count": r"\bexactly (?:one (?:separate )?copy|(?:two|three|four) separate copies)\b",
    "position": r"\bplaced entirely in the (?:left|right|upper|lower) half\b",
    "colour": r"\b(?:each )?on its own solid \w+ plate\b",
    "text": r"\bexact text ['\"‘“].+?['\"’”] in large bold letters on a plain banner\b",
    "light": r"\blight fills the whole background\b",
    "material": r"\bground with soft contact shadows\b",
    "pattern": r"\bbackdrop pattern of even \w+",
}
_MENTION = {
    "whole": r"\b(?:whole|unaltered|complete|entire body|uncropped)\b",
    "count": r"\b(?:exactly|one|two|three|four|several|copy|copies)\b",
    "position": r"\b(?:left|right|upper|lower|top|bottom|half|middle|centre|center)\b",
    "colour": r"\b(?:red|blue|green|yellow|purple|orange|plates?)\b",
    "text": r"\b(?:text|words?|letter\w*|banner|caption|sign)\b|['\"‘“][A-Z0-9 ]{2,}['\"’”]",
    "light": r"\b(?:light|sunset|moonlight|daylight|dawn)\b",
    "material": r"\b(?:ground|wood\w*|marble|sand\w*|grass\w*|shadows?)\b",
    "pattern": r"\b(?:pattern|stripes?|dots?|rays|confetti)\b",
}
_OF_SUBJECT = ("whole", "count", "position", "colour")
_SUBJECT = re.compile(r"\bthe (?:first|second) reference image\b", re.IGNORECASE)
_QUOTE = re.compile(r"(?<!\w)['\"‘“][^'\"’”]*['\"’”](?!\w)")


def wording(gen_prompt: str) -> dict[str, Wording]:
    """Return the wording of every kind of requirement in a prompt; a kind worded twice has the weaker wording.

    Kinds that belong to a subject are read in the sentences about the reference images, the others in the rest;
    `whole` must stand in every subject's sentence to be exact.
    """
    subject, rest = _sentences(gen_prompt)
    return {kind: _level(kind, subject if kind in _OF_SUBJECT else rest) for kind in SKILL_OF}


def _sentences(gen_prompt: str) -> tuple[list[str], list[str]]:
    """Split a prompt into subject sentences and others; a full stop inside quoted lettering ends nothing."""
    guarded = _QUOTE.sub(lambda m: m.group().replace(".", "\x00"), gen_prompt)
    sentences = [s.replace("\x00", ".").strip() for s in re.split(r"(?<=[.!?])\s+", guarded) if s.strip()]
    about = [bool(_SUBJECT.search(s)) for s in sentences]
    return [s for s, a in zip(sentences, about, strict=True) if a], [
        s for s, a in zip(sentences, about, strict=True) if not a
    ]


def _level(kind: str, sentences: list[str]) -> Wording:
    levels = [_level_of(kind, s) for s in sentences]
    told = [level for level in levels if level > Wording.ABSENT]
    if kind == "whole" and told and len(told) < len(levels):
        return Wording.LOOSE
    return min(told, default=Wording.ABSENT)


def _level_of(kind: str, sentence: str) -> Wording:
    if re.search(_EXACT[kind], sentence, re.IGNORECASE):
        return Wording.EXACT
    bare = sentence if kind == "text" else _QUOTE.sub(" ", sentence)  # a sign that says 'RED' is no colour
    return Wording.LOOSE if re.search(_MENTION[kind], bare, re.IGNORECASE) else Wording.ABSENT
