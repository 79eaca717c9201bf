"""The release's results.json, in and out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from genevolve.bench.rescore import judge_again, rescore
from genevolve.bench.results_in import import_results
from genevolve.bench.results_out import export_results
from genevolve.bench.score import BenchError
from genevolve.dataset.public import load_quarantine, load_requests
from genevolve.dataset.release.importing import import_dataset
from genevolve.dataset.release.pictures import Picture
from genevolve.judge.base import JudgeJob
from genevolve.records import Score, Trajectory, read_jsonl
from tests.bench.parts import make_score
from tests.dataset.release.parts import bench_row, conversation, picture, put, write_source

KEPT: dict[str, bytes] = {}


def keep(found: Picture) -> str:
    KEPT[f"web/{len(found.data)}"] = found.data
    return f"web/{len(found.data)}"


@pytest.fixture
def public(tmp_path: Path) -> Path:
    import_dataset(write_source(tmp_path / "GenEvolve-Data-Bench"), tmp_path / "public")
    return tmp_path / "public"


def result(n: int, **given: Any) -> dict[str, Any]:
    """A row as run_agent.py and generate_images.py leave it."""
    messages = conversation(n)
    messages[1]["content"] = bench_row(n)["question"]
    row = {
        **bench_row(n),
        "prompt": bench_row(n)["question"],
        "gen_prompt": f"The first reference image, number {n}.",
        "reference_images": [
            {
                "img_id": "IMG_002",
                "note": "its shape",
                "local_path": "/home/them/run/refs/2.jpg",
                "url": "https://example.org/2",
            }
        ],
        "messages": messages,
        "termination": "answer",
        "rounds": 2,
        "error": None,
        "image_path": f"/home/them/run/images/{n}.png",
        "output_path": f"/home/them/run/images/{n}.png",
        "success": True,
        "image_status": "ok",
    }
    return {**row, **given}


def write_run(folder: Path, rows: list[Any]) -> Path:
    for n in range(6):
        put(folder / "images" / f"{n}.png", picture(n, (60, 60), "PNG"))
    put(folder / "refs" / "2.jpg", picture(7))
    return put(folder / "results.json", json.dumps(rows, ensure_ascii=True))


def played(folder: Path) -> list[Trajectory]:
    return [t for path in sorted((folder / "blocks").glob("*.jsonl")) for t in read_jsonl(path, Trajectory)]


class Yes:
    """A judge that likes every picture it can read."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.notes: list[dict[str, Any]] = []
        self.jobs: list[JudgeJob] = []

    def score(self, jobs: Sequence[JudgeJob]) -> list[Score | None]:
        self.jobs += jobs
        self.reasons, self.notes = [""] * len(jobs), [{} for _ in jobs]
        return [make_score() if job.image and job.gt else None for job in jobs]


def test_a_run_of_the_release_is_read_and_its_pictures_judged(public: Path, tmp_path: Path) -> None:
    failed = result(
        2, gen_prompt="", reference_images=[], termination="no_answer", error="no_answer_in_final_round", output_path=""
    )
    failed["image_path"] = ""
    rows = [result(1), result(0), failed, result(3, id="3")]
    lines = list(import_results(write_run(tmp_path / "run", rows), public, tmp_path / "bench", keep))
    assert lines[0].endswith("4 rows, 4 kept, 0 left out")
    assert lines[1] == "programs 3, pictures 3, scores 0"
    assert lines[2].startswith("2 of the 6 bench requests have no answer here")
    first, second, third, fourth = played(tmp_path / "bench")
    assert [t.request_id for t in (first, second, third, fourth)] == ["bench-0", "bench-1", "bench-2", "bench-3"]
    assert first.program is not None
    assert first.program.reference_images[0].note == "its shape"
    assert KEPT[first.program.files[0]] == picture(7)
    assert [c.name for c in first.tool_calls] == ["image_search"]
    assert (tmp_path / "bench" / str(first.image)).read_bytes() == picture(0, (60, 60), "PNG")
    assert (third.program, third.image, third.termination) == (None, None, "rounds")
    assert third.failure == "no_answer_in_final_round"
    judge = Yes()
    assert rescore(tmp_path / "bench", public, judge) == {"bench-0": 1, "bench-1": 1, "bench-2": 0, "bench-3": 1}
    assert judge.jobs[0].gt == picture(100)
    rows_again = judge_again(tmp_path / "bench", public, judge)
    assert [r.valid for r in rows_again] == [True, True, False, True]


def test_scores_of_the_release_are_taken_and_its_own_means_are_not_rows(public: Path, tmp_path: Path) -> None:
    scores = {"rationale": "Constraints: a, b", "faithfulness": 1, "visual_correctness": 0.5, "text_accuracy": 0.5}
    scores |= {"aesthetics": 0, "overall": 0.5, "text_accuracy_na": True}
    rows = [
        result(0, eval_success=True, scores=scores),
        result(1, eval_success=False, scores=None, error="429"),
        result(2, eval_success=True, scores={**scores, "faithfulness": 0.7}),
        {"summary_type": "overall_avg", "avg_scores": {}, "count": 1},
    ]
    lines = list(import_results(write_run(tmp_path / "run", rows), public, tmp_path / "bench", keep))
    assert lines[0].endswith("3 rows, 3 kept, 0 left out")
    one, two, three = played(tmp_path / "bench")
    assert one.reward is not None
    assert one.reward.image == make_score(1, 0.5, 0.5, 0, na=True).model_copy(
        update={"rationale": "Constraints: a, b", "overall": 0.5, "overall_renormalised": 0.5}
    )
    assert two.reward is three.reward is None
    assert json.loads((tmp_path / "bench" / "scores.json").read_text())["all"] == {
        "bench-0": 0.5,
        "bench-1": None,
        "bench-2": None,
    }


def test_bad_rows_are_named_and_a_lost_picture_costs_the_picture_alone(public: Path, tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.png", picture(1, (60, 60), "PNG"))
    run = tmp_path / "run"
    rows: list[Any] = [
        result(0),
        result(0),
        result(9),
        result(1, prompt="Something else.", question="Something else."),
        "text",
        result(2, messages=[{"role": "robot", "content": "x"}]),
        result(3, output_path=str(secret)),
        result(4, output_path="../secret.png"),
        result(5, output_path="images/link.png", reference_images=[{"img_id": "IMG_001", "local_path": "/etc/passwd"}]),
    ]
    file = write_run(run, rows)
    (run / "images" / "link.png").symlink_to(secret)
    lines = list(import_results(file, public, tmp_path / "bench", keep))
    reasons = {q.row: q.reason for q in load_quarantine(tmp_path / "bench")}
    for row, says in (
        (2, "field 'id': an id that is there twice: bench-0"),
        (3, "field 'id': no request of the bench: 9"),
        (4, "field 'prompt': not what request bench-1 asks"),
        (5, "not a JSON object: str"),
        (6, "field 'messages.0.role': not system, user or assistant"),
        (7, "field 'output_path': no such file: secret.png is not below the folder of results.json"),
        (8, "field 'output_path': a path that leads out of the folder"),
        (9, "field 'output_path': a link"),
    ):
        assert says in reasons[row]
    assert [t.request_id for t in played(tmp_path / "bench")] == ["bench-0", "bench-3", "bench-4", "bench-5"]
    assert [bool(t.image) for t in played(tmp_path / "bench")] == [True, False, False, False]
    last = played(tmp_path / "bench")[-1]
    assert last.program is not None  # its picture is missing; the answer is not a failed one
    assert last.program.files == ()
    assert any("left out: results.json, row 3" in line for line in lines)
    assert rescore(tmp_path / "bench", public, Yes())["bench-3"] is None


def test_a_run_goes_out_as_the_release_writes_it_and_comes_back(public: Path, tmp_path: Path) -> None:
    rows = [result(n) for n in range(6)]
    rows[4] = result(
        4, gen_prompt="", reference_images=[], termination="max_rounds_reached", output_path="", image_path=""
    )
    list(import_results(write_run(tmp_path / "run", rows), public, tmp_path / "bench", keep))
    counts = export_results(tmp_path / "bench", public, tmp_path / "out", lambda file: (KEPT[file], ".jpg"))
    assert counts == {"results.json": 6, "pictures": 5}
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    agent = {"prompt", "gen_prompt", "reference_images", "messages", "termination", "rounds", "error"}
    pictures = {"image_path", "output_path", "success", "image_status"}
    assert agent | pictures | set(bench_row(0)) <= set(written[0])
    assert [r["id"] for r in written] == [0, 1, 2, 3, 4, 5]  # as the source has them
    assert written[0]["messages"] == rows[0]["messages"]
    assert (written[4]["success"], written[4]["termination"]) == (False, "max_rounds_reached")
    for row in written:
        for path in (row["gt_image"], row["output_path"], *(r["local_path"] for r in row["reference_images"])):
            assert not Path(path).is_absolute()
            assert path == "" or (tmp_path / "out" / path).is_file()
    list(import_results(tmp_path / "out" / "results.json", public, tmp_path / "again", keep))
    assert played(tmp_path / "again") == played(tmp_path / "bench")


def test_what_cannot_be_a_run_is_a_sentence(public: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="there is no such file"):
        list(import_results(tmp_path / "no.json", public, tmp_path / "bench", keep))
    file = write_run(tmp_path / "run", [result(9)])
    with pytest.raises(BenchError, match=r"holds no answer to a request of .* The first: results\.json, row 1"):
        list(import_results(file, public, tmp_path / "bench", keep))
    put(tmp_path / "broken" / "results.json", "[{")
    with pytest.raises(BenchError, match="not JSON"):
        list(import_results(tmp_path / "broken" / "results.json", public, tmp_path / "bench", keep))
    assert not (tmp_path / "bench").exists()
    with pytest.raises(BenchError, match=r"holds no blocks/\*\.jsonl"):
        export_results(tmp_path, public, tmp_path / "out", lambda file: (b"", ""))
    assert len(load_requests(public, "bench")) == 6
