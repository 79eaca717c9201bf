"""Reading English just far enough for experience: content words, names, and a question with its names masked (ours)."""

from __future__ import annotations

import re

# fmt: off
_STOP = frozenset((
    "a", "an", "and", "any", "are", "as", "at", "be", "by", "can", "do", "for", "from", "has", "have", "in",
    "into", "is", "it", "its", "me", "of", "on", "one", "or", "please", "show", "that", "the", "their", "them",
    "there", "these", "this", "those", "to", "with", "which", "who", "whose", "what", "where", "when", "you",
    "your",
))
# fmt: on
_WORD = re.compile(r"\.?\w+(?:[-'’.]\w+)*")
_QUOTED = re.compile(r"(?<!\w)(?:'([^'\n]{1,400})'|\"([^\"\n]{1,400})\"|“([^”\n]{1,400})”|‘([^’\n]{1,400})’)(?!\w)")
_CODE = re.compile(r"(?<!\w)\.[a-z]{2,}\b|\b\w*\d\w*\b")
_CAPITAL = "[A-ZÀ-ÖØ-ÞĀĆČĐŁŌŚŠŪŻŽ]"
# Capitalised words that do not begin a sentence: "São Tomé and Príncipe", "Thimphu", "Republic of the Congo".
_NAME = re.compile(
    rf"(?<=[\w,;(] )(?<![.!?:] ){_CAPITAL}[\w'’-]*\w(?: (?:(?:of|and|de|la|du|al|the) ){{0,2}}{_CAPITAL}[\w'’-]*\w)*"
)


def words(text: str) -> list[str]:
    """Return the content words of a text in order, lower case, without function words (the dot of `.bt` stays)."""
    return [w for w in (m.group().casefold() for m in _WORD.finditer(text)) if w not in _STOP]


def quoted(text: str) -> list[str]:
    """Return the quoted passages of a text, without their quotation marks."""
    return [next(g for g in m.groups() if g is not None) for m in _QUOTED.finditer(text)]


def names(text: str) -> set[str]:
    """Return the words, lower case, that could identify a text: quoted ones, names in a sentence, codes, figures."""
    return {w for passage in quoted(text) for w in words(passage) if len(w) > 1} | unquoted_names(text)


def unquoted_names(text: str) -> set[str]:
    """Return the words, lower case, of the names, codes and figures of a text that stand in no quotation."""
    found: set[str] = set()
    bare = _QUOTED.sub(" ", text)
    for pattern in (_NAME, _CODE):
        for m in pattern.finditer(bare):
            found.update(words(m.group()))
    return {w for w in found if len(w) > 1}


def mask(text: str) -> str:
    """Return the question with what only identifies it taken out, so that its embedding follows what it demands.

    Upper-case quotations become lettering, other quotations a description, names and codes a placeholder.
    """

    def quotation(match: re.Match[str]) -> str:
        inner = next(g for g in match.groups() if g is not None)
        return "'WORDS'" if inner.isupper() else "'a description'"

    out = _QUOTED.sub(quotation, text)
    placeholder = "'WORDS'"
    parts = out.split(placeholder)  # the placeholder is upper case itself: keep the name pattern away from it
    return placeholder.join(_CODE.sub("a code", _NAME.sub("somewhere", part)) for part in parts)


_FACT = re.compile(r"\b(?:whose|which|that|who|describes|described|with the)\b", re.IGNORECASE)


def demands(text: str) -> str:
    """Return what a question asks of its subject: masked, and the subject's own phrase (up to the first comma) replaced by
    whether it is told by a fact or named. Advice is about demands; a key that still holds the subject finds
    look-alike subjects.
    """
    head, comma, tail = mask(text).partition(", ")
    if not comma:
        return head
    return f"something {'told by a fact' if _FACT.search(head) else 'named'}, {tail}"
