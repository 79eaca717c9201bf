"""What prefect.yaml deploys: every flow loads, its parameters are typed and documented, and its limits are what the docs say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from genevolve.errors import SettingsError, StageError, TryLaterError


@pytest.fixture
def deployments(in_project: Path) -> dict[str, dict[str, Any]]:
    entries = yaml.safe_load((in_project / "prefect.yaml").read_text())["deployments"]
    return {entry["name"]: entry for entry in entries}


def test_every_deployment_loads_with_typed_and_documented_parameters(deployments: dict[str, dict[str, Any]]) -> None:
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.schema_tools import is_valid_schema, validate

    assert set(deployments) == {"nightly", "bench-only", "build-dataset", "ablation", "gpu-stage"}
    for name, entry in deployments.items():
        flow = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
        schema = flow.parameters.model_dump()
        is_valid_schema(schema)
        validate(entry.get("parameters", {}), schema, raise_on_error=True, ignore_required=True)
        for parameter, about in schema["properties"].items():
            assert about.get("description"), f"{name}: {parameter} has no word of explanation"
            assert {"type", "anyOf", "enum"} & about.keys(), f"{name}: {parameter} has no type"


def test_a_wrong_parameter_is_refused_before_a_run_exists(deployments: dict[str, dict[str, Any]]) -> None:
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.schema_tools import validate

    def faults(name: str, **parameters: Any) -> str:
        flow = load_flow_from_entrypoint(deployments[name]["entrypoint"], use_placeholder_flow=False)
        found = validate(parameters, flow.parameters.model_dump(), raise_on_error=False, ignore_required=True)
        return "; ".join(e.message for e in found)

    assert "'nope'" in faults("nightly", profile="nope")
    for name, parameters in (
        ("nightly", {"parent": "c1"}),
        ("nightly", {"late_minutes": "soon"}),
        ("nightly", {"overrides": ["sampling.k"]}),
        ("bench-only", {"cycle": "the best one"}),
        ("ablation", {"seeds": 0}),
        ("ablation", {"size": "huge"}),
    ):
        assert faults(name, **parameters), (name, parameters)
    fine = {"profile": "tiny", "seed": 7, "parent": None, "overrides": ["sampling.k=4"], "late_minutes": 60}
    assert faults("nightly", **fine) == ""


def test_nights_come_one_at_a_time_and_training_has_its_own_pool(deployments: dict[str, dict[str, Any]]) -> None:
    from flows.deploy import POOLS

    night = deployments["nightly"]
    assert night["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert night["parameters"]["late_minutes"] > 0
    assert night["parameters"]["collect"]  # nobody is there to make room
    (schedule,) = night["schedules"]
    assert {"cron", "timezone"} <= schedule.keys()
    assert deployments["gpu-stage"]["concurrency_limit"]["collision_strategy"] == "ENQUEUE"
    assert {entry["work_pool"]["name"] for entry in deployments.values()} == set(POOLS)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TryLaterError("a busy lock"), True),
        (RuntimeError("(sqlite3.OperationalError) database is locked"), True),
        (RuntimeError("(psycopg2.OperationalError) server closed the connection unexpectedly"), True),
        (SettingsError("sampling.k is 0"), False),
        (StageError("the disk is full"), False),
        (KeyError("a fault of ours"), False),
    ],
)
def test_a_stage_is_tried_again_only_where_that_can_help(error: Exception, again: bool) -> None:
    from prefect.states import Failed

    from flows.evolution_cycle import publish
    from flows.gate import books_may_come_back, gate, play_beside
    from flows.handover import _gpu_stage, run_stage_on_gpu
    from flows.night import open_cycle
    from flows.stages import RETRY_AFTER, can_help, run_stage

    assert can_help(None, None, Failed(data=error)) is again
    for step in (run_stage, run_stage_on_gpu, _gpu_stage, play_beside, open_cycle, publish):
        assert (step.prefect.retries, step.prefect.retry_condition_fn) == (len(RETRY_AFTER), can_help)
    assert (gate.prefect.retries, gate.prefect.retry_condition_fn) == (len(RETRY_AFTER), books_may_come_back)
    of_stage = isinstance(error, TryLaterError)  # tried by its own task already
    assert books_may_come_back(None, None, Failed(data=error)) is (again and not of_stage)
    assert sum(RETRY_AFTER) > 3600  # a service that is down for an hour is waited for


def test_a_budget_can_be_typed_in_for_a_bench_and_for_a_dataset(
    in_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import deployed
    from genevolve.profiles import BUDGET_VARIABLE, load

    class Seen:
        def function(self, *arguments: Any) -> dict[str, Any]:
            first = arguments[0]
            seen.append(first.world.budget_usd if hasattr(first, "world") else load("tiny", recipe={}).world.budget_usd)
            return {}

    seen: list[float] = []
    monkeypatch.setenv(BUDGET_VARIABLE, "7.0")  # put back when the test ends
    monkeypatch.setattr(deployed, "evaluate_policy", Seen())
    monkeypatch.setattr(deployed, "build_dataset", Seen())
    deployed.bench_only.function("c001", "tiny", False, 2.5)
    deployed.dataset.function("tiny", None, False, 3.5)
    assert seen == [2.5, 3.5]
