"""What the embedded world holds, and how often its tools find what a clue or a name asks for (ours).

python -m genevolve.tools.report WORLD_FOLDER        prints both as one JSON object
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from genevolve.tools.sources import tokens

if TYPE_CHECKING:
    from genevolve.tools.world import World


def world_report(world: World) -> dict[str, Any]:
    """Return counts: entities by kind and category, all and with facts; facts by relation; pictures; articles."""
    everything = list(world.entities.values())
    return {
        "entities": len(everything),
        "with_facts": sum(bool(e.facts) for e in everything),
        "by_kind": dict(Counter(e.kind for e in everything)),
        "by_category": _counts(e.category for e in everything),
        "with_facts_by_category": _counts(e.category for e in everything if e.facts),
        "facts_by_relation": _counts(f.relation for e in everything for f in e.facts),
        "documents": world.database.execute("SELECT count(*) FROM docs").fetchone()[0],
        "pictures": world.database.execute("SELECT count(*) FROM art").fetchone()[0],
        "digest": world.digest,
    }


def split_report(world: World, splits: Mapping[Any, list[str]]) -> dict[str, Any]:
    """Return, by split, how many entities there are, how many have facts, and how many each category has."""
    out = {}
    for split, ids in splits.items():
        members = [world.entity(i) for i in ids]
        facts = sum(bool(e.facts) for e in members)
        out[str(split)] = {"entities": len(ids), "with_facts": facts} | _counts(e.category for e in members)
    return out


def search_report(world: World, stride: int = 1) -> dict[str, Any]:
    """Return hit rates over the facts of every stride-th entity; the query is the clue without its leading "the".

    `hit@k`: the entity's title is among the first k results. `read@5`: it is, and the snippet shows the fact's words.
    """
    from genevolve.tools.embedded import EmbeddedSearch

    engine = EmbeddedSearch(world)
    sums: dict[str, Counter[str]] = {}
    seconds: list[float] = []
    for entity in list(world.entities.values())[::stride]:
        for fact in entity.facts:
            start = time.perf_counter()
            hits = engine.search(fact.clue.removeprefix("the "))
            seconds.append(time.perf_counter() - start)
            right = [h for h in hits if h.title == entity.title]
            read = any(set(tokens(fact.value)) <= set(tokens(h.snippet)) for h in right)
            for key in (fact.relation, "all"):
                row = {"n": 1, "hit@1": int(hits[:1] == right[:1] != []), "hit@5": len(right), "read@5": int(read)}
                sums.setdefault(key, Counter()).update(row)
    rates = {
        k: {"n": c["n"]} | {m: round(c[m] / c["n"], 4) for m in ("hit@1", "hit@5", "read@5")} for k, c in sums.items()
    }
    return {**rates, "ms_mean": round(1e3 * sum(seconds) / len(seconds), 2)}


def image_report(world: World) -> dict[str, Any]:
    """Return how often an entity's picture is among five results for its name, and at which places it stands."""
    from genevolve.tools.embedded import EmbeddedImageSearch

    engine = EmbeddedImageSearch(world)
    places: Counter[int] = Counter()
    start = time.perf_counter()
    for entity in world.entities.values():
        places[next((i for i, h in enumerate(engine.search(entity.name), 1) if h.file == entity.file), 0)] += 1
    n = len(world.entities)
    ms = round(1e3 * (time.perf_counter() - start) / n, 2)
    return {"n": n, "hit@5": round(1 - places[0] / n, 4), "places": dict(sorted(places.items())), "ms_mean": ms}


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def main(folder: str) -> None:
    from genevolve.tools.splits import split_entities
    from genevolve.tools.world import World

    world = World.open(folder)
    report = {"world": world_report(world), "search": search_report(world), "images": image_report(world)}
    print(json.dumps(report | {"splits": split_report(world, split_entities(world, seed=0))}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
