"""Commands that use a policy or a run: generate, bench, import and export, another judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genevolve.cli.frame import Budget, Profile, Seed, Set, app, settings_of, within

if TYPE_CHECKING:
    from genevolve.settings import Settings


@app.command()
def generate(
    request: Annotated[str, typer.Argument(help="What to draw, in plain English.")],
    policy: Annotated[
        str,
        typer.Option(
            help="A registered version or alias, a policy's folder, ORG/NAME of the Hugging Face cache, or 'server'."
        ),
    ] = "champion",
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("picture.png"),
    dataset: Annotated[Path, typer.Option(help="A GenEvolve-Data folder: its world is searched.")] = Path("data"),
    profile: Profile = None,
    seed: Seed = None,
    set_: Set = None,
    budget: Budget = None,
) -> None:
    """Answer one request with a registered policy: picture, program and trajectory."""
    settings = settings_of(profile, seed, within(budget, set_))
    folder = policy_of(policy, settings)
    from genevolve.stages import generate as stage

    for line in stage.run(settings, question=request, policy=folder, out=out, dataset=dataset):
        typer.echo(line)


@app.command()
def bench(
    policy: Annotated[
        str,
        typer.Option(
            help="A registered version or alias, a policy's folder, ORG/NAME of the Hugging Face cache, 'server', or 'none': "
            "the generator without an agent."
        ),
    ] = "champion",
    out: Annotated[Path, typer.Option(help="Folder of the scores, pictures and trajectories.")] = Path("build/bench"),
    dataset: Annotated[Path, typer.Option(help="A GenEvolve-Data folder.")] = Path("data"),
    judge: Annotated[
        str,
        typer.Option(help="Score the stored pictures of the bench run in --out with this judge: pixels, second, vlm."),
    ] = "",
    profile: Profile = None,
    seed: Seed = None,
    set_: Set = None,
    budget: Budget = None,
) -> None:
    """Score any policy on the bench; with --judge, the pictures of a finished bench run once more, by another judge."""
    import json

    settings = settings_of(profile, seed, within(budget, set_))
    if judge:
        from genevolve.stages import rescore

        typer.echo(json.dumps(rescore.run(settings, judge=judge, bench=out, dataset=dataset), indent=1))
        return
    folder = None if policy == "none" else policy_of(policy, settings)
    from genevolve.stages.runner import Job, run_job

    inputs = {"dataset": dataset, "policy": folder, "baseline": None}
    job = Job("bench", "", settings, inputs, out, out.with_name(f"{out.name}.json"))
    typer.echo(json.dumps(run_job(job)["metrics"], indent=1))


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="A local copy of GenEvolve-Data-Bench, or a results.json of the release's scripts.")
    ],
    out: Annotated[Path, typer.Option(help="The dataset folder, or (of a results.json) the bench folder, to make.")],
    dataset: Annotated[Path | None, typer.Option(help="Of a results.json: the dataset whose bench it answers.")] = None,
    validation: Annotated[
        int | None, typer.Option(help="RL requests to set aside for validation (default: 129 of 2,575).", min=0)
    ] = None,
) -> None:
    """Read the public data, or a public run, into a folder of ours, and say what could not be read and why."""
    from genevolve.stages.exchange import bring_in

    for line in bring_in(source, out, dataset, validation):
        typer.echo(line)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A dataset folder, or a bench folder.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    dataset: Annotated[Path, typer.Option(help="Of a bench folder: the dataset it answers.")] = Path("data"),
) -> None:
    """Write a dataset, or a bench run, in the formats of the public release."""
    from genevolve.stages.exchange import hand_out

    for line in hand_out(source, out, dataset):
        typer.echo(line)


@app.command()
def rescore(
    run: Annotated[Path, typer.Argument(help="A bench folder, played here or imported.")],
    dataset: Annotated[Path, typer.Option(help="The dataset it answers.")] = Path("data"),
    judge: Annotated[str, typer.Option(help="pixels, second or vlm (default: the profile's image judge).")] = "",
    profile: Profile = None,
    set_: Set = None,
    budget: Budget = None,
) -> None:
    """Judge the stored pictures of a bench run; nothing is played or drawn. The same as `bench --judge NAME --out RUN`."""
    import json

    settings = settings_of(profile, None, within(budget, set_))
    from genevolve.stages import rescore as stage

    found = stage.run(settings, judge=judge or settings.judge.image, bench=run, dataset=dataset)
    typer.echo(json.dumps(found, indent=1))


def policy_of(name: str, settings: Settings) -> Path:
    """Return the folder of a policy that is named as `generate --policy` says. Raises SettingsError where there is none."""
    if Path(name).is_dir():
        return Path(name)
    if name == "server" and settings.policy.backend == "openai":
        from genevolve.stages.backends import server_card

        return server_card(settings)
    if "/" in name:  # a model of the Hugging Face cache, or a folder that is not there
        from genevolve.training.checkpoint import find_policy

        return find_policy(name)
    from genevolve.tracking import MlflowTracker

    return MlflowTracker().policy_folder(name)
