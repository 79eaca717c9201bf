"""GenEvolve-Data from a seed: recipes -> teacher -> checks -> audit -> ground truth -> filter -> splits (method.md, section 2).

Every cell (split, track, guided or not) has a quota. Rounds draw as many recipes as the open quotas need, until all are
full or `dataset.recipes` are drawn; what passes the audit beyond a quota is counted as spare.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from genevolve.dataset.audit import Audit
from genevolve.dataset.duplicates import Seen
from genevolve.dataset.errors import DatasetError
from genevolve.dataset.public import Quarantined, Yield
from genevolve.dataset.recipe_pool import GT_SPLITS, SFT_SPLITS, Cell, Drawn, Draws, Unwritten
from genevolve.dataset.splits import check_splits, with_halves
from genevolve.dataset.workers import Taught, Teaches
from genevolve.records import EvalType, Request, Split, Trajectory, dump
from genevolve.settings import DatasetSizes

KNOWLEDGE_SHARE = 0.55
EXPECTED_YIELD = 0.66
"""Share of drawn recipes that a round expects to keep."""
QUESTION_CHARACTERS = (30, 480)


@dataclass
class Built:
    """All that a build makes, in memory; requests and trajectories in id order."""

    requests: list[Request] = field(default_factory=list)
    trajectories: dict[Split, list[Trajectory]] = field(default_factory=dict)
    audits: list[Audit] = field(default_factory=list)
    quarantine: list[Quarantined] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def leave_out(self, record_id: str, stage: str, reason: str, record: BaseModel) -> None:
        """Quarantine a record."""
        digest = hashlib.sha256(dump(record).encode()).hexdigest()[:16]
        self.quarantine.append(Quarantined(id=record_id, stage=stage, reason=reason, digest=digest))


@dataclass
class _Cellar:
    """What one cell has: kept records, and audited ones that wait."""

    quota: int
    kept: list[Taught] = field(default_factory=list)
    waiting: list[Taught] = field(default_factory=list)

    @property
    def open(self) -> int:
        return self.quota - len(self.kept)


def quotas(sizes: DatasetSizes) -> dict[Cell, int]:
    """Return how many requests each cell gets."""
    out: dict[Cell, int] = {}
    for split in get_args(Split):
        size = getattr(sizes, split)
        knowledge = round(KNOWLEDGE_SHARE * size)
        tracks: dict[EvalType, int] = {"knowledge_anchored": knowledge, "quality_anchored": size - knowledge}
        for track, n in tracks.items():
            guided = round(sizes.guide_fraction * n) if split in SFT_SPLITS else 0
            out[Cell(split, track, False)] = n - guided
            if guided:
                out[Cell(split, track, True)] = guided
    return out


def build(sizes: DatasetSizes, drawer: Draws, workshop: Teaches, gt_folder: Path) -> Built:
    """Return the dataset, ground truths written to `gt_folder`; raise DatasetError when `recipes` do not suffice."""
    built, seen = Built(), Seen()
    cells = {cell: _Cellar(quota) for cell, quota in quotas(sizes).items()}
    gt_folder.mkdir(parents=True, exist_ok=True)
    while any(c.open > 0 for c in cells.values()):
        recipes = _draw(cells, drawer, seen, built, sizes.recipes)
        for taught in workshop.teach(recipes):
            _sort_in(taught, cells, built)
        _keep_sft(cells)
        _keep_truths(cells, workshop, built, gt_folder)
    built.counts["spare sft"] = sum(len(c.waiting) for cell, c in cells.items() if cell.split in SFT_SPLITS)
    built.counts["spare gt"] = sum(len(c.waiting) for cell, c in cells.items() if cell.split in GT_SPLITS)
    _collect(cells, built)
    check_splits(built.requests)
    return built


def _draw(cells: dict[Cell, _Cellar], drawer: Draws, seen: Seen, built: Built, most: int) -> list[Drawn]:
    """Draw what the open quotas need, duplicates and ill-sized questions left out."""
    wanted: list[Cell] = []
    for cell, cellar in cells.items():
        short = cellar.open - len(cellar.waiting)
        for _ in range(math.ceil(short / EXPECTED_YIELD) if short > 0 else 0):
            if built.counts["drawn"] >= most:
                raise DatasetError(
                    f"{most} recipes do not fill the split '{cell.split}' ({cellar.open} of {cellar.quota} requests of "
                    f"the track {cell.track} are missing): raise dataset.recipes or ask for fewer."
                )
            built.counts["drawn"] += 1
            wanted.append(cell)
    recipes: list[Drawn] = []
    for recipe in drawer.draw_all(wanted):
        if isinstance(recipe, Unwritten):
            built.leave_out(recipe.id, "de-duplication, length", recipe.reason, recipe.seed)
        elif reason := _unfit(recipe, seen):
            built.leave_out(recipe.request.id, "de-duplication, length", reason, recipe.request)
        else:
            recipes.append(recipe)
    built.counts["distinct"] += len(recipes)
    return recipes


def _unfit(recipe: Drawn, seen: Seen) -> str:
    request = recipe.request
    low, high = QUESTION_CHARACTERS
    if not low <= len(request.question) <= high:
        return f"the question has {len(request.question)} characters, not {low} to {high}"
    twin = seen.add(request, recipe.template())
    return f"a near-duplicate of {twin}" if twin else ""


def _sort_in(taught: Taught, cells: dict[Cell, _Cellar], built: Built) -> None:
    request = taught.recipe.request
    built.counts["structural"] += taught.stage != "teacher"
    built.counts["checked"] += taught.stage not in ("teacher", "program checks")
    if taught.audit is not None:
        built.audits.append(taught.audit)
    if taught.stage:
        built.leave_out(request.id, taught.stage, taught.reason, taught.trajectory)
        return
    built.counts["audited"] += 1
    built.counts["audited sft"] += request.split in SFT_SPLITS
    assert request.eval_type is not None
    cells[Cell(request.split, request.eval_type, taught.recipe.guided)].waiting.append(taught)


def _keep_sft(cells: dict[Cell, _Cellar]) -> None:
    for cell, cellar in cells.items():
        if cell.split in SFT_SPLITS:
            n = cellar.open
            cellar.kept += cellar.waiting[:n]
            del cellar.waiting[:n]


def _keep_truths(cells: dict[Cell, _Cellar], workshop: Teaches, built: Built, folder: Path) -> None:
    """Render and filter as many waiting requests as each cell still needs."""
    tried: list[tuple[_Cellar, Taught]] = []
    for cell, cellar in cells.items():
        if cell.split in GT_SPLITS:
            n = cellar.open
            tried += [(cellar, t) for t in cellar.waiting[:n]]
            del cellar.waiting[:n]
    truths = workshop.truth([t.recipe.request for _, t in tried])
    for (cellar, taught), truth in zip(tried, truths, strict=True):
        request = taught.recipe.request
        built.counts["tried"] += 1
        built.counts["rendered"] += truth.png is not None
        if truth.png is None or truth.reason:
            stage = "visual filter" if truth.png else "ground truth"
            built.leave_out(request.id, stage, truth.reason, request)
            continue
        name = f"gt/{request.id}.png"
        (folder / f"{request.id}.png").write_bytes(truth.png)
        request = request.model_copy(update={"gt_image": name})
        cellar.kept.append(replace(taught, recipe=taught.recipe.asking(request)))


def _collect(cells: dict[Cell, _Cellar], built: Built) -> None:
    """Put kept requests and trajectories in split and id order; give the bench its halves."""
    kept = [t for cellar in cells.values() for t in cellar.kept]
    for split in get_args(Split):
        rows = sorted((t for t in kept if t.recipe.request.split == split), key=lambda t: t.recipe.request.id)
        if split in SFT_SPLITS:
            rows = _mixed(rows)
            built.trajectories[split] = [t.trajectory for t in rows]
        requests = [t.recipe.request for t in rows]
        built.requests += with_halves(requests) if split == "bench" else requests
    built.audits.sort(key=lambda a: a.id)
    built.quarantine.sort(key=lambda q: (q.id, q.stage))


def _mixed(rows: Sequence[Taught]) -> list[Taught]:
    """Return the rows in an order by hash, so that tracks and guides mix for whoever reads only a part."""
    return sorted(rows, key=lambda t: hashlib.sha256(t.recipe.request.id.encode()).hexdigest())


def yields(built: Built) -> list[Yield]:
    """Return the yield table: each stage's input is what an earlier stage kept."""
    c = built.counts
    sft = sum(len(t) for t in built.trajectories.values())
    split = Counter(r.split for r in built.requests)
    filtered = sum(split[s] for s in GT_SPLITS)
    gt = c["audited"] - c["audited sft"]

    def row(stage: str, taken: int, kept: int, spare: int = 0) -> Yield:
        return Yield.model_validate({"stage": stage, "in": taken, "kept": kept, "spare": spare})

    return [
        row("de-duplication, length", c["drawn"], c["distinct"]),
        row("teacher loop, structurally valid", c["distinct"], c["structural"]),
        row("program checks", c["structural"], c["checked"]),
        row("audit on six dimensions", c["checked"], c["audited"]),
        row("SFT export", c["audited sft"], sft, c["spare sft"]),
        row("ground truth rendered", gt, c["rendered"], c["spare gt"]),
        row("visual filter", c["rendered"], filtered),
        row("self-evolution and validation", filtered, split["evolve"] + split["validation"], split["bench"]),
        row("bench", split["bench"], split["bench"]),
    ]


def files_of(requests: Iterable[Request], trajectories: Iterable[Trajectory]) -> list[str]:
    """Return the picture files that records name, sorted."""
    found = {f for r in requests if r.gold_program for f in r.gold_program.files}
    for t in trajectories:
        found |= {str(row["file"]) for c in t.tool_calls if c.name == "image_search" for row in c.result}
    return sorted(found)
