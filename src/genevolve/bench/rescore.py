"""Scores the stored pictures of a bench run with another judge; nothing is played or drawn again (ours).

With a file to keep them, judgements are appended to it block by block, and what stands there for the same picture, ground
truth and judge is not judged again. A judgement that failed is kept with its reason, and tried again the next time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from pydantic import Field

from genevolve.bench.score import BenchError, BenchRow, bench_rows, overall_values
from genevolve.dataset.public import load_requests
from genevolve.files import Picture
from genevolve.judge.base import ImageJudge, JudgeJob
from genevolve.records import Record, Request, Reward, Score, Trajectory, dump, parse, read_jsonl

BLOCK = 64
"""Pictures judged between two looks at the disk: what a kill can lose of a judge without a cache of its own."""


class Judged(Record):
    """One picture, judged. `key` stands for picture, ground truth, request and judge."""

    id: str
    key: str
    score: Score | None = None
    reason: str = ""
    note: dict[str, Any] = Field(default_factory=dict)


def rescore(bench: Path, dataset: Path, judge: ImageJudge) -> dict[str, float | None]:
    """Return request id -> overall by this judge, as `all` in the folder's scores.json is by the reward's judge.

    A rollout without a program scores 0; a picture that the judge fails on is missing, and the request None when it has no
    other. Raises BenchError when the folder's trajectories are no answers to the dataset's bench requests.
    """
    return overall_values(judge_again(bench, dataset, judge))


def judge_again(
    bench: Path, dataset: Path, judge: ImageJudge, *, keep: Path | None = None, identity: str = "", block: int = BLOCK
) -> list[BenchRow]:
    """Return a row per rollout of a bench folder (blocks/*.jsonl and the pictures they name), scored by this judge.

    `keep`: the file of judgements to go on with; `identity` then says which judge this is, wording included. Why a picture
    is missing stands in its trajectory's `reward.diagnostics["missing"]`.
    """
    played = [t for path in sorted((bench / "blocks").glob("*.jsonl")) for t in read_jsonl(path, Trajectory)]
    if not played:
        raise BenchError(f"There is no bench run in {bench}: blocks/*.jsonl are missing or empty.")
    answered = {t.request_id for t in played}
    requests = {r.id: r for r in load_requests(dataset, "bench") if r.id in answered}
    bench_rows(list(requests.values()), played)  # raises before the slow part when they do not fit together
    drawn = [t for t in played if t.image]
    rows = [(requests[t.request_id], str(t.image)) for t in drawn]
    with _kept(keep) as book:
        found = {row.key: row for row in book.rows()}
        jobs = _Jobs(bench, dataset, rows, None if keep is None else identity)
        known = [found.get(jobs.key(i)) if found else None for i in range(len(jobs))]
        wanted = [i for i, row in enumerate(known) if row is None or row.score is None]
        by_id = {t.id: row for t, row in zip(drawn, known, strict=True) if row is not None}
        for start in range(0, len(wanted), block):
            part = wanted[start : start + block]
            scores = judge.score(jobs.only(part))
            told = zip(part, scores, judge.reasons, judge.notes, strict=True)
            judgements = [Judged(id=drawn[i].id, key=jobs.key(i), score=s, reason=r, note=n) for i, s, r, n in told]
            book.add(judgements)
            by_id |= {row.id: row for row in judgements}
    judged = [t.model_copy(update={"reward": _reward(by_id.get(t.id))}) for t in played]
    return bench_rows(list(requests.values()), judged)


def _reward(row: Judged | None) -> Reward:
    if row is None or row.score is not None:
        return Reward(image=row.score if row else None)
    return Reward(diagnostics={"missing": row.reason})


def _key(identity: str, job: JudgeJob) -> str:
    digest = hashlib.sha256()
    for part in (identity.encode(), job.request.id.encode(), job.request.question.encode()):
        digest.update(hashlib.sha256(part).digest())
    for picture in (job.image, job.gt):
        digest.update(bytes.fromhex(Picture.of(picture).sha256))
    return digest.hexdigest()[:24]


class _Jobs(Sequence[JudgeJob]):
    """Jobs whose pictures are read when their turn comes, so that a large bench is never in memory as a whole.

    With a judge's `identity` their keys are noted as they are handed out: what is judged is what the key stands for, also
    where a file is changed meanwhile, and a picture is read once.
    """

    def __init__(
        self, bench: Path, dataset: Path, rows: Sequence[tuple[Request, str]], identity: str | None, keys: Any = None
    ) -> None:
        self._bench, self._dataset, self._rows, self._identity = bench.resolve(), dataset.resolve(), rows, identity
        self._keys: dict[tuple[str, str], str] = {} if keys is None else keys

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        """Return the key of a job, read for it if it was not handed out before; nothing without an identity."""
        request, image = self._rows[index]
        if self._identity is not None and (request.id, image) not in self._keys:
            self[index]
        return self._keys.get((request.id, image), "")

    @overload
    def __getitem__(self, index: int) -> JudgeJob: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[JudgeJob]: ...
    def __getitem__(self, index: int | slice) -> JudgeJob | Sequence[JudgeJob]:
        if isinstance(index, slice):
            return _Jobs(self._bench, self._dataset, self._rows[index], self._identity, self._keys)
        request, image = self._rows[index]
        job = JudgeJob(request, _picture(self._bench, image), _picture(self._dataset, request.gt_image))
        if self._identity is not None:
            self._keys[request.id, image] = _key(self._identity, job)
        return job

    def only(self, indices: Sequence[int]) -> _Jobs:
        return _Jobs(self._bench, self._dataset, [self._rows[i] for i in indices], self._identity, self._keys)


def _picture(root: Path, name: str | None) -> Picture:
    """Return a picture's bytes; none when it is lost or its path leads out of its folder: the judge cannot read it then,
    and it is missing. `root` is resolved."""
    path = root / name if name else root
    if path.is_symlink() or not _inside(root, path.parent):
        path = path.resolve()
    try:
        return Picture(path.read_bytes() if path.is_relative_to(root) else b"")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return Picture(b"")


@lru_cache(1024)
def _inside(root: Path, folder: Path) -> bool:
    return folder.resolve().is_relative_to(root)


class _Book:
    """The file of judgements, held by one process; without a file it holds nothing."""

    def __init__(self, fd: int | None, path: Path | None) -> None:
        self._fd, self._path = fd, path

    def rows(self) -> Iterator[Judged]:
        """Yield what is there; a last line that a kill cut short is taken off."""
        if self._fd is None or self._path is None:
            return
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._fd, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            yield parse(line, Judged, f"{self._path}, line {number}")

    def add(self, rows: Sequence[Judged]) -> None:
        if self._fd is None:
            return
        data = "".join(f"{dump(row)}\n" for row in rows).encode()
        while data:
            data = data[os.write(self._fd, data) :]
        os.fsync(self._fd)


@contextmanager
def _kept(path: Path | None) -> Iterator[_Book]:
    if path is None:
        yield _Book(None, None)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError(f"{path} is being written by another process; wait for it, or stop it.") from None
        yield _Book(fd, path)
    finally:
        os.close(fd)
