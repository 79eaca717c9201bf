"""Prefect's twins of our functions: called plainly outside a run of Prefect, as flows and tasks inside one."""

from __future__ import annotations

import prefect
import pytest
from prefect.settings import get_current_settings

from flows.plain import FlowRunContext, flow


def test_a_flow_within_a_flow_sends_no_heartbeat_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def beats() -> int | None:
        return get_current_settings().flows.heartbeat_frequency

    inner, usual = flow()(beats), beats()
    assert inner() == usual is not None
    monkeypatch.setattr(FlowRunContext, "get", classmethod(lambda cls: object()))
    monkeypatch.setattr(prefect.Flow, "__call__", lambda twin: beats())
    assert inner() is None
    assert beats() == usual
