"""A bench run of ours as the release's results.json, for its generate_images.py and evaluate_images.py (docs/data.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genevolve.bench.score import DIMENSIONS, BenchError, bench_rows
from genevolve.dataset.public import load_requests
from genevolve.dataset.release.exporting import copy, public_columns, source_columns
from genevolve.dataset.release.layout import refuse_out
from genevolve.files import write_whole
from genevolve.records import Score, Trajectory, read_jsonl


def export_results(
    run: Path, dataset: Path, out: Path, reference: Callable[[str], tuple[bytes, str]]
) -> dict[str, int]:
    """Write a bench folder's run as results.json with pictures, references and ground truths; return counts.

    `reference`: file of a program -> (its bytes, '.png' or another ending). All paths in it are relative to its folder, which
    is where the release's scorer looks first. Raises BenchError when the folder is no bench run, or has several rollouts a request.
    """
    played = [t for path in sorted((run / "blocks").glob("*.jsonl")) for t in read_jsonl(path, Trajectory)]
    if not played:
        raise BenchError(f"{run} holds no blocks/*.jsonl, so it is no bench run.")
    if several := next((t.request_id for t in played if t.rollout), None):
        raise BenchError(f"Request {several} has several rollouts; the release's results.json holds one a request.")
    refuse_out(run, out)
    requests = {r.id: r for r in load_requests(dataset, "bench")}
    bench_rows(list(requests.values()), played)  # raises where they do not fit together
    columns = source_columns(dataset)
    new = out.with_name(f".{out.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        rows = []
        for t in played:
            request = requests[t.request_id]
            row = public_columns(request, columns.get(request.id)) | _answer(t, new, reference)
            if request.gt_image:
                row["gt_image"] = f"gt/{Path(request.gt_image).name}"
                copy(dataset / request.gt_image, new / row["gt_image"])
            if t.image:
                name = f"images/{Path(t.image).name}"
                copy(run / t.image, new / name)
                row |= {"image_path": name, "output_path": name, "success": True, "image_status": "ok"}
            else:
                row |= {"image_path": "", "output_path": "", "success": False, "image_status": "error: no picture"}
            rows.append(row)
        write_whole(new / "results.json", json.dumps(rows, ensure_ascii=False, indent=2))
        new.replace(out)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return {"results.json": len(rows), "pictures": sum(bool(t.image) for t in played)}


def _answer(t: Trajectory, out: Path, reference: Callable[[str], tuple[bytes, str]]) -> dict[str, Any]:
    """Return what the release's agent and scorer write about one trajectory; reference files go to out/references."""
    shown = {str(r["img_id"]): r for c in t.tool_calls if c.name == "image_search" for r in c.result if "img_id" in r}
    references = []
    for i, r in enumerate(t.program.reference_images if t.program else ()):
        assert t.program is not None
        path = ""
        if i < len(t.program.files):
            data, ending = reference(t.program.files[i])
            path = f"references/{hashlib.sha256(data).hexdigest()[:20]}{ending}"
            if not (out / path).exists():
                write_whole(out / path, data)
        hit = shown.get(r.img_id, {})
        known = {"url": str(hit.get("url", "")), "title": str(hit.get("title", "")), "page_url": ""}
        references.append({"img_id": r.img_id, "note": r.note, "local_path": path, **known})
    ends = {"answer": "answer", "rounds": "max_rounds_reached", "error": "error"}
    row: dict[str, Any] = {
        "prompt": t.question,
        "gen_prompt": t.program.gen_prompt if t.program else "",
        "reference_images": references,
        "messages": [m.model_dump() for m in t.messages],
        "termination": ends.get(t.termination, "no_answer"),
        "rounds": sum(m.role == "assistant" for m in t.messages),
        "error": t.failure or None,
    }
    score = t.reward.image if t.reward else None
    return row if score is None else row | {"eval_success": True, "scores": _scores(score)}


def _scores(score: Score) -> dict[str, Any]:
    """Return a score in the shape of the release's evaluator."""
    out: dict[str, Any] = {"rationale": score.rationale, **{d: getattr(score, d) for d in DIMENSIONS}}
    out["overall"] = round(score.overall, 2)
    return out | {"text_accuracy_na": True} if score.text_accuracy_na else out
