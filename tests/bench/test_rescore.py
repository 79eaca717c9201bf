"""A bench run's pictures judged again: resumable, linear in what is written, missing where the judge fails."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from genevolve.bench.rescore import Judged, judge_again
from genevolve.bench.score import BenchError
from genevolve.errors import StageError
from genevolve.judge.base import JudgeJob
from genevolve.profiles import load
from genevolve.records import RecordError, Request, Score, dump, read_jsonl, write_jsonl
from genevolve.services.endpoint import ServiceError
from genevolve.settings import Settings
from genevolve.stages import backends, rescore
from tests.services.chats import PATH, completion, text_of, thinking
from tests.tools.web import Server, status

from .parts import make_request, make_score, make_trajectory, paint


class Eye:
    """An ImageJudge that scores every picture but those of the requests named; it counts what it is shown."""

    def __init__(self, blind: Sequence[str] = (), dies_after: int | None = None) -> None:
        self.blind, self.dies_after = blind, dies_after
        self.seen: list[str] = []
        self.reasons: list[str] = []
        self.notes: list[dict[str, Any]] = []

    def score(self, jobs: Sequence[JudgeJob]) -> list[Score | None]:
        out = []
        for job in jobs:
            if len(self.seen) == self.dies_after:
                raise KeyboardInterrupt
            self.seen.append(job.request.id)
            out.append(None if job.request.id in self.blind or not job.image else make_score(v=0.5))
        self.reasons = ["" if s else "blind" for s in out]
        self.notes = [{"answers": ["raw"]} for _ in out]
        return out


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    """A bench folder of 10 requests: one without a program, one whose generator drew nothing; and its dataset."""
    requests = [make_request(i) for i in range(10)]
    data, bench = tmp_path / "data", tmp_path / "c001" / "bench"
    write_jsonl(data / "requests.jsonl", requests)
    rows = []
    for i, r in enumerate(requests):
        paint(data / str(r.gt_image), "green", 16)
        paint(bench / f"{r.id}.png", "red", 16 + i)
        rows.append(make_trajectory(r, make_score()))
    rows[2] = make_trajectory(requests[2], None, program=None, image=None, termination="protocol")
    rows[3] = make_trajectory(requests[3], None, image=None)
    write_jsonl(bench / "blocks/00000.jsonl", rows[:6])
    write_jsonl(bench / "blocks/00006.jsonl", rows[6:])
    return bench, data


def test_every_picture_is_judged_once_and_a_failed_one_is_missing(run: tuple[Path, Path]) -> None:
    judge = Eye(blind=["q005"])
    rows = {r.request.id: r for r in judge_again(*run, judge)}
    assert sorted(judge.seen) == [f"q{i:03d}" for i in range(10) if i not in (2, 3)]
    assert rows["q000"].score == make_score(v=0.5)
    assert [(rows[q].score, rows[q].valid) for q in ("q002", "q003", "q005")] == [
        (None, False),
        (None, True),
        (None, True),
    ]
    reward = rows["q005"].trajectory and rows["q005"].trajectory.reward
    assert reward is not None
    assert reward.diagnostics == {"missing": "blind"}


def test_what_is_judged_stays_and_what_failed_is_tried_again(run: tuple[Path, Path], tmp_path: Path) -> None:
    keep = tmp_path / "judged.jsonl"
    with pytest.raises(KeyboardInterrupt):
        judge_again(*run, Eye(dies_after=5), keep=keep, block=2)
    assert len(keep.read_text().splitlines()) == 4, "whole blocks are on the disk"
    with keep.open("ab") as stream:
        stream.write(b'{"id": "t-q9", "key": "ab')  # a line that a kill cut short
    second = Eye(blind=["q009"])
    judge_again(*run, second, keep=keep, block=2)
    assert len(second.seen) == 4
    third = Eye()
    rows = judge_again(*run, third, keep=keep, block=2)
    assert third.seen == ["q009"]
    assert sum(r.score is not None for r in rows) == 8
    lines = list(read_jsonl(keep, Judged))
    assert len(lines) == 9, "a line a judgement, nothing is written twice"
    assert lines[0].note == {"answers": ["raw"]}
    assert [row.reason for row in lines if row.score is None] == ["blind"]


def test_another_judge_picture_or_truth_is_judged_anew(run: tuple[Path, Path], tmp_path: Path) -> None:
    bench, data = run
    keep = tmp_path / "judged.jsonl"
    judge_again(bench, data, Eye(), keep=keep, identity="a")
    paint(bench / "q000.png", "blue", 20)
    paint(data / "gt/q001.png", "blue", 20)
    changed = Eye()
    judge_again(bench, data, changed, keep=keep, identity="a")
    assert changed.seen == ["q000", "q001"]
    other = Eye()
    judge_again(bench, data, other, keep=keep, identity="b")
    assert len(other.seen) == 8


def test_what_is_kept_is_what_was_judged_also_where_a_file_changes_meanwhile(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    bench, data = run
    keep = tmp_path / "judged.jsonl"

    class Painter(Eye):
        def score(self, jobs: Sequence[JudgeJob]) -> list[Score | None]:
            if not self.seen:
                paint(bench / "q009.png", "blue", 20)  # not its turn yet
            found = super().score(jobs)
            if "q001" in self.seen:
                paint(bench / "q001.png", "blue", 20)  # judged as it was
            return found

    judge_again(bench, data, Painter(), keep=keep, block=2)
    again = Eye()
    judge_again(bench, data, again, keep=keep, block=2)
    assert again.seen == ["q001"], "the one whose picture is not the judged one"


def test_a_broken_line_another_writer_and_an_empty_folder_are_sentences(run: tuple[Path, Path], tmp_path: Path) -> None:
    keep = tmp_path / "judged.jsonl"
    keep.write_text('{"id": 7}\n{"id": "x", "key": "y"}\n')
    with pytest.raises(RecordError, match=r"judged\.jsonl, line 1"):
        judge_again(*run, Eye(), keep=keep)
    keep.unlink()

    class Nosy(Eye):
        def score(self, jobs: Sequence[JudgeJob]) -> list[Score | None]:
            with pytest.raises(BenchError, match="another process"):
                judge_again(*run, Eye(), keep=keep)
            return super().score(jobs)

    judge_again(*run, Nosy(), keep=keep)
    with pytest.raises(BenchError, match="no bench run"):
        judge_again(tmp_path, run[1], Eye())
    with pytest.raises(StageError, match="no bench run"):
        rescore.run(with_model(), judge="second", bench=tmp_path, dataset=run[1])


def test_a_picture_outside_the_folder_is_not_read(run: tuple[Path, Path], tmp_path: Path) -> None:
    bench, data = run
    paint(tmp_path / "secret.png", "red")
    request = make_request(0)
    write_jsonl(bench / "blocks/00000.jsonl", [make_trajectory(request, make_score(), image="../../secret.png")])
    (bench / "blocks/00006.jsonl").unlink()
    (row,) = judge_again(bench, data, Eye())
    assert row.score is None


def with_model(*over: str) -> Any:
    params = Path(__file__).parents[2] / "params.yaml"
    return load("tiny", overrides=["judge.model=eye", *over], path=params)


VERDICT = {
    "rationale": "Constraints: kept.",
    "faithfulness": 1,
    "visual_correctness": 0.5,
    "text_accuracy": None,
    "text_accuracy_na": True,
    "aesthetics": 1,
}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    server = Server({PATH: [completion(VERDICT)]})
    monkeypatch.setenv("GENEVOLVE_JUDGE_URL", f"{server.url}/v1")
    monkeypatch.setenv("GENEVOLVE_JUDGE_RATE", "1000000")
    monkeypatch.setenv("GENEVOLVE_WEB", str(tmp_path / "web"))
    for name in ("OPENAI_API_KEY", "GENEVOLVE_JUDGE_KEY"):
        monkeypatch.delenv(name, raising=False)
    backends.client.cache_clear()
    with server.running():
        yield server
    backends.client.cache_clear()


def test_the_command_writes_scores_summary_and_table_beside_the_run(run: tuple[Path, Path], served: Server) -> None:
    bench, data = run
    before = sorted((p, p.stat().st_mtime_ns) for p in bench.rglob("*"))
    bad = thinking(lambda m: completion("I cannot.") if "thing 4." in text_of(m[1]) else VERDICT)
    served.script[PATH] = [bad]
    told = rescore.run(with_model(), judge="vlm", bench=bench, dataset=data)
    out = bench.with_name("bench.vlm")
    assert told["folder"] == str(out)
    counted = [told["all"][k] for k in ("n", "judged", "missing", "invalid_programs")]
    assert counted == [10, 7, 3, 1]
    reasons = dict(told["missing_reasons"])
    assert reasons.pop("the generator drew nothing") == 1
    assert list(reasons.values()) == [1]
    assert "no usable JSON" in next(iter(reasons))
    scores = json.loads((out / "scores.json").read_text())
    assert [scores["all"][q] for q in ("q000", "q002", "q003", "q004")] == [0.6, 0.0, None, None]
    assert set(scores) == {"all", "gate", "report"}
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["model"], summary["stored"]["overall"], summary["all"]["overall"]) == ("eye", 1.0, 0.6)
    assert summary["splits"]["half"]["gate"]["n"] == 5
    table = list(csv.DictReader((out / "requests.csv").open()))
    assert [(r["request_id"], r["stored"], r["overall"], r["valid"]) for r in table[:3]] == [
        ("q000", "1.0", "0.6", "True"), ("q001", "1.0", "0.6", "True"), ("q002", "", "", "False"),
    ]  # fmt: skip
    assert "no usable JSON" in table[4]["missing"]
    judged = list(read_jsonl(out / "judged.jsonl", Judged))
    assert len(judged) == 8
    assert all(json.loads(row.note["answers"][0]) == VERDICT for row in judged if row.score)
    assert next(row for row in judged if not row.score).note["answers"][0] == "I cannot."
    assert sorted((p, p.stat().st_mtime_ns) for p in bench.rglob("*")) == before, "DVC's folder is not touched"
    asked = len(served.requests)
    assert rescore.run(with_model(), judge="vlm", bench=bench, dataset=data) == told
    assert len(served.requests) == asked, "paid once, the refused answer too"
    served.script[PATH] = [completion({**VERDICT, "visual_correctness": 1})]
    again = rescore.run(with_model("judge.model=other"), judge="vlm", bench=bench, dataset=data)
    assert again["all"]["overall"] == pytest.approx(0.8)


def test_a_refused_key_ends_the_command_and_keeps_what_is_there(run: tuple[Path, Path], served: Server) -> None:
    bench, data = run
    served.script[PATH] = [status(401)]
    with pytest.raises(ServiceError, match="GENEVOLVE_JUDGE_KEY"):
        rescore.run(with_model(), judge="vlm", bench=bench, dataset=data)
    assert not (bench.with_name("bench.vlm") / "summary.json").exists()


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from tests.services.chats import PATH, completion, thinking
from tests.tools.web import Server
from tests.bench.test_rescore import VERDICT, with_model
from genevolve.stages import rescore
server = Server({PATH: []})
lock, count = threading.Lock(), [0]
def answer(messages):
    with lock:
        count[0] += 1
        if count[0] > 6:
            os.kill(os.getpid(), signal.SIGKILL)
    return VERDICT
server.script[PATH] = [thinking(answer)]
os.environ.update(GENEVOLVE_JUDGE_URL="http://127.0.0.1:%d/v1" % server.port, GENEVOLVE_JUDGE_CONCURRENCY="2")
with server.running():
    rescore.run(with_model(), judge="vlm", bench=Path(sys.argv[1]), dataset=Path(sys.argv[2]))
"""


def test_a_kill_loses_at_most_what_is_under_way(run: tuple[Path, Path], tmp_path: Path, project: Path) -> None:
    bench, data = run
    env = {**os.environ, "GENEVOLVE_WEB": str(tmp_path / "web")}
    done = subprocess.run([sys.executable, "-c", KILLED, str(bench), str(data)], cwd=project, env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    from genevolve.services.cache import CallCache

    with CallCache(tmp_path / "web/calls.sqlite")._turn() as db:
        kept = db.execute("SELECT count(*) FROM answers WHERE family = 'kscore'").fetchone()[0]
        charged = db.execute("SELECT count(*) FROM calls").fetchone()[0]
    assert 6 - 2 + 1 <= kept <= 6, "six were answered, two were under way"
    assert charged <= 8


def test_the_embedded_judges_go_through_the_same_command(settings: Settings, dataset: Path, tmp_path: Path) -> None:
    from genevolve.dataset.public import load_requests

    requests: list[Request] = load_requests(dataset, "bench")
    bench = tmp_path / "bench"
    rows = []
    for r in requests:
        picture = bench / "images" / f"{r.id}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes((dataset / str(r.gt_image)).read_bytes())
        rows.append(make_trajectory(r, None, image=f"images/{r.id}.png"))
    write_jsonl(bench / "blocks/00000.jsonl", rows)
    for name in ("pixels", "second"):
        told = rescore.run(settings, judge=name, bench=bench, dataset=dataset)
        assert told["all"]["judged"] == len(requests)
        assert told["all"]["overall"] > 0.75, "the ground truth against itself"
        assert dump(next(iter(read_jsonl(tmp_path / f"bench.{name}/judged.jsonl", Judged)))).count("note") == 0
