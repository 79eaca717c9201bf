"""A model writes the recipes and requests: seeds drawn by chance, one question a recipe, and what is refused (ours).

A seed is a function of (data seed, cell, number in the cell), as the embedded recipes are, and so is its id; so a killed
build asks the same questions again and finds them paid. What the model writes is checked by rule (`fault`) and sent back
with what was wrong; near-duplicates are the build's matter, and an anchor belongs to the split that had it first.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genevolve.dataset.audit import REQUIREMENTS, WORDS
from genevolve.dataset.models.asking import PROMPTS, TRIES, Asking
from genevolve.dataset.recipe_pool import Cell, Unwritten
from genevolve.errors import SettingsError
from genevolve.records import Difficulty, EvalType, Record, Request, Split
from genevolve.scene import SKILLS
from genevolve.services import loop
from genevolve.services.chat import found_objects
from genevolve.services.client import CallError
from genevolve.services.fence import fenced
from genevolve.services.steady import Steady

LENGTH = (30, 480)
"""Characters of a question, as everywhere in the dataset (`dataset.build`)."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWZ"
CLAIMS: tuple[Split, ...] = ("bench", "validation", "evolve", "sft_heldout", "sft")
"""Whose recipes of a round take their anchors first: the small splits, which the large one would leave nothing."""
_FORBIDDEN = re.compile(
    r"\b(?:image|text|web) search|\bsearch(?:es|ed|ing)? (?:for|the web)|\breference (?:image|picture|photo)|IMG_\d|https?://"
    r"|www\.|<|\bquery_knowledge|image_search|" + "|".join(SKILLS),
    re.IGNORECASE,
)


class Lists(BaseModel):
    """What seeds are drawn from: `seeds.json`, or the user's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    categories: tuple[str, ...] = Field(min_length=1)
    families: tuple[str, ...] = Field(min_length=1)
    places: tuple[str, ...] = Field(min_length=1)


def lists(file: str) -> Lists:
    """Return the lists of a JSON file, or ours where it is empty. Raises SettingsError, one sentence."""
    path = Path(file) if file else PROMPTS / "seeds.json"
    try:
        return Lists.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as e:
        raise SettingsError(f"The seeds {path} cannot be read ({e.strerror}).") from e
    except ValidationError as e:
        first = e.errors()[0]
        raise SettingsError(f"The seeds {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from e
    except ValueError as e:
        raise SettingsError(f"The seeds {path} are not UTF-8 JSON.") from e


class Seed(Record):
    """What one request is to be made of."""

    ticket: str
    track: EvalType
    category: str
    family: str
    place: str
    initial: str
    dominant: str
    secondary: tuple[str, ...]
    difficulty: Difficulty


class Sheet(Seed):
    """A recipe: the seed, and what the writer made of it. recipes.jsonl has one of each kept request."""

    id: str
    split: Split
    question: str
    anchors: tuple[str, ...]
    factual_gap: str
    dominant_requirement: str
    secondary_requirements: tuple[str, ...]

    @property
    def requirements(self) -> int:
        return 1 + len(self.secondary_requirements)


class Written(BaseModel):
    """What the writer answers with."""

    model_config = ConfigDict(extra="ignore")
    anchors: tuple[str, ...] = Field(min_length=1, max_length=2)
    factual_gap: str = ""
    dominant_requirement: str = Field(min_length=3)
    secondary_requirements: tuple[str, ...]
    question: str


@dataclass(frozen=True)
class ModelRecipe:
    """One written recipe (a `recipe_pool.Drawn`)."""

    request: Request
    sheet: Sheet
    guided: bool = False

    def template(self) -> str:
        return ""

    def asking(self, request: Request) -> ModelRecipe:
        return replace(self, request=request)


def draw_seed(source: Lists, cell: Cell, data_seed: int, number: int) -> Seed:
    """Return seed `number` of a cell; categories take turns, all else is drawn."""
    ticket = f"{data_seed}|{cell.split}|{cell.track}|{number}"
    rng = Random(f"seed|{ticket}")
    start = Random(f"categories|{data_seed}|{cell.split}|{cell.track}").randrange(len(source.categories))
    difficulty: Difficulty = rng.choice(get_args(Difficulty))
    skills = rng.sample(SKILLS, {"easy": 2, "medium": 3, "hard": 4}[difficulty])
    return Seed(
        ticket=ticket,
        track=cell.track,
        category=source.categories[(start + number) % len(source.categories)],
        family=rng.choice(source.families),
        place=rng.choice(source.places),
        initial=rng.choice(LETTERS),
        dominant=skills[0],
        secondary=tuple(skills[1:]),
        difficulty=difficulty,
    )


def fault(seed: Seed, w: Written) -> str:
    """Return the first rule that a written recipe breaks, or an empty string."""
    words, length = len(w.question.split()), len(w.question)
    said = f" {_words(w.question)} "
    named = [f" {plain(a)} " in said for a in w.anchors]
    requirements = 1 + len(w.secondary_requirements)
    if not LENGTH[0] <= length <= LENGTH[1]:
        return f"the question has {length} characters, not {LENGTH[0]} to {LENGTH[1]}"
    if not WORDS[0] <= words <= WORDS[1]:
        return f"the question has {words} words, not {WORDS[0]} to {WORDS[1]}"
    if any(not c.isprintable() for c in w.question) or "<|" in w.question:
        return "the question is not one line of plain text"
    if found := _FORBIDDEN.search(w.question):
        return f"the question says '{found.group()}', which belongs to the agent's work"
    if not REQUIREMENTS[0] <= requirements <= REQUIREMENTS[1]:
        return f"there are {requirements} requirements, not {REQUIREMENTS[0]} to {REQUIREMENTS[1]}"
    if any(not plain(a) or len(a) > 100 for a in w.anchors):
        return "an anchor is no name"
    if seed.track == "knowledge_anchored":
        if not w.factual_gap.strip():
            return "there is no factual gap"
        return "the question names the anchor that is to be found out" if named[0] else ""
    if w.factual_gap.strip():
        return "a quality-anchored request has no factual gap"
    return "" if all(named) else "the question does not name every anchor"


def plain(name: str) -> str:
    """Return a name by which anchors are compared: its words, lower case, without the article."""
    return re.sub(r"^(?:the|an|a) ", "", _words(name))


class Writer:
    """Draws recipes (a `recipe_pool.Draws`), as many at a time as the service allows."""

    def __init__(self, asking: Asking, source: Lists, data_seed: int) -> None:
        self.asking, self.source, self.data_seed = asking, source, data_seed
        self._numbers: Counter[Cell] = Counter()
        self._owner: dict[str, Split] = {}
        self._steady = Steady("The build")

    def draw_all(self, cells: Sequence[Cell]) -> list[ModelRecipe | Unwritten]:
        """Return the next recipe of each cell, in order. Raises ServiceError, BudgetError and TryLaterError."""
        drawn = []
        for cell in cells:
            number = self._numbers[cell]
            self._numbers[cell] += 1
            place = 100_000 * get_args(Split).index(cell.split) + number + 1
            drawn.append((cell, f"{cell.track[0]}-{place:06d}", draw_seed(self.source, cell, self.data_seed, number)))
        at_once = self.asking.chat.client.endpoint.concurrency
        found = loop.spread((self._written(*row) for row in drawn), at_once)
        for i in sorted(range(len(found)), key=lambda i: CLAIMS.index(drawn[i][0].split)):
            recipe = found[i]
            if isinstance(recipe, ModelRecipe) and (reason := self._claim(recipe.sheet)):
                found[i] = Unwritten(recipe.request.id, reason, recipe.sheet)
        return found

    def _claim(self, sheet: Sheet) -> str:
        """Give the anchors to the recipe's split; return which of them another split has, or an empty string."""
        names = {plain(a): a for a in sheet.anchors}
        for name, anchor in names.items():
            if self._owner.get(name, sheet.split) != sheet.split:
                return f"its anchor '{anchor}' belongs to the split {self._owner[name]}"
        self._owner.update(dict.fromkeys(names, sheet.split))
        return ""

    async def _written(self, cell: Cell, recipe_id: str, seed: Seed) -> ModelRecipe | Unwritten:
        def check(written: Written, raw: str) -> None:
            if len(found_objects(raw)) > 1:
                raise ValueError("there are several objects; answer with one")
            if reason := fault(seed, written):
                raise ValueError(reason)

        heard: list[str] = []
        ask = self.asking.ask(f"{fenced('seed', seed.model_dump(mode='json'))}\n\nAnswer with the JSON object alone.")
        try:
            w, _ = await self.asking.chat.object(ask, Written, family="recipe", tries=TRIES, check=check, heard=heard)
        except CallError as e:
            if heard:
                self._steady.answered()
            else:
                self._steady.failed(e)
            return Unwritten(recipe_id, f"the writer gave no recipe: {e.reason}", seed)
        self._steady.answered()
        values: dict[str, Any] = {**seed.model_dump(), **w.model_dump(), "id": recipe_id, "split": cell.split}
        request = Request(
            id=recipe_id,
            question=w.question,
            eval_type=cell.track,
            category=seed.category,
            difficulty=seed.difficulty,
            split=cell.split,
        )
        return ModelRecipe(request, Sheet.model_validate(values))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
