"""Scores the stored pictures of a bench run with another judge; nothing is played or drawn again (ours)."""

from __future__ import annotations

from pathlib import Path

from genevolve.bench.score import BenchRow, bench_rows, overall_values
from genevolve.dataset.public import load_requests
from genevolve.judge.base import ImageJudge, JudgeJob
from genevolve.records import Request, Reward, Trajectory, read_jsonl


def rescore(bench: Path, dataset: Path, judge: ImageJudge) -> dict[str, float | None]:
    """Return request id -> overall by this judge, as `all` in the folder's scores.json is by the reward's judge.

    A rollout without a program scores 0; a picture that the judge fails on is missing, and the request None when it has no
    other. Raises BenchError when the folder's trajectories are no answers to the dataset's bench requests.
    """
    return overall_values(judge_again(bench, dataset, judge))


def judge_again(bench: Path, dataset: Path, judge: ImageJudge) -> list[BenchRow]:
    """Return a row per rollout of a bench folder (blocks/*.jsonl and the pictures they name), scored by this judge."""
    played = [t for path in sorted((bench / "blocks").glob("*.jsonl")) for t in read_jsonl(path, Trajectory)]
    answered = {t.request_id for t in played}
    requests = {r.id: r for r in load_requests(dataset, "bench") if r.id in answered}
    bench_rows(list(requests.values()), played)  # raises before the slow part when they do not fit together
    drawn = [t for t in played if t.image]
    scores = judge.score([_job(requests[t.request_id], t, bench, dataset) for t in drawn])
    by_id = {t.id: score for t, score in zip(drawn, scores, strict=True)}
    judged = [t.model_copy(update={"reward": Reward(image=by_id.get(t.id))}) for t in played]
    return bench_rows(list(requests.values()), judged)


def _job(request: Request, played: Trajectory, bench: Path, dataset: Path) -> JudgeJob:
    return JudgeJob(request, _bytes(bench / str(played.image)), _bytes(dataset / str(request.gt_image)))


def _bytes(path: Path) -> bytes:
    """Return a picture's bytes, or none when it is lost: the judge says that it cannot be read, and it is missing."""
    return path.read_bytes() if path.is_file() else b""
