"""The bench report: JSON, CSV, and one self-contained HTML page with the best gains and the worst losses."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genevolve.bench.page import render_page
from genevolve.bench.score import DIMENSIONS, BenchRow, overall_values, summarise_scores
from genevolve.bench.stats import Paired, paired_bootstrap
from genevolve.files import write_whole
from genevolve.records import Score


@dataclass(frozen=True)
class Side:
    """One policy's run of the bench; `images` is the folder that `Trajectory.image` is relative to."""

    name: str
    rows: Sequence[BenchRow]
    images: Path | None = None


@dataclass(frozen=True)
class Yield:
    """A line of the data's yield table."""

    stage: str
    before: int
    kept: int


@dataclass(frozen=True)
class BenchReport:
    """Everything the report says; `write` puts it on disk."""

    title: str
    before: Side
    after: Side
    paired: Paired
    summaries: dict[str, Any]
    halves: dict[str, Paired]
    dataset: Path | None = None
    world: Path | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    yields: Sequence[Yield] = ()
    cases: int = 6

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the report, ready for JSON."""
        return {
            "title": self.title,
            "meta": dict(self.meta),
            "before": self.paired.before,
            "after": self.paired.after,
            "diff": self.paired.diff,
            "ci": list(self.paired.ci),
            "n": self.paired.n,
            "paired": self.paired.to_dict(),
            "halves": {name: p.to_dict() for name, p in self.halves.items()},
            "summaries": self.summaries,
            "curves": {name: [list(p) for p in points] for name, points in self.curves.items()},
            "yield": [{"stage": y.stage, "in": y.before, "kept": y.kept} for y in self.yields],
        }

    def changes(self) -> list[tuple[str, float]]:
        """Return (request id, after - before) of the paired requests, the largest gain first."""
        before, after = overall_values(self.before.rows), overall_values(self.after.rows)
        rows = [(key, a - b) for key, b in before.items() if b is not None and (a := after[key]) is not None]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def write(self, folder: str | Path) -> dict[str, Path]:
        """Write report.html, report.json and requests.csv, each whole or not at all; return their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "report.json": json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n",
            "requests.csv": _csv(self.before, self.after),
            "report.html": render_page(self),
        }
        return {name: _write(folder / name, text) for name, text in texts.items()}


def build_report(
    before: Side,
    after: Side,
    *,
    title: str = "GenEvolve bench",
    dataset: Path | None = None,
    world: Path | None = None,
    meta: Mapping[str, str] | None = None,
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    yields: Sequence[Yield] = (),
    resamples: int = 10_000,
    seed: int = 0,
    cases: int = 6,
) -> BenchReport:
    """Score and compare two runs of one bench.

    `dataset` is the folder of `Request.gt_image`, `world` the one of `Program.files`; without them the page says
    there is no picture. `cases` bounds the side-by-side cards of each kind. Raises BenchError when the two runs are
    not on the same requests.
    """
    scores = overall_values(before.rows), overall_values(after.rows)
    half_of = {r.request.id: r.request.half for r in before.rows}
    halves: dict[str, Paired] = {}
    for half in sorted({h for h in half_of.values() if h}):
        chosen = [{k: v for k, v in side.items() if half_of.get(k) == half} for side in scores]
        if sum(chosen[0][k] is not None and chosen[1].get(k) is not None for k in chosen[0]) >= 2:
            halves[half] = paired_bootstrap(chosen[0], chosen[1], resamples, seed)
    return BenchReport(
        title=title,
        before=before,
        after=after,
        paired=paired_bootstrap(*scores, resamples, seed),
        summaries={"before": summarise_scores(before.rows), "after": summarise_scores(after.rows)},
        halves=halves,
        dataset=dataset,
        world=world,
        meta=meta or {},
        curves=curves or {},
        yields=yields,
        cases=cases,
    )


def _csv(before: Side, after: Side) -> str:
    """One line per request, rollout and side; text that a spreadsheet would run as a formula is defused."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ("id", "policy", "rollout", "eval_type", "category", "difficulty", "half", "valid", "overall")
    writer.writerow([*head, "overall_renormalised", *DIMENSIONS, "text_accuracy_na", "question", "gen_prompt"])
    for policy, side in (("before", before), ("after", after)):
        for row in side.rows:
            r, t = row.request, row.trajectory
            prompt = t.program.gen_prompt if t and t.program else ""
            known = [r.eval_type or "", _cell(r.category or ""), r.difficulty or "", r.half or ""]
            facts = [r.id, policy, t.rollout if t else "", *known]
            writer.writerow([*facts, int(row.valid), *_numbers(row.score), _cell(r.question), _cell(prompt)])
    return out.getvalue()


def _numbers(score: Score | None) -> list[float | int | str]:
    if score is None:
        return [""] * (3 + len(DIMENSIONS))
    dimensions = [getattr(score, d) for d in DIMENSIONS]
    return [score.overall, score.overall_renormalised, *dimensions, int(score.text_accuracy_na)]


def _cell(text: str) -> str:
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _write(path: Path, text: str) -> Path:
    return write_whole(path, text.encode("utf-8", "replace"))
