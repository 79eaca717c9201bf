"""Facts that single out one entity, and the English that asks for it. Ours; the values come from the data wheels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from genevolve.records import Record
from genevolve.tools.sources import Lead, ascii_text

Relation = Literal["capital", "domain", "currency", "province", "description", "definition", "quote"]

DESCRIBES = 'the thing that an encyclopedia describes as "{}"'
DEFINES = 'the thing that an encyclopedia defines as "{}"'
QUOTES = 'the thing about which an encyclopedia says "{}"'
PROVINCES = 5
"""At most so many provinces a country: enough for variety, and Slovenia's 147 do not drown the rest."""

# "Giraffes are ", "The oboe is a ": what stands between a lead's beginning and what it says the thing is
COPULA = r"[^.;:,]{1,60}? (?:is|are|was|were) (?:an? |the |any (?:of )?)?"
_GENERIC = frozenset(
    """
    central centre center north south east west northern southern eastern western northeast northwest southeast southwest
    nord sud est ouest norte sur upper lower new old capital city district island islands region province federal
    territory coast river saint san santa all and the of
    """.split()  # a list of forty literals reads worse
)
_FOREIGN_SUFFIX = re.compile(
    r"(?i)\b(rayonu|rajons?|rajonas|oblasty|welayaty|wiloyati|viloyati|zupanija|provincia|region|avtonom\w*|laani|sheng"
    r"|shi)\b|[()/,.\d]"
)
_SMALL_WORDS = frozenset(
    """
    a an and as at be by for from in into is of on one or other such that the to two used use uses using with which
    """.split()
)


class Fact(Record):
    """Something true of exactly one entity of the world."""

    relation: Relation
    value: str = Field(description="the words a search has to find, e.g. 'Thimphu' or '.bt'")
    clue: str = Field(description="English definite description, e.g. 'the country whose capital is Thimphu'")


def words(text: str) -> list[str]:
    """Return the lower-case words of an ASCII text."""
    return re.findall(r"[a-z0-9]+", text.lower())


def content_words(text: str) -> frozenset[str]:
    return frozenset(w for w in words(text) if w not in _SMALL_WORDS)


def leaks(clue: str, name: str) -> bool:
    """Say whether the clue gives the name away: a word of it, or a word with the same first letters, is in the clue."""
    stems = {w[:5] for w in words(name) if len(w) > 2 and w not in _SMALL_WORDS}
    return any(w[:5] in stems for w in words(clue))


def country_values(row: Mapping[str, Any]) -> dict[Relation, list[str]]:
    """Return every candidate value of a countryinfo record, in ASCII, unique or not."""
    capital = row.get("capital")
    domains = [d for d in row.get("tld") or () if re.fullmatch(r"\.[a-z]{2}", d)]
    currencies = row.get("currencies") or ()
    provinces = sorted({ascii_text(p) for p in row.get("provinces") or () if not _FOREIGN_SUFFIX.search(p)})
    return {
        "capital": [ascii_text(capital)] if isinstance(capital, str) and capital and "/" not in capital else [],
        "domain": domains[:1],
        "currency": [currencies[0]] if currencies else [],
        "province": provinces,
    }


def country_sentences(name: str, row: Mapping[str, Any], values: Mapping[Relation, Sequence[str]]) -> str:
    """Return the text of a country's fact document: one short sentence a fact, its value last."""
    where = row.get("subregion") or row.get("region")
    lines = [f"{name} is a country or territory{f' in {where}' if where else ''}."]
    pattern: dict[Relation, str] = {
        "capital": "The capital city is {}.",
        "domain": "The internet domain is {}.",
        "currency": "The currency code is {}.",
        "province": "One province is {}.",
    }
    lines += [pattern[relation].format(value) for relation in pattern for value in values.get(relation, ())]
    return "\n".join(lines)


def country_clue(relation: Relation, value: str) -> str:
    """Return the definite description of a country by one fact."""
    return {
        "capital": f"the country whose capital is {value}",
        "domain": f"the country whose internet domain is {value}",
        "currency": f"the country whose currency code is {value}",
        "province": f"the country that has a province named {value}",
    }[relation]


def country_facts(
    names: Mapping[str, str],
    values: Mapping[str, Mapping[Relation, Sequence[str]]],
    every: Iterable[Mapping[Relation, Sequence[str]]],
) -> dict[str, tuple[Fact, ...]]:
    """Return the facts of each country (keys: codes) that no other record shares.

    `every` are the candidate values of all country records there are, those outside the world included.
    """
    owners = Counter((relation, v.lower()) for row in every for relation, found in row.items() for v in set(found))
    capitals = {v.lower() for row in values.values() for v in row["capital"]}
    countries = {n.lower() for n in names.values()}
    facts: dict[str, tuple[Fact, ...]] = {}
    for code, row in values.items():
        kept: list[Fact] = []
        for relation, found in row.items():
            unique = [v for v in found if owners[relation, v.lower()] == 1 and not leaks(v, names[code])]
            if relation == "province":
                unique = spread(
                    [v for v in unique if _plain_province(v) and v.lower() not in capitals | countries], PROVINCES
                )
            kept += [Fact(relation=relation, value=v, clue=country_clue(relation, v)) for v in unique]
        facts[code] = tuple(kept)
    return facts


def _plain_province(name: str) -> bool:
    parts = words(name)
    return (
        4 <= len(name) <= 22
        and len(parts) <= 2
        and not set(parts) & _GENERIC
        and bool(re.fullmatch(r"[A-Za-z' -]+", name))
    )


def spread(items: Sequence[str], most: int) -> list[str]:
    """Return at most `most` items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def object_facts(
    things: Mapping[str, tuple[str, Lead]], others: Iterable[Lead], quotes: Mapping[str, str]
) -> dict[str, tuple[Fact, ...]]:
    """Return the facts of each thing; `things`: id -> (name, lead); `quotes`: id -> words of the lead; `others`: all leads.

    A description or a definition counts when no other article says the same, no other thing's says all of it, it has
    three telling words or more, and it does not give the name away. Quotes are chosen by hand and taken as they are.
    """
    everything = list(others)
    times = Counter(lead.description.lower() for lead in everything)
    described = {key: lead.description for key, (_, lead) in things.items()}
    defined = {key: definition(lead) for key, (_, lead) in things.items()}
    meanings = {key: (content_words(described[key]), content_words(defined[key])) for key in things}
    facts: dict[str, tuple[Fact, ...]] = {}
    for key, (name, _) in things.items():
        rest = [m for k, pair in meanings.items() if k != key for m in pair]
        kept: list[Fact] = []
        for relation, value in (("description", described[key]), ("definition", defined[key])):
            telling = content_words(value)
            alone = relation == "definition" or times[value.lower()] == 1
            if len(telling) < 3 or not alone or leaks(value, name) or any(telling <= other for other in rest):
                continue
            clue = DESCRIBES.format(value) if relation == "description" else DEFINES.format(value)
            kept.append(Fact(relation=relation, value=value, clue=clue))
        if len(kept) == 2 and len(content_words(defined[key]) - content_words(described[key])) < 2:
            kept.pop()  # the definition only repeats the description
        if key in quotes:
            kept.append(Fact(relation="quote", value=quotes[key], clue=QUOTES.format(quotes[key])))
        facts[key] = tuple(kept)
    return facts


def definition(lead: Lead) -> str:
    """Return what the lead's first sentence says the thing is: 4 to 12 words, cut at a clause; '' when that fails."""
    match = re.match(COPULA + r"([^.;:()]+)(?=[.;:(])", lead.extract)
    if not match:
        return ""
    phrase = match[1].strip()
    comma = phrase.find(", ")
    ends = [len(phrase), *(m.start() for m in re.finditer(r" (?:that|which|who|whose) ", phrase))]
    if comma > 0 and phrase.count(", ") == 1 and " and" not in phrase[comma:]:
        ends.append(comma)
    for end in sorted(ends, reverse=True):
        cut = phrase[:end].split()
        if 4 <= len(cut) <= 12 and cut[-1].strip(",").lower() not in _SMALL_WORDS and '"' not in phrase[:end]:
            return " ".join(cut).strip(",")
    return ""
