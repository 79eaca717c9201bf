"""What makes a cycle a night: one at a time, not hours late, and remembered in the journal."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any, ParamSpec

from prefect.context import FlowRunContext
from prefect.states import Cancelled

from genevolve.operations import journal
from genevolve.profiles import DEFAULT

P = ParamSpec("P")


def one_at_a_time(function: Callable[P, dict[str, Any]]) -> Callable[P, dict[str, Any]]:
    """Decorate the cycle: a second start says that one is running and does nothing.

    The function has the parameters `profile`, `use_dvc` and `late_minutes`. A plain second start raises BusyError. Under
    Prefect the run ends as Cancelled, named Skipped, with the sentence; so does a scheduled run that begins too late.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        line = line_of(given.arguments["profile"], given.arguments["use_dvc"])
        if late := too_late(given.arguments["late_minutes"]):
            journal.skipped(line, late)
            return Cancelled(name="Skipped", message=late)
        context = FlowRunContext.get()
        run = str(context.flow_run.id) if context and context.flow_run else ""
        try:
            with journal.night(line, run=run) as numbers:
                numbers.update(function(*args, **kwargs))
                return dict(numbers)
        except journal.BusyError as busy:
            if context is None:
                raise
            journal.skipped(line, str(busy))
            return Cancelled(name="Skipped", message=str(busy))

    return guarded


def line_of(profile: str | None, use_dvc: bool | None) -> str:
    """Return the line of cycles that a call works on: the project's own ("") with DVC, else its profile's."""
    name = profile or os.environ.get("GENEVOLVE_PROFILE") or DEFAULT
    return "" if (name == DEFAULT if use_dvc is None else use_dvc) else name


def too_late(minutes: int | None) -> str:
    """Return why the scheduled run we are in should not begin any more, or "". Runs started by hand are never late."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if minutes is None or run is None or not run.auto_scheduled or run.expected_start_time is None:
        return ""
    return lateness(run.expected_start_time, journal.now(), minutes)


def lateness(expected: datetime, begins: datetime, minutes: int) -> str:
    """Return the sentence of a run that begins more than `minutes` after its time, or ""."""
    late = (begins - expected).total_seconds() / 60
    if late <= minutes:
        return ""
    return f"due {expected:%Y-%m-%d %H:%M} UTC and {late:.0f} minutes late (more than {minutes}); the next one comes in time"
