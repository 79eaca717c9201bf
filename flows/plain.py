"""`flow` and `task`: Prefect's decorators, but a call outside a Prefect run calls the plain function, without any server.

`python -c "from flows.build_dataset import build_dataset; ..."` and `make evolve` run plain; a deployment, or
`build_dataset.prefect(...)`, runs under Prefect with its retries, states and pages.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, ParamSpec, TypeVar

import prefect
from prefect.context import FlowRunContext
from prefect.settings import temporary_settings

from genevolve.operations import FOLDER

RUN = "PREFECT__FLOW_RUN_ID"
"""Prefect's variable in the environment of a run's process, and of all that it starts."""

P = ParamSpec("P")
R = TypeVar("R")


class Step(Generic[P, R]):
    """A function with a Prefect twin: `step(...)` picks the twin inside a Prefect run, `step.prefect` always is it."""

    def __init__(self, function: Callable[P, R], twin: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.prefect = twin

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if FlowRunContext.get() is None:
            return self.function(*args, **kwargs)
        with _without_heartbeat() if isinstance(self.prefect, prefect.Flow) else nullcontext():
            result: R = self.prefect(*args, **kwargs)
        return result


def _without_heartbeat() -> AbstractContextManager[Any]:
    """A flow within a flow lives as long as the outer one, whose heartbeat the server has; ending its own takes up to a second."""
    return temporary_settings({"flows.heartbeat_frequency": None})


def flow(**options: Any) -> Callable[[Callable[P, R]], Step[P, R]]:
    """Decorate a flow; options are those of `prefect.flow`."""
    options = {"validate_parameters": False, "log_prints": True} | options
    return lambda function: Step(function, prefect.flow(**options)(_with_own_log(function)))


def _with_own_log(function: Callable[P, R]) -> Callable[P, R]:
    """Have what a worker's run says, DVC and stages included, go to .genevolve/logs/run-ID.log.

    The worker would pass it on through a pipe. Once the worker is killed, whoever writes to that pipe fails: the run, and
    the stage in the middle of its work.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        run = os.environ.get(RUN)
        if run and stat.S_ISFIFO(os.fstat(2).st_mode):
            path = FOLDER / "logs" / f"run-{run}.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            sys.stdout.flush()
            with path.open("ab") as log:
                for end in (1, 2):
                    os.dup2(log.fileno(), end)
        return function(*args, **kwargs)

    return wrapped


def task(**options: Any) -> Callable[[Callable[P, R]], Step[P, R]]:
    """Decorate a task; options are those of `prefect.task`. Results are never cached by Prefect: DVC decides that."""
    options = {"cache_policy": prefect.cache_policies.NO_CACHE} | options
    return lambda function: Step(function, prefect.task(**options)(function))
