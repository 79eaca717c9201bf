"""Fresh requests for a night whose pool is learnt out: new recipes about the entities of the split `evolve` (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genevolve.dataset.build import KNOWLEDGE_SHARE, QUESTION_CHARACTERS
from genevolve.dataset.duplicates import Seen, masked
from genevolve.dataset.errors import DatasetError
from genevolve.dataset.public import load_requests
from genevolve.dataset.recipe_pool import Cell, Drawer, Pool, Recipe
from genevolve.dataset.truth import make_truth
from genevolve.records import Request
from genevolve.settings import Settings
from genevolve.stages.backends import make_image_judge, make_renderer, world

TRIES = 4
"""At most so many recipes are drawn for each fresh request that is wanted."""


def can_draw(settings: Settings) -> bool:
    """Say whether fresh requests can be made and judged here: in the embedded world, drawn and judged without services."""
    embedded = (settings.world.search, settings.world.image_search, settings.render.backend, settings.judge.image)
    return embedded == ("embedded", "embedded", "compositor", "pixels")


def draw_fresh(
    settings: Settings, dataset: Path, known: Sequence[Request], n: int, night: int, seed: int
) -> list[Request]:
    """Return up to n new requests, ids `nNNN-...`; fewer where TRIES recipes a request did not give as many good ones.

    Their subjects are entities that the dataset's own `evolve` requests ask for, so none is a subject of bench or
    validation. None is a near-duplicate of a request of the dataset, of any split, or of `known` (what earlier nights
    drew); and the judge reads each one's gold program's picture in full, as it must for the dataset's own. A function of
    its arguments and the dataset.
    """
    own = load_requests(dataset)
    entities = sorted({s.entity for r in own if r.split == "evolve" and r.scene for s in r.scene.subjects})
    try:
        pool = Pool([world(dataset).entity(i) for i in entities])
    except DatasetError:  # a toy's pool: too few entities to make requests of
        return []
    drawer, seen = Drawer({"evolve": pool}, seed), Seen()
    for request in [*own, *known]:
        seen.add(request)
    found: list[Request] = []
    left, knowledge = TRIES * n, 0
    while len(found) < n and left > 0:
        batch = []
        for _ in range(min(left, n - len(found))):
            left -= 1
            asked = TRIES * n - left
            knowing = knowledge < KNOWLEDGE_SHARE * asked
            knowledge += knowing
            recipe = drawer.draw(Cell("evolve", "knowledge_anchored" if knowing else "quality_anchored"))
            if _fits(recipe, seen):
                batch.append(recipe.request.model_copy(update={"id": f"n{night:03d}-{recipe.request.id}"}))
        found += _readable(settings, dataset, batch)
    return found


def _fits(recipe: Recipe, seen: Seen) -> bool:
    low, high = QUESTION_CHARACTERS
    question = recipe.request.question
    if not low <= len(question) <= high:
        return False
    return seen.add(recipe.request, masked(question, [n.phrase() for n in recipe.named], recipe.scene.text)) is None


def _readable(settings: Settings, dataset: Path, requests: Sequence[Request]) -> list[Request]:
    """Return the requests whose ground truth the judge reads in full."""
    judge = make_image_judge(settings.judge.image, settings, dataset)
    truths = make_truth(make_renderer(settings), judge, world(dataset), requests, settings.seeds.run_seed)
    return [r for r, truth in zip(requests, truths, strict=True) if truth.png is not None and not truth.reason]
