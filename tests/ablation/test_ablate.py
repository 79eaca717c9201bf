"""A whole ablation, as small as it can be, with the real stages: two arms, killed and gone on with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from genevolve.ablation import command
from genevolve.ablation.arms import Arm, arm_settings, load_table
from genevolve.ablation.results import Result, ResultError, read_result, recipe_of
from genevolve.ablation.runner import Place, Stamp, Unit, plan
from genevolve.errors import StageError
from genevolve.services.cache import BudgetError, CallCache
from genevolve.settings import Settings
from tests.services.chats import PATH, thinking
from tests.stages.test_judged import verdicts
from tests.tools.web import Server

from .parts import result

SMALL = {
    "cycle": {"steps": 1, "requests_per_step": 2, "validation_k": 1, "patience": 0},
    "sampling": {"k": 2},
    "bench": {"requests": 3},
}


@pytest.fixture
def arms_file(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("COMMAND", "BUDGET"):  # what the command leaves for its processes ends with the test
        monkeypatch.setenv(f"GENEVOLVE_{name}", "0")
    raw = yaml.safe_load((project / "ablation.yaml").read_text())
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump({**raw, "common": SMALL}))
    return path


def same_again(result: Result) -> dict[str, Any]:
    """What a result says, but for when it was written."""
    return result.model_dump(exclude={"commit", "finished"})


def test_two_arms_run_resume_and_are_scored_by_a_second_judge(
    in_project: Path,
    dataset: Path,
    tmp_path: Path,
    arms_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GENEVOLVE_TRACKING", "off")
    out, work = tmp_path / "results", tmp_path / "work"

    def ablate(arms: str = "sft+grpo,full", **given: Any) -> str:
        where = {"out": out, "work": work, "dataset": dataset, "arms_file": arms_file}
        return command.ablate(profile="tiny", seeds=1, arms=arms, jobs=1, **where, **given)

    ablate("sft+grpo")
    assert "about" not in capsys.readouterr().err, "nothing is known about an evolution yet"
    text = ablate()
    bar = capsys.readouterr().err
    # The cold start that is there is no work; the pace is that of the arm that was run before.
    assert re.search(r" 0/11 rollouts \[\d\d:\d\d, about \d\d:\d\d left, cold-s1\]", bar)
    assert " 11/11 rollouts" in bar
    assert "full " in text
    assert (out / "report" / "ablation.html").exists()
    found = {arm: read_result(out / f"{arm}-s1.json") for arm in ("sft+grpo", "full")}
    for arm, r in found.items():
        assert len(r.scores) == 3, arm
        assert set(r.scores_second or {}) == set(r.scores)
        assert (r.rollouts, [row["rollouts"] for row in r.curve]) == (4, [0.0, 4.0])
        assert {"validation_reward", "validation_valid"} <= set(r.curve[0])
        assert {"hit_rate", "reward", "validation_reward"} <= set(r.curve[1])
        assert set(r.seconds) == {"cold_start", "evolve", "bench"}
    assert found["full"].settings["distill"]["lambda_sdl"] == 2
    assert found["sft+grpo"].overrides == {"distill": {"lambda_sdl": 0}}
    assert found["full"].curve[0] == found["sft+grpo"].curve[0]  # one cold start
    assert found["full"].curve[1]["reward"] == found["sft+grpo"].curve[1]["reward"]  # the same first rollouts

    before = {arm: same_again(r) for arm, r in found.items()}
    (out / "full-s1.json").unlink()  # as if killed before its last step: the stages are there, the result is not
    assert ablate() == text
    assert {arm: same_again(read_result(out / f"{arm}-s1.json")) for arm in found} == before
    html = (out / "report" / "ablation.html").read_text()
    assert ablate(report_only=True, publish=True) == text
    assert (out / "report" / "ablation.html").read_text() == html
    assert json.loads(out.with_suffix(".json").read_text())["runs"] == 2

    written = json.loads((out / "report" / "ablation.json").read_text())
    assert written["arms"]["full"]["differences"]["sft+grpo"]["second"] is not None


def test_a_further_benchmark_is_one_entry_and_a_run_without_its_scores_is_a_sentence(
    in_project: Path, dataset: Path, tmp_path: Path, arms_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENEVOLVE_TRACKING", "off")
    out, raw = tmp_path / "results", yaml.safe_load(arms_file.read_text())

    def ablate(folder: Path | None, **given: Any) -> str:
        further = {} if folder is None else {"other": str(folder)}
        arms_file.write_text(yaml.safe_dump({**raw, "benchmarks": further}))
        where = {"out": out, "work": tmp_path / "work", "dataset": dataset, "arms_file": arms_file}
        return command.ablate(profile="tiny", arms="untuned", jobs=1, **where, **given)

    ablate(None, seeds=1)
    with pytest.raises(StageError, match="There is no dataset at nowhere, the benchmark 'other' of"):
        ablate(Path("nowhere"), seeds=2)
    text = ablate(dataset, seeds=2)  # the same requests again, so that the scores are known
    assert "Without scores on other: 1 runs, first untuned-s1; delete their files to score them." in text
    first, second = (read_result(out / f"untuned-s{seed}.json") for seed in (1, 2))
    assert not first.benchmarks
    assert second.benchmarks["other"].scores == second.scores
    assert second.benchmarks["other"].dataset == second.dataset

    page = (out / "report" / "ablation.html").read_text()
    assert "<h2>Benchmark other</h2>" in page
    assert "Without scores on it: untuned-s1. Delete" in page
    found = json.loads((out / "report" / "ablation.json").read_text())["benchmarks"]["other"]
    assert found["lacking"] == ["untuned-s1"]
    assert found["arms"]["untuned"]["seeds"] == [2]
    assert "other" not in ablate(None, report_only=True), "without the entry the report is as before"
    assert "Benchmark" not in (out / "report" / "ablation.html").read_text()


def test_requests_that_the_second_judge_does_not_know_leave_its_column_empty(
    settings: Settings, dataset: Path, tmp_path: Path
) -> None:
    from genevolve.ablation.runner import second_scores
    from genevolve.dataset.public import load_requests
    from genevolve.records import write_jsonl

    bare = [r.model_copy(update={"scene": None, "gold_program": None}) for r in load_requests(dataset, "bench")]
    write_jsonl(tmp_path / "requests.jsonl", bare)
    assert second_scores(tmp_path / "bench", tmp_path, settings) is None, "an imported dataset has no world, either"


def units_of(arms: dict[str, Arm], place: Place, stamp: Stamp, **given: Any) -> list[Unit]:
    return plan(load_table(), arms, place, stamp, profile="tiny", seeds=range(1, 3), **given)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "data", tmp_path / "work", tmp_path / "starts", tmp_path / "out")


def test_a_plan_has_core_first_one_cold_start_a_seed_and_nothing_that_is_done(in_project: Path, place: Place) -> None:
    table, stamp = load_table(), Stamp("c", "m", "d", "b")
    arms = {name: table.arms[name] for name in ("untuned", "k3", "full", "sft")}
    titles = [u.title for u in units_of(arms, place, stamp)]
    expected = ["cold-s1", "full-s1", "sft-s1", "cold-s2", "full-s2", "sft-s2"]
    assert titles == [*expected, "untuned-s1", "k3-s1", "untuned-s2", "k3-s2"]
    one_seed = {name: arm.model_copy(update={"seeds": 1}) for name, arm in arms.items()}
    assert "full-s2" not in [u.title for u in units_of(one_seed, place, stamp, per_arm=True)]
    only_base = {"untuned": table.arms["untuned"]}
    assert [u.title for u in units_of(only_base, place, stamp)] == ["untuned-s1", "untuned-s2"]

    settings = arm_settings(table, table.arms["full"], "tiny", 1)
    result("full", 1, {"a": 1.0}, recipe=recipe_of(settings, "d", "b")).write(place.out)
    assert "full-s1" not in [u.title for u in units_of(arms, place, stamp)]
    for other in (Stamp("c", "m", "other data", "b"), Stamp("c", "m", "d", "other base")):
        with pytest.raises(ResultError, match=r"full-s1\.json was made with other settings, data or base"):
            units_of(arms, place, other)


def test_the_bars_work_counts_rollouts_validation_and_bench(in_project: Path) -> None:
    table, sizes = load_table(), {"sft": 1000, "bench": 256, "validation": 48}
    full = arm_settings(table, table.arms["full"], "embedded", 1)
    assert Unit(1, full, "full", table.arms["full"]).work(sizes) == {"evolve": 480 + 6 * 2 * 48, "bench": 256}
    assert Unit(1, full, "sft", table.arms["sft"]).work(sizes) == {"bench": 256}
    assert Unit(1, full).work(sizes) == {"cold_start": 1000}


def test_a_failed_cold_start_leaves_its_arms_out_and_the_command_says_so(
    in_project: Path, dataset: Path, tmp_path: Path, arms_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENEVOLVE_TRACKING", "off")
    raw = yaml.safe_load(arms_file.read_text())
    raw["common"] = {**SMALL, "policy": {"base": str(tmp_path / "nowhere")}}
    arms_file.write_text(yaml.safe_dump(raw))
    where = {"out": tmp_path / "out", "work": tmp_path / "work", "dataset": dataset, "arms_file": arms_file}
    with pytest.raises(StageError, match=r"2 runs failed \(cold-s1, sft-s1\).* needs base at .*nowhere"):
        command.ablate(profile="tiny", seeds=1, arms="sft", jobs=1, **where)  # type: ignore[arg-type]


def test_the_settings_of_a_result_are_whole(settings: Settings) -> None:
    from genevolve.ablation.results import all_values

    assert set(all_values(settings)) == set(type(settings).model_fields) - {
        "profile",
        "retention",
    }  # no run depends on it


@pytest.mark.parametrize("runs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_all_processes_pay_from_one_budget_and_the_same_command_goes_on(
    in_project: Path, dataset: Path, tmp_path: Path, arms_file: Path, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    server = Server({PATH: [thinking(verdicts)]})
    told = {"TRACKING": "off", "WEB": str(tmp_path / "web"), "JUDGE_URL": f"{server.url}/v1", "JUDGE_RATE": "1000000"}
    told |= {"JUDGE_USD_CALL": "0.01", "JUDGE_CONCURRENCY": "2", "COMMAND": "first", "BUDGET": "7"}
    for name, value in told.items():
        monkeypatch.setenv(f"GENEVOLVE_{name}", value)
    raw = yaml.safe_load(arms_file.read_text())
    judged = {"judge": {"image": "vlm", "program": "vlm", "model": "eye"}, "world": {"budget_usd": 100}}
    arms_file.write_text(yaml.safe_dump({**raw, "common": {**SMALL, **judged, "bench": {"requests": 6}}}))

    def ablate(budget: float) -> str:
        where = {"out": tmp_path / "out", "work": tmp_path / "work", "dataset": dataset, "arms_file": arms_file}
        return command.ablate(profile="tiny", seeds=runs, arms="untuned", jobs=runs, budget=budget, **where)  # type: ignore[arg-type]

    with server.running():
        with pytest.raises(BudgetError, match=r"The budget of this command, \$0\.05 .* the same command"):
            ablate(0.05)
        with CallCache(tmp_path / "web" / "calls.sqlite")._turn() as db:
            assert db.execute("SELECT DISTINCT account FROM calls WHERE cost > 0").fetchall() == [("first",)]
        paid = [body for *_, body in server.requests]
        assert 0 < len(paid) <= 5
        monkeypatch.setenv("GENEVOLVE_COMMAND", "second")
        assert "untuned" in ablate(100)
        later = [body for *_, body in server.requests[len(paid) :]]
    assert later
    assert not set(paid) & set(later), "what the first command paid for is not paid again"
    assert len(list((tmp_path / "out").glob("untuned-s*.json"))) == runs
