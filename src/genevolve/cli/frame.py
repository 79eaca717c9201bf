"""The command's frame: the app, the options that commands share, the settings they name."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from genevolve.settings import Settings

app = typer.Typer(
    name="genevolve",
    help="Self-evolving image generation agents: build data, train, evolve, benchmark, generate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Profile = Annotated[
    str | None, typer.Option("--profile", "-p", help="embedded (default), tiny or paper; see params.yaml.")
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="The run's seed: training, sampling, the generator's guesses.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one value: section.key=value; may be repeated.")]

Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        min=0,
        help="Dollars that paid calls may come to (world.budget_usd): no call is begun that could pass them; calls under way "
        "may, where a vendor counts more (docs/gpu.md).",
    ),
]


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
) -> None:
    os.environ.setdefault("GENEVOLVE_COMMAND", uuid.uuid4().hex)  # the account of this command and all that it starts
    if debug:
        os.environ["GENEVOLVE_DEBUG"] = "1"


def settings_of(profile: str | None, seed: int | None, overrides: list[str] | None) -> Settings:
    from genevolve.profiles import load

    return load(profile, seed=seed, overrides=overrides or ())


def within(budget: float | None, overrides: list[str] | None) -> list[str]:
    """Return the overrides with --budget among them: the last one counts."""
    return [*(overrides or ()), *(() if budget is None else (f"world.budget_usd={budget!r}",))]
