"""Two starts at once, and a night that comes too late: as a plain call and inside a Prefect run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.alone import lateness, line_of, one_at_a_time
from genevolve.operations import journal


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@one_at_a_time
def cycle(profile: str | None = None, use_dvc: bool | None = None, late_minutes: int | None = None) -> dict[str, Any]:
    return {"cycle": "c001", "promoted": True, "after": 0.9, "diff": 0.1, "ci": [0.0, 0.2]}


def in_a_run(expected: datetime, scheduled: bool) -> Any:
    """The context that Prefect's engine gives a flow's function."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.context import FlowRunContext

    run = FlowRun.model_construct(auto_scheduled=scheduled, expected_start_time=expected)
    return FlowRunContext.model_construct(flow_run=run)


def test_a_plain_second_start_raises_and_leaves_the_first_alone() -> None:
    with journal.night("tiny"):
        with pytest.raises(journal.BusyError, match="a cycle of the line 'tiny' is running here already"):
            cycle("tiny")
        assert cycle("embedded")["cycle"] == "c001"  # another line
    assert cycle("tiny")["promoted"] is True
    assert [n.outcome for n in journal.last_nights("tiny", 5)] == ["promoted", "not promoted"]


def test_under_prefect_the_second_run_is_skipped_with_the_sentence() -> None:
    now = datetime.now(UTC)
    with journal.night(""), in_a_run(now, scheduled=True):
        state: Any = cycle("embedded")
    assert (state.type.value, state.name) == ("CANCELLED", "Skipped")
    assert "is running here already (process " in state.message
    skip = journal.last_nights("", 5)[-1]
    assert (skip.outcome, skip.said) == ("skipped", state.message)


@pytest.mark.parametrize(
    ("late", "scheduled", "minutes", "runs"),
    [(200, True, 180, False), (100, True, 180, True), (200, False, 180, True), (10_000, True, None, True)],
)
def test_a_scheduled_run_that_is_too_late_is_skipped(
    late: int, scheduled: bool, minutes: int | None, runs: bool
) -> None:
    due = datetime.now(UTC) - timedelta(minutes=late)
    with in_a_run(due, scheduled):
        result: Any = cycle("embedded", late_minutes=minutes)
    if runs:
        assert result["cycle"] == "c001"
    else:
        assert (result.name, journal.last_nights("", 1)[0].outcome) == ("Skipped", "skipped")
        assert f"{late} minutes late (more than {minutes})" in result.message


def test_lateness_is_told_with_the_time_that_was_meant() -> None:
    due = datetime(2026, 11, 23, 2, tzinfo=UTC)
    assert lateness(due, due + timedelta(minutes=59), 60) == ""
    assert lateness(due, due + timedelta(hours=5), 60).startswith("due 2026-11-23 02:00 UTC and 300 minutes late")


def test_the_line_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line_of(None, None), line_of("embedded", False), line_of("tiny", None)] == ["", "embedded", "tiny"]
    monkeypatch.setenv("GENEVOLVE_PROFILE", "tiny")
    assert line_of(None, None) == "tiny"
    assert line_of("paper", True) == ""
