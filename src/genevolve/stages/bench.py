"""Stage `bench`: a policy on requests about entities it never saw, beside its parent where it has one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genevolve.records import Request, Trajectory, read_jsonl, write_jsonl
from genevolve.settings import Settings
from genevolve.stages.backends import reference_bytes
from genevolve.stages.bare import Bare
from genevolve.stages.crew import Crew, bench_sampling
from genevolve.stages.journal import NAME
from genevolve.stages.sample import sampling_metrics, step_seed

BLOCK = 64
"""Requests whose records are written together."""
Played = Callable[[list[Request], Callable[[int], Any]], list[Trajectory]]
"""Plays a block and tells how many rollouts are done."""
SEED_OFFSET = 99_991
"""Bench rollouts draw from a stream of their own, the same for every policy of a run: comparisons are paired."""


def run(
    settings: Settings, *, dataset: Path, policy: Path | None, baseline: Path | None = None, out: Path
) -> dict[str, Any]:
    """Play and score the bench into out/; return summaries and, with a baseline, the paired differences by half.

    Without a policy the generator is given the requests themselves (`stages/bare.py`).
    """
    from genevolve.bench.ability import abilities
    from genevolve.bench.score import bench_rows, overall_values, summarise_scores
    from genevolve.dataset.public import load_requests

    requests = spread(load_requests(dataset, "bench"), settings.bench.requests)
    played = play(settings, dataset, policy, requests, out)
    rows = bench_rows(requests, played)
    values = overall_values(rows)
    halves = {half: {r.id: values[r.id] for r in requests if r.half == half} for half in ("gate", "report")}
    (out / "scores.json").write_text(json.dumps({**halves, "all": values}, indent=1, sort_keys=True))
    metrics: dict[str, Any] = {"summary": summarise_scores(rows), "skills": abilities(requests, played)}
    metrics["sampling"] = sampling_metrics(played)
    metrics["images"] = [*contact(dataset, requests, played, out), *sorted({t.image for t in played if t.image})[:8]]
    metrics["traces"] = {"bench": played[:8]}
    if baseline is not None:
        metrics |= compare(settings, dataset, requests, played, baseline, out)
    return metrics


def spread(requests: list[Request], n: int | None) -> list[Request]:
    """Return n of the requests at even distances, in their order; all of them where n is None or too large."""
    if n is None or n >= len(requests):
        return requests
    return [requests[i * len(requests) // n] for i in range(n)]


def play(
    settings: Settings, dataset: Path, policy: Path | None, requests: list[Request], out: Path
) -> list[Trajectory]:
    """Play every request `bench.draws` times, in blocks; blocks already on disk are read, not played again."""
    draws = settings.bench.draws
    if policy is None:
        bare = Bare(settings, dataset, requests)
        return _blocks(requests, BLOCK, draws, out, lambda part, tell: bare.play(part, draws, out, tell))
    sampling, seed = bench_sampling(settings), step_seed(settings, SEED_OFFSET)
    with Crew(settings, dataset) as crew:
        block = max(1, len(requests)) if crew.served else BLOCK  # a server's records are on disk one by one
        return _blocks(
            requests,
            block,
            draws,
            out,
            lambda part, tell: crew.play(policy, part, draws, sampling, seed, images=out, on_done=tell),
        )


def _blocks(requests: list[Request], size: int, draws: int, out: Path, played: Played) -> list[Trajectory]:
    from tqdm import tqdm

    found: list[Trajectory] = []
    bar = tqdm(total=len(requests) * draws, desc="bench", unit="rollout")
    for start in range(0, len(requests), size):
        path = out / "blocks" / f"{start:05d}.jsonl"
        if path.exists():
            done = list(read_jsonl(path, Trajectory))
            bar.update(len(done))
        else:
            done = played(requests[start : start + size], bar.update)
            write_jsonl(path, done)
            (out / NAME).unlink(missing_ok=True)
        found += done
    bar.close()
    return found


def contact(dataset: Path, requests: list[Request], played: list[Trajectory], out: Path, n: int = 24) -> list[str]:
    """Write contact.png: the first n drawn requests spread over the bench, ground truth beside the policy's picture."""
    from genevolve.render.contact import contact_sheet

    first = [t for t in played if t.rollout == 0]
    drawn = [(r, t.image) for r, t in zip(requests, first, strict=True) if t.image and r.gt_image]
    if not drawn:
        return []
    few = drawn[:: max(1, len(drawn) // n)][:n]
    pairs = [(r.question, (dataset / str(r.gt_image)).read_bytes(), (out / image).read_bytes()) for r, image in few]
    (out / "contact.png").write_bytes(contact_sheet(pairs))
    return ["contact.png"]


def references(dataset: Path, played: list[Trajectory], out: Path) -> Path:
    """Write the pictures that programs refer to as files below out/references, for the report's cards; return that folder."""
    folder = out / "references"
    for file in sorted({f for t in played if t.program is not None for f in t.program.files}):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(reference_bytes(dataset, file))
    return folder


def compare(
    settings: Settings, dataset: Path, requests: list[Request], played: list[Trajectory], baseline: Path, out: Path
) -> dict[str, Any]:
    """Write the report beside the baseline's run; return {gate, report, all}: paired differences."""
    from genevolve.bench.report import Side, Yield, build_report
    from genevolve.bench.score import bench_rows, overall_values
    from genevolve.bench.stats import paired_bootstrap

    before = [t for path in sorted((baseline / "blocks").glob("*.jsonl")) for t in read_jsonl(path, Trajectory)]
    sides = [
        Side("before", bench_rows(requests, before), baseline),
        Side("after", bench_rows(requests, played), out),
    ]
    yields_file = dataset / "yields.json"
    table = json.loads(yields_file.read_text()) if yields_file.exists() else []
    report = build_report(
        sides[0],
        sides[1],
        dataset=dataset,
        world=references(dataset, [*before, *played], out),
        yields=[Yield(str(y["stage"]), int(y["in"]), int(y["kept"])) for y in table],
        resamples=settings.bench.resamples,
        seed=settings.seeds.run_seed,
    )
    report.write(out)
    scores = [overall_values(s.rows) for s in sides]
    found: dict[str, Any] = {}
    for half in ("gate", "report", None):
        ids = [r.id for r in requests if half is None or r.half == half]
        pair = [{i: s[i] for i in ids} for s in scores]
        result = paired_bootstrap(pair[0], pair[1], settings.bench.resamples, settings.seeds.run_seed).to_dict()
        found[half or "all"] = result
    return found
