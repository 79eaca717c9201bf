"""The three tools of the embedded default, answered from a built `World` (ours): deterministic, no network."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from genevolve.scene import SKILLS
from genevolve.tools.base import ImageHit, SearchHit, ToolError
from genevolve.tools.sources import ascii_text, tokens
from genevolve.tools.world import World

SNIPPET_WORDS = 14
TOP_K_MOST = 10
MOST_CHARACTERS = 2000
MOST_TERMS = 16
"""A query is cut to its first 2000 characters and 16 different words, so that none is slow."""

# Words of asking, not of fact: they say nothing about which document is meant.
_ASKING = """
a about an and are as at be been by called define defined defines does describe described describes encyclopaedia
encyclopedia find for from had has have how in into is it its known me named names of on or says show tell that the their
there thing this to was what when where which who whose why with
"""
STOP_WORDS = frozenset(_ASKING.split())


def terms(query: str) -> list[str]:
    """Return the different words of a query in order, without words of asking (kept when there is nothing else)."""
    found = list(dict.fromkeys(tokens(ascii_text(query[:MOST_CHARACTERS]))))
    return ([t for t in found if t not in STOP_WORDS] or found)[:MOST_TERMS]


def _limit(top_k: int) -> int:
    return max(1, min(int(top_k), TOP_K_MOST))


class EmbeddedSearch:
    """BM25 over encyclopedia leads and country fact documents."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._documents = int(world.database.execute("SELECT count(*) FROM docs").fetchone()[0])
        self._weights: dict[str, float] = {}

    def search(self, query: str, top_k: int = 5) -> list[SearchHit]:
        """Return at most top_k (1..10) articles, best first, one hit a title; any text is a valid query."""
        asked = terms(query)
        if not asked:
            return []
        weights = {t: self._weight(t) for t in asked}
        limit = _limit(top_k)
        rows = self.world.database.execute(
            "SELECT title, url, body FROM docs WHERE docs MATCH ? ORDER BY bm25(docs, 2.0, 1.0, 1.0), rowid LIMIT ?",
            (" OR ".join(f'"{t}"' for t in asked), 3 * limit),
        )
        hits: dict[str, SearchHit] = {}
        for title, url, body in rows:
            if title not in hits:
                hits[title] = SearchHit(title=title, url=url, snippet=snippet(body, weights))
            if len(hits) == limit:
                break
        return list(hits.values())

    def _weight(self, term: str) -> float:
        """Return how rare a word is (inverse document frequency, >= 0)."""
        if term not in self._weights:
            row = self.world.database.execute("SELECT doc FROM vocabulary WHERE term = ?", (term,)).fetchone()
            self._weights[term] = math.log(1 + self._documents / (1 + (row[0] if row else 0)))
        return self._weights[term]


def snippet(body: str, weights: dict[str, float]) -> str:
    """Return at most SNIPPET_WORDS words that end at an asked word, of the sentence that holds the rarest of them.

    Of the windows with the most asked words the earliest counts. What was asked stands at the end, next to the title
    that answers it in the observation.
    """
    best, best_value = "", -1.0
    for sentence in re.split(r"\n+|(?<=[.!?])\s+(?=[A-Z0-9\"(])", body):
        value = sum(weights.get(w, 0.0) for w in sorted(set(tokens(sentence))))  # sorted: a sum depends on its order
        if value > best_value and sentence.strip():
            best, best_value = sentence, value
    parts = best.split()
    found = [set(tokens(p)) & weights.keys() for p in parts]
    ends = [i + 1 for i, f in enumerate(found) if f] or [min(len(parts), SNIPPET_WORDS)]
    values = [sum(weights[w] for w in sorted(set().union(*found[max(0, e - SNIPPET_WORDS) : e]))) for e in ends]
    end = ends[next(i for i, v in enumerate(values) if v >= max(values) - 1e-9)]
    return " ".join(parts[max(0, end - SNIPPET_WORDS) : end]).rstrip(".,;:")


_Words = frozenset[str]
_Index = tuple[list[tuple[str, str]], dict[str, list[int]], list[tuple[_Words, _Words]]]


class EmbeddedImageSearch:
    """Pictures by their names. The one that is named comes among look-alikes, at a place the query decides."""

    def __init__(self, world: World) -> None:
        self.world = world

    @cached_property
    def _index(self) -> _Index:
        """(file, title) rows; row numbers by word; (title words, alias words) by row."""
        rows: list[tuple[str, str]] = []
        bags: list[tuple[_Words, _Words]] = []
        postings: dict[str, list[int]] = {}
        pictures = self.world.database.execute("SELECT file, title, alias FROM art ORDER BY file")
        for number, (file, title, alias) in enumerate(pictures):
            rows.append((file, title))
            bag = (frozenset(terms(title)), frozenset(terms(alias)))
            bags.append(bag)
            for word in bag[0] | bag[1]:
                postings.setdefault(word, []).append(number)
        return rows, postings, bags

    def search(self, query: str, top_k: int = 5) -> list[ImageHit]:
        """Return at most top_k (1..10) pictures that the words of the query name, and their look-alikes; [] when it names none."""
        rows, postings, bags = self._index
        asked = _singular_too(terms(query))
        rarity = {t: math.log(1 + len(rows) / len(postings[t])) for t in sorted(asked) if t in postings}
        scores: Counter[int] = Counter()
        for number in sorted({n for t in rarity for n in postings[t]}):
            scores[number] = round(1e6 * max(_overlap(bag, asked, rarity) for bag in bags[number]))
        ranked = sorted(scores, key=lambda n: (-scores[n], n))
        if not ranked:
            return []
        limit = _limit(top_k)
        near = self._lookalikes(rows[ranked[0]][0])
        chosen = list(dict.fromkeys([ranked[0], *near[: max(0, limit - 2)], *ranked[1:], *near]))[:limit]
        key = " ".join(terms(query))
        chosen.sort(key=lambda n: hashlib.sha256(f"{key}|{rows[n][0]}".encode()).digest())
        return [ImageHit(title=rows[n][1], url=f"https://openmoji.org/{rows[n][0]}", file=rows[n][0]) for n in chosen]

    def _lookalikes(self, file: str) -> list[int]:
        entity = self.world.entity_of_file.get(file)
        return [self._number[self.world.entity(i).file] for i in entity.lookalikes] if entity else []

    @cached_property
    def _number(self) -> dict[str, int]:
        return {file: n for n, (file, _) in enumerate(self._index[0])}


def _singular_too(asked: Sequence[str]) -> frozenset[str]:
    return frozenset(asked) | {t[:-1] for t in asked if t.endswith("s") and len(t) > 3}


def _overlap(bag: frozenset[str], asked: frozenset[str], rarity: dict[str, float]) -> float:
    """Score a name: rarity of its asked words, less a little for each word of it that was not asked."""
    return sum(rarity[t] for t in sorted(bag & asked)) - 0.5 * len(bag - asked)


class SkillTexts:
    """The eight generation skills as Markdown files; a user may give another folder. A front matter and the space round the
    text behind it are left out; a file without one is read to the letter."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else Path(__file__).parent.parent / "agent" / "skills"
        if not self.folder.is_dir():
            raise ToolError(f"{self.folder}: there is no folder with skill texts here")

    @cached_property
    def texts(self) -> dict[str, str]:
        """Bodies by skill name (the file's name), in alphabetical order."""
        return {p.stem: _body(p.read_text(encoding="utf-8")) for p in sorted(self.folder.glob("*.md"))}

    def read(self, skill_name: str) -> str:
        """Return a skill's guidance; raise ToolError naming the skills for an unknown one."""
        name = skill_name.strip()
        if name not in self.texts:
            raise ToolError(f"There is no skill {name[:40]!r}. The skills are: {', '.join(self.texts)}.")
        return self.texts[name]


def missing_skills(folder: str | Path) -> list[str]:
    """Return the files of the eight skills that a folder lacks."""
    return [name for skill in SKILLS if not (Path(folder) / (name := f"{skill}.md")).is_file()]


def _body(markdown: str) -> str:
    text = markdown.replace("\r\n", "\n")
    match = re.match(r"---\n.*?\n---\n(.*)", text, re.DOTALL)
    return match[1].strip() if match else text
