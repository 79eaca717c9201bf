"""What is written grows with the number of records: journals of judgements and of rollouts, and the database of paid answers.

Bytes are counted, not timed, and what is appended is told from what is written again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from genevolve.agent.format import answer_turn, call_turn
from genevolve.bench.rescore import judge_again
from genevolve.judge.base import JudgeJob
from genevolve.policy.server import served_name
from genevolve.profiles import load
from genevolve.records import Score, Trajectory, write_jsonl
from genevolve.services.cache import CallCache
from genevolve.stages import backends, bench, served
from genevolve.stages.journal import NAME, Journal
from tests.services.chats import PATH, thinking
from tests.tools.web import Server, said

from .parts import make_request, make_score, make_trajectory, paint

MOST = 2.1
"""Twice the records may write so many times the bytes: there are first lines and pages that are not full."""


def linear(written: Sequence[int]) -> bool:
    """Return whether what n, 2n, 4n records write grows no faster than they do."""
    return all(0 < more <= MOST * less for less, more in pairwise(written))


def judged(folder: Path, n: int) -> int:
    """Return the bytes that judging n pictures appends, two at a time; whoever judges looks whether it is only appended."""
    requests = [make_request(i) for i in range(n)]
    for r in requests:
        paint(folder / "data" / str(r.gt_image), "green", 8)
        paint(folder / "bench" / f"{r.id}.png", "red", 8)
    write_jsonl(folder / "data/requests.jsonl", requests)
    write_jsonl(folder / "bench/blocks/00000.jsonl", [make_trajectory(r, None) for r in requests])
    keep = folder / "judged.jsonl"
    before = [b""]

    class Eye:
        reasons: Sequence[str] = ("", "")
        notes: Sequence[Mapping[str, Any]] = ({"answers": ["raw"]},) * 2

        def score(self, jobs: Sequence[JudgeJob]) -> list[Score | None]:
            now = keep.read_bytes()
            assert now.startswith(before[0])
            assert now.count(b"\n") == before[0].count(b"\n") + (2 if before[0] or now else 0)
            before[0] = now
            return [make_score() for _ in jobs]

    judge_again(folder / "bench", folder / "data", Eye(), keep=keep, identity="eye", block=2)  # type: ignore[arg-type]
    assert keep.read_bytes().count(b"\n") == n
    return keep.stat().st_size


def test_judgements_are_appended(tmp_path: Path) -> None:
    assert linear([judged(tmp_path / str(n), n) for n in (8, 16, 32)])


class Counted(Journal):
    """A journal that counts the bytes it is made to write."""

    written: ClassVar[list[int]] = []
    sizes: ClassVar[list[int]] = []

    def _write(self, line: bytes) -> None:
        super()._write(line)
        self.written[-1] += len(line)

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.written.append(0)
        super().__init__(path, about)

    def close(self) -> None:
        super().close()
        self.sizes.append(self.path.stat().st_size)


def turn(messages: list[dict[str, Any]]) -> str:
    """The policy: a search, an image search, a program."""
    said = len(messages) // 2 - 1
    if said == 0:
        return call_turn("what it is", "search", "giraffe")
    if said == 1:
        return call_turn("how it looks", "image_search", "giraffe")
    return answer_turn("so", "The first reference image, alone and large.", [("IMG_001", "a giraffe")])


@pytest.fixture
def policy(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A policy behind a server of messages; its folder."""
    folder = project / "assets" / "base-policy"
    card = {"id": served_name(folder), "object": "model", "owned_by": "someone"}
    server = Server({PATH: thinking(turn), "/v1/models": said({"object": "list", "data": [card]})})
    for name in ("GENEVOLVE_POLICY_KEY", "GENEVOLVE_POLICY_RELOAD", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GENEVOLVE_POLICY_URL", f"{server.url}/v1")
    monkeypatch.setenv("GENEVOLVE_WEB", str(tmp_path / "web"))
    backends.policy_client.cache_clear()
    with server.running():
        yield folder
    backends.policy_client.cache_clear()


def test_rollouts_are_appended(policy: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same requests, each played once, twice and four times."""
    monkeypatch.setattr(served, "Journal", Counted)
    monkeypatch.setattr(Counted, "written", [])
    monkeypatch.setattr(Counted, "sizes", [])
    for draws in (1, 2, 4):
        over = ["policy.backend=openai", "sampling.workers=1", "sampling.max_context=16384", "bench.requests=2"]
        out = tmp_path / str(draws)
        out.mkdir()
        bench.run(load("tiny", overrides=[*over, f"bench.draws={draws}"]), dataset=dataset, policy=policy, out=out)
        rows = [json.loads(line) for line in (out / "blocks/00000.jsonl").read_text().splitlines()]
        assert [Trajectory.model_validate(row).program is None for row in rows] == [False] * 2 * draws
        assert not (out / NAME).exists(), "it is in the block now"
    assert len(Counted.written) == 3
    assert linear(Counted.written), Counted.written
    assert Counted.sizes == Counted.written, "nothing is written twice"


def paid(path: Path, n: int) -> tuple[int, int]:
    """Store n paid answers, each charged and put by itself; return the bytes written before they are moved into the database,
    and the size of the database afterwards."""
    cache = CallCache(path)
    with cache._turn() as db:
        db.execute("PRAGMA wal_autocheckpoint = 0")  # so that the log holds all that was ever written
    for i in range(n):
        picture = hashlib.sha256(str(i).encode()).hexdigest()
        call = cache.reserve("judge", "bench", 0.01, 1e6)
        answer = {"rationale": "Constraints: (1) the subject: kept; (2) the count: kept. " * 6, "faithfulness": 0.5}
        cache.put("kscore", "judge", {"picture": picture}, answer, seconds=0.1, cost=0.01, call=call)
    written = path.with_name(f"{path.name}-wal").stat().st_size
    with cache._turn() as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    return written, path.stat().st_size


def test_paid_answers_are_written_in_proportion(tmp_path: Path) -> None:
    logs, sizes = zip(*(paid(tmp_path / str(n) / "calls.sqlite", n) for n in (250, 500, 1000)), strict=True)
    assert linear(logs), logs
    assert linear(sizes), sizes
