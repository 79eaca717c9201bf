"""Who lives in the embedded world: country flags by rule and exception, objects by a curated table (ours).

`data/objects.tsv` says which art is which thing and article, `data/flags.tsv` where the country records are wrong or a
flag is no flag of its own, `data/dropped.tsv` which names that have both art and an article are left out, and why.
"""

from __future__ import annotations

from genevolve.tools import facts as fact_rules
from genevolve.tools import sources
from genevolve.tools.base import ToolError
from genevolve.tools.entity import Entity
from genevolve.tools.lookalikes import nearest, thumbnails

NATION = "1F3F4-E"
"""File stems of England, Scotland and Wales begin so: a black flag and tag characters."""


def _slug(text: str) -> str:
    return "_".join(fact_rules.words(text))


def flag_code(stem: str) -> str:
    """Return the two-letter code behind a flag's file stem, '' when it is no country flag."""
    points = stem.split("-")
    if len(points) == 2 and all(p.startswith("1F1") for p in points):
        return "".join(chr(int(p, 16) - 0x1F1E6 + ord("A")) for p in points)
    return ""


def art_title(picture: sources.Art) -> str:
    """Return the title of a picture that is no entity."""
    return f"flag of {picture.name}" if flag_code(picture.stem) or picture.stem.startswith(NATION) else picture.name


def flags(pictures: list[sources.Art]) -> tuple[list[Entity], list[tuple[str, str, str]]]:
    """Return the flags and one fact document (title, body, url) per country record."""
    exceptions = {row[0]: row for row in sources.read_table("flags.tsv", 5)}
    records = sources.countries()
    names: dict[str, str] = {}
    stems: dict[str, str] = {}
    for a in pictures:
        code = flag_code(a.stem)
        _, name, _, left_out, _ = exceptions.get(code, ("",) * 5)
        if code and left_out != "all":
            names[code], stems[code] = name or a.name.replace("&", "and").replace("St. ", "Saint "), a.stem
    every = {code: fact_rules.country_values(row) for code, row in records.items()}
    kept = {code: dict(every[code]) for code in names if code in every}
    for code, values in kept.items():
        without = exceptions.get(code, ("",) * 5)[3].split(",")
        kept[code] = {relation: [] if relation in without else found for relation, found in values.items()}
    found = fact_rules.country_facts(names, kept, every.values())
    documents = []
    for code, values in sorted(kept.items()):
        told = {**values, "province": [f.value for f in found[code] if f.relation == "province"]}
        documents.append(
            (names[code], fact_rules.country_sentences(names[code], records[code], told), f"country:{code}")
        )
    return [_flag(name, stems[code], found.get(code)) for code, name in names.items()] + [
        _flag(a.name, a.stem, None) for a in pictures if a.stem.startswith(NATION)
    ], documents


def _flag(country: str, stem: str, facts: tuple[fact_rules.Fact, ...] | None) -> Entity:
    title = "" if facts is None else country
    flag_id, name = f"flag:{_slug(country)}", f"flag of {country}"
    return Entity(id=flag_id, name=name, title=title, kind="flag", category="flags", svg=stem, facts=facts or ())


def objects(pictures: list[sources.Art], leads: dict[str, sources.Lead]) -> list[Entity]:
    """Return the curated objects; raise ToolError when the table and the wheels disagree."""
    stems = {a.stem for a in pictures}
    table = sources.read_table("objects.tsv", 5)
    missing = [row[1] for row in table if row[0] not in stems or (row[3] and row[3] not in leads)]
    if missing:
        raise ToolError(f"objects.tsv names art or articles that the data wheels lack: {', '.join(missing[:5])}")
    things = {row[0]: (row[2], leads[row[3]]) for row in table if row[3]}
    words = {row[0]: row[1] for row in sources.read_table("quotes.tsv", 2)}
    quotes = {row[0]: words[row[3]] for row in table if row[3] in words}
    untrue = [things[stem][0] for stem, quote in quotes.items() if quote not in things[stem][1].extract]
    if untrue:
        raise ToolError(f"quotes.tsv quotes words that the leads lack, for: {', '.join(untrue[:5])}")
    found = fact_rules.object_facts(things, leads.values(), quotes)
    return [
        Entity(
            id=f"object:{_slug(name)}",
            name=name,
            title=name if title else "",
            kind="object",
            category=category,
            svg=stem,
            facts=found.get(stem, ()),
        )
        for stem, _, name, title, category in table
    ]


def shown_titles(entities: list[Entity], leads: dict[str, sources.Lead]) -> dict[str, str]:
    """Return, for articles of entities, the title to show: one name for one thing in every tool, letter for letter,

    because a small policy copies the title of what it found into its image search.
    """
    shown = {row[3]: row[2] for row in sources.read_table("objects.tsv", 5) if row[3]}
    originals = {row[0]: row[2] or row[1] for row in sources.read_table("flags.tsv", 5)}
    for e in entities:
        if e.kind == "flag" and e.title:
            original = originals.get(flag_code(e.svg)) or e.title
            if original in leads:
                shown[original] = e.title
    return shown


def with_lookalikes(entities: list[Entity], svgs: dict[str, str]) -> list[Entity]:
    pixels = thumbnails({e.id: svgs[e.svg] for e in entities})
    names = {e.id: e.name for e in entities}
    near: dict[str, tuple[str, ...]] = {}
    for category in sorted({e.category for e in entities}):
        near |= nearest({e.id: pixels[e.id] for e in entities if e.category == category}, names)
    return [e.model_copy(update={"lookalikes": near[e.id]}) for e in sorted(entities, key=lambda e: e.id)]
