"""`genevolve bench --judge NAME`, `genevolve rescore`: a bench run's stored pictures by another judge; no play, no render, resumable."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import genevolve
from genevolve.bench.rescore import BLOCK, judge_again
from genevolve.bench.score import DIMENSIONS, BenchRow, bench_rows, overall_values, summarise_scores
from genevolve.dataset.public import load_requests
from genevolve.errors import SettingsError, StageError
from genevolve.files import write_whole
from genevolve.judge.base import ImageJudge
from genevolve.records import Trajectory, read_jsonl
from genevolve.settings import Settings
from genevolve.stages.backends import make_image_judge
from genevolve.workspace import folder_digest

SERVED_BLOCK = 1024
"""Pictures at a time for a judge whose answers are cached one by one: no pause of a full service between blocks."""
EMBEDDED = ("pixels", "second")
COLUMNS = ("request_id", "rollout", "half", "eval_type", "category", "difficulty", "stored", "overall", *DIMENSIONS)


def run(settings: Settings, *, judge: str, bench: Path, dataset: Path, out: Path | None = None) -> dict[str, Any]:
    """Score `bench` with the judge of that name into `out` (default: BENCH.JUDGE beside it) and return the summary.

    out/judged.jsonl     a line per judgement, raw answers of a model included; the same command goes on from it
    out/scores.json      request id -> overall by half and for all, as in the bench folder
    out/summary.json     the summary, by split, and how many are missing and why
    out/requests.csv     a row per rollout, the stored overall beside this judge's
    """
    out = out or bench.with_name(f"{bench.name}.{judge}")
    if not (bench / "blocks").is_dir():
        raise StageError(f"There is no bench run in {bench}: run `genevolve bench --policy P --out {bench}` first.")
    check_scenes(judge, dataset)
    scorer = make_image_judge(judge, settings, dataset)
    served = judge == "vlm"
    again = judge_again(
        bench,
        dataset,
        scorer,
        keep=out / "judged.jsonl",
        identity=identity(judge, scorer, settings),
        block=SERVED_BLOCK if served else BLOCK,
    )
    stored = _stored(bench, again)
    values = overall_values(again)
    halves = {h: {r.request.id: values[r.request.id] for r in again if r.request.half == h} for h in ("gate", "report")}
    reasons = Counter(_reason(r) for r in again if r.valid and r.score is None)
    summary = {
        "judge": judge,
        "model": settings.judge.model if served else "",
        "bench": str(bench),
        "stored": summarise_scores(stored)["all"],
        "missing_reasons": dict(reasons.most_common(10)),
        **summarise_scores(again),
    }
    write_whole(out / "scores.json", json.dumps({**halves, "all": values}, indent=1, sort_keys=True))
    write_whole(out / "requests.csv", _table(stored, again))
    write_whole(out / "summary.json", json.dumps(summary, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return {"folder": str(out), **{k: summary[k] for k in ("judge", "model", "all", "missing_reasons")}}


def check_scenes(judge: str, dataset: Path) -> None:
    """Raise SettingsError for an embedded judge of requests that are not embedded ones."""
    bare = next((r.id for r in load_requests(dataset, "bench") if r.scene is None), None)
    if bare is not None and judge in EMBEDDED:
        raise SettingsError(
            f"Request {bare} of {dataset} has no scene, and the judge '{judge}' knows no other requests: take --judge vlm."
        )


def identity(name: str, judge: ImageJudge, settings: Settings) -> str:
    """Return a digest of what a judgement depends on beside request and pictures: our code, and a model and its wording."""
    from genevolve.judge.vlm import VlmImageJudge

    values: list[Any] = [name, folder_digest(Path(genevolve.__file__).parent / "judge")]
    if isinstance(judge, VlmImageJudge):
        values += [judge.chat.client.endpoint.url, judge.chat.model, judge.wording.rubric, judge.wording.max_tokens]
        values.append(judge.wording.options)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _stored(bench: Path, rows: Sequence[BenchRow]) -> list[BenchRow]:
    """Return the rows as the run's own judge scored them, in the order of `rows`."""
    played = [t for path in sorted((bench / "blocks").glob("*.jsonl")) for t in read_jsonl(path, Trajectory)]
    return bench_rows(list({r.request.id: r.request for r in rows}.values()), played)


def _reason(row: BenchRow) -> str:
    reward = row.trajectory.reward if row.trajectory else None
    told = reward.diagnostics.get("missing", "") if reward else ""
    if row.trajectory and row.trajectory.termination == "error":  # the policy's server failed: nothing to draw
        return str(told) or row.trajectory.failure
    return str(told) or "the generator drew nothing"


def _table(stored: Sequence[BenchRow], again: Sequence[BenchRow]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, "text_accuracy_na", "valid", "missing"])
    for old, new in zip(stored, again, strict=True):
        r, t, s = new.request, new.trajectory, new.score
        marks = [getattr(s, d) for d in DIMENSIONS] if s else [""] * len(DIMENSIONS)
        head = [r.id, t.rollout if t else "", r.half or "", r.eval_type, r.category, r.difficulty]
        missing = _reason(new) if new.valid and s is None else ""
        scores = [old.score.overall if old.score else "", s.overall if s else ""]
        writer.writerow([*head, *scores, *marks, s.text_accuracy_na if s else "", new.valid, missing])
    return stream.getvalue()
