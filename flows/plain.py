"""`flow` and `task`: Prefect's decorators, but a call outside a Prefect run calls the plain function, without any server.

`python -c "from flows.build_dataset import build_dataset; ..."` and `make evolve` run plain; a deployment, or
`build_dataset.prefect(...)`, runs under Prefect with its retries, states and pages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import prefect
from prefect.context import FlowRunContext

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
        result: R = self.prefect(*args, **kwargs)
        return result


def flow(**options: Any) -> Callable[[Callable[P, R]], Step[P, R]]:
    """Decorate a flow; options are those of `prefect.flow`."""
    options = {"validate_parameters": False, "log_prints": True} | options
    return lambda function: Step(function, prefect.flow(**options)(function))


def task(**options: Any) -> Callable[[Callable[P, R]], Step[P, R]]:
    """Decorate a task; options are those of `prefect.task`. Results are never cached by Prefect: DVC decides that."""
    options = {"cache_policy": prefect.cache_policies.NO_CACHE} | options
    return lambda function: Step(function, prefect.task(**options)(function))
