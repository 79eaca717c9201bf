"""Near-duplicate requests: found by an exact set-similarity join, no hashing tricks (ours).

Two requests are near-duplicates when they have the same question, or the same masked template and the same scene, or
when the Jaccard similarity of their word 3-grams is at least NEAR.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from genevolve.dataset.errors import DatasetError
from genevolve.records import Request

NEAR = 0.9


def shingles(question: str) -> frozenset[str]:
    """Return the word 3-grams of a question; its character 3-grams where it is mostly not in Latin letters."""
    found = re.findall(r"[a-z0-9.']+", question.lower())
    letters = "".join(question.casefold().split())
    if 2 * sum(map(len, found)) < len(letters):
        return frozenset(letters[i : i + 3] for i in range(max(1, len(letters) - 2)))
    return frozenset(" ".join(found[i : i + 3]) for i in range(max(1, len(found) - 2)))


def masked(question: str, phrases: Iterable[str], lettering: str | None) -> str:
    """Return the question with what it names and what it letters taken out."""
    for phrase in sorted(phrases, key=len, reverse=True):
        question = question.replace(phrase, "<thing>")
    return question if lettering is None else question.replace(lettering, "<text>")


class Seen:
    """Questions seen so far; tells of each new one which earlier one it repeats."""

    def __init__(self) -> None:
        self._by_key: dict[str, str] = {}
        self._ids: list[str] = []
        self._sets: list[frozenset[str]] = []
        self._by_shingle: dict[str, list[int]] = {}

    def add(self, request: Request, template: str = "") -> str | None:
        """Return the id of an earlier near-duplicate, or None and remember the request."""
        twin = self.twin(request, template)
        if twin is None:
            self.remember(request, template)
        return twin

    def twin(self, request: Request, template: str = "") -> str | None:
        """Return the id of an earlier near-duplicate, or None."""
        keys = _keys(request, template)
        return next((self._by_key[k] for k in keys if k in self._by_key), None) or self._near(
            shingles(request.question)
        )

    def remember(self, request: Request, template: str = "") -> None:
        """Remember a request, whether it repeats an earlier one or not."""
        self._by_key.update(dict.fromkeys(_keys(request, template), request.id))
        words = shingles(request.question)
        number = len(self._ids)
        self._ids.append(request.id)
        self._sets.append(words)
        for shingle in _prefix(words):
            self._by_shingle.setdefault(shingle, []).append(number)

    def _near(self, words: frozenset[str]) -> str | None:
        tried: set[int] = set()
        for shingle in _prefix(words):
            for number in self._by_shingle.get(shingle, ()):
                if number not in tried:
                    tried.add(number)
                    other = self._sets[number]
                    both = len(words & other)
                    if both >= NEAR * (len(words) + len(other) - both):
                        return self._ids[number]
        return None


def _keys(request: Request, template: str) -> list[str]:
    keys = [request.question.casefold()]
    if template and request.scene is not None:
        keys.append(f"{template}|{request.scene.model_dump_json()}")
    return keys


def _prefix(words: frozenset[str]) -> list[str]:
    """Return shingles of which two sets of Jaccard >= NEAR share at least one: the first few in a fixed global order.

    Long shingles come first, for they are rare. (Prefix filtering, Chaudhuri et al. 2006.)
    """
    order = sorted(words, key=lambda s: (-len(s), s))
    return order[: len(order) - math.ceil(NEAR * len(order)) + 1]


def refuse_shared(bench: Iterable[Request], rest: Iterable[Request]) -> None:
    """Raise DatasetError when a bench request shares an entity, its question or a near-duplicate with any other split."""
    seen = Seen()
    entities: dict[str, str] = {}
    for r in rest:
        seen.add(r)
        for subject in r.scene.subjects if r.scene else ():
            entities[subject.entity] = r.id
    for r in bench:
        for subject in r.scene.subjects if r.scene else ():
            if subject.entity in entities:
                raise DatasetError(
                    f"Bench request {r.id} is about {subject.entity}, as request {entities[subject.entity]} is."
                )
        twin = seen.twin(r)
        if twin is not None:
            raise DatasetError(f"Bench request {r.id} is a near-duplicate of request {twin} of another split.")
