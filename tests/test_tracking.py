"""MLflow as it is: a real database in a temporary folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genevolve.records import Message, Program, Reference, Reward, ToolCall, Trajectory
from genevolve.registry import PARENT_VARIABLE, TrackingError, numbers
from genevolve.tracking import (
    SWITCH_VARIABLE,
    MlflowTracker,
    NullTracker,
    experiment,
    init_db,
    tracker,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tracking") / "mlruns"
    init_db(path)
    return path


@pytest.fixture
def track(folder: Path) -> Iterator[MlflowTracker]:
    yield MlflowTracker(folder)
    assert PARENT_VARIABLE not in os.environ


@pytest.fixture
def client(track: MlflowTracker) -> Any:
    import mlflow

    return mlflow.MlflowClient()


def runs(client: Any, where: str) -> list[Any]:
    experiment = client.get_experiment_by_name("genevolve").experiment_id
    return list(client.search_runs([experiment], filter_string=where))


def stage_within(track: MlflowTracker, name: str) -> Any:
    return track.stage(name, {"lr": 1e-4}, parent=os.environ[PARENT_VARIABLE])


def trajectory() -> Trajectory:
    program = Program(gen_prompt="The first reference image.", reference_images=(Reference(img_id="IMG_001"),))
    return Trajectory(
        id="t1",
        request_id="q1",
        rollout=0,
        question="Draw the flag of Bhutan",
        messages=(
            Message(role="system", content="s"),
            Message(role="user", content="Draw the flag of Bhutan"),
            Message(role="assistant", content="<tool_call>...</tool_call>"),
            Message(role="user", content="<tool_response>...</tool_response>"),
            Message(role="assistant", content="<answer>...</answer>"),
        ),
        tool_calls=(ToolCall(turn=0, name="image_search", arguments={"query": "flag of Bhutan"}, ok=True),),
        program=program,
        reward=Reward(sufficiency=0.75, total=0.7),
    )


def test_a_cycle_holds_its_stages_and_goes_on_as_the_same_run(track: MlflowTracker, client: Any) -> None:
    for attempt in range(2):
        with track.cycle("c001", {"sampling": {"k": 6}}), stage_within(track, f"evolve@c001-{attempt}"):
            track.log_metrics({"report": {"diff": 0.05, "sentence": "text is passed over"}, "nan": float("nan")})
            track.log_curve([{"step": 0, "reward": 0.1}, {"step": 5, "reward": 0.2}])
    (cycle,) = runs(client, "tags.cycle = 'c001'")
    assert cycle.data.params["sampling.k"] == "6"
    stages = runs(client, f"tags.mlflow.parentRunId = '{cycle.info.run_id}'")
    assert {s.info.run_name for s in stages} == {"evolve@c001-0", "evolve@c001-1"}
    assert stages[0].data.metrics == {"report.diff": 0.05, "reward": 0.2}
    history = client.get_metric_history(stages[0].info.run_id, "reward")
    assert [(m.step, m.value) for m in history] == [(0, 0.1), (5, 0.2)]


def test_a_stage_that_cannot_be_told_to_its_end_says_so(track: MlflowTracker, client: Any) -> None:
    with pytest.raises(ZeroDivisionError), track.stage("bench@c009", {}, status="FINISHED"):
        raise ZeroDivisionError
    assert [r.info.status for r in runs(client, "tags.stage = 'bench@c009'")] == ["FAILED"]


def test_an_error_is_not_hidden_by_a_run_that_cannot_be_closed(
    track: MlflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("database or disk is full")

    monkeypatch.setattr(type(track._client), "set_terminated", full)
    with pytest.raises(OSError, match="No space"), track.stage("evolve@c001", {}):
        raise OSError(28, "No space left on device")


def test_a_trajectory_becomes_a_trace_with_a_span_per_turn_and_call(track: MlflowTracker, client: Any) -> None:
    import mlflow

    with track.stage("traced", {}):
        track.log_traces([trajectory()], "best")
        run_id = mlflow.active_run().info.run_id
    (trace,) = mlflow.search_traces(run_id=run_id, return_type="list")
    assert [s.name for s in trace.data.spans] == ["best q1", "turn 0", "image_search", "turn 1"]
    tool = trace.data.spans[2]
    assert tool.inputs == {"query": "flag of Bhutan"}
    assert trace.data.spans[0].outputs["reward"]["total"] == 0.7


def test_a_cycle_ends_when_the_traces_of_its_stages_are_written(
    track: MlflowTracker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        may_end.wait(60)
        ended.append(True)

    monkeypatch.setattr(track._mlflow, "flush_trace_async_logging", slow)
    with track.cycle("c201", {}):
        assert tracker(folder) is track  # and opens nothing again
        with track.arm("a", {}):
            assert tracker(folder) is track
        assert tracker(folder) is track
        with track.stage("bench@c201", {}):
            pass
        assert begun.wait(60)
        assert not ended  # the cycle goes on meanwhile
        may_end.set()
    assert ended == [True]
    assert tracker(folder) is not track


def test_dataset_and_files_are_kept(track: MlflowTracker, client: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    with track.stage("kept", {}):
        track.log_dataset(tmp_path, "d" * 64, "training")
        track.log_files([tmp_path / "a.png"], "images")
    (run,) = runs(client, "tags.stage = 'kept'")
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert (Path(run.info.artifact_uri) / "images" / "a.png").read_bytes() == b"png"


def test_registry_promotes_finds_and_rolls_back(track: MlflowTracker, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no policy 'champion' is registered"):
        track.policy_folder()
    versions = []
    for i in (1, 2):
        policy = tmp_path / f"policy{i}"
        policy.mkdir()
        (policy / "weights").write_text(str(i))
        with track.cycle(f"c10{i}", {}):
            versions.append(track.register_policy(policy, {"after": 0.5}, f"c10{i}"))
            assert track.register_policy(policy, {"after": 0.5}, f"c10{i}") == versions[-1]  # the same bytes again
    assert versions[0] != versions[1]
    assert track.champion() is None
    track.promote(versions[0])
    track.promote(versions[1])
    track.promote(versions[0], "tiny")
    assert (track.champion(), track.champion("tiny")) == ("c102", "c101")
    assert (track.policy_folder() / "weights").read_text() == "2"
    assert (track.policy_folder(versions[0]) / "weights").read_text() == "1"
    assert track.rollback() == versions[0]
    assert track.champion() == "c101"
    with pytest.raises(TrackingError, match="no version 99"):
        track.promote("99")
    with pytest.raises(TrackingError, match="'99'"):
        track.policy_folder("99")


def test_first_touches_at_once_leave_a_sound_database(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from genevolve.tracking import init_db; init_db(Path({str(tmp_path / 'm')!r}))"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait(timeout=180) for p in started] == [0, 0]
    track = MlflowTracker(tmp_path / "m")
    with track.stage("first", {}):
        pass


def test_tracking_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH_VARIABLE, "off")
    track = tracker(tmp_path / "none")
    assert isinstance(track, NullTracker)
    with track.cycle("c001", {}), track.stage("build", {}):
        track.log_metrics({"a": 1})
        track.log_curve([{"a": 1}])
        track.log_traces([trajectory()], "best")
        assert track.register_policy(tmp_path, {}, "c001") == "0"
    assert not (tmp_path / "none").exists()


def test_numbers_are_the_finite_ones_flattened() -> None:
    values = {"a": {"b": 1, "c": "x"}, "d": True, "e": float("inf"), "f": [1], "g": None}
    assert numbers(values) == {"a.b": 1.0, "d": 1.0}


def test_an_ablations_arms_are_nested_in_it_hold_their_stages_and_go_on(track: MlflowTracker, client: Any) -> None:
    for _ in range(2):
        with (
            track.cycle("ablation/tiny", {}),
            track.arm("sft+grpo-s1", {"arm": "sft+grpo"}),
            stage_within(track, "evolve"),
        ):
            pass
    (whole,) = runs(client, "tags.cycle = 'ablation/tiny'")
    (arm,) = runs(client, f"tags.mlflow.parentRunId = '{whole.info.run_id}'")
    assert (arm.info.run_name, arm.info.status, arm.data.params["arm"]) == ("sft+grpo-s1", "FINISHED", "sft+grpo")
    assert len(runs(client, f"tags.mlflow.parentRunId = '{arm.info.run_id}'")) == 2


def test_the_experiments_pages_open_as_a_table_of_nights(folder: Path, client: Any) -> None:
    """Only the tags: how MLflow's pages read them is seen in the pictures of benchmarks/screens.py."""
    tags = client.get_experiment_by_name("genevolve").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    saved = json.loads(tags["mlflow.sharedViewState.nights"])
    assert "metrics.`kscore/report`" in json.loads(saved["state"])["selectedColumns"]
    assert experiment(folder) == (client.get_experiment_by_name("genevolve").experiment_id, str(folder / "artifacts"))


def test_what_became_of_a_cycle_is_a_tag_and_its_description(track: MlflowTracker, client: Any) -> None:
    with track.cycle("c020", {}, "digest"):
        track.log_outcome("not promoted", "c020 does not take the place of c019.")
    (run,) = runs(client, "tags.outcome = 'not promoted'")
    assert (run.data.tags["entry"], run.data.tags["mlflow.note.content"][:4]) == ("digest", "c020")
