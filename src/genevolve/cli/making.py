"""Commands that make things: data, cycles, ablations, single stages, the base."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genevolve.cli.frame import Budget, Profile, Seed, Set, app, settings_of, within

if TYPE_CHECKING:
    from genevolve.settings import Settings


@app.command()
def evolve(
    profile: Profile = None,
    seed: Seed = None,
    set_: Set = None,
    budget: Budget = None,
    dvc: Annotated[
        bool | None, typer.Option("--dvc/--no-dvc", help="Let DVC decide what is up to date (default: for embedded).")
    ] = None,
    parent: Annotated[str, typer.Option(help="Open a further cycle from this one (cNNN), or from 'champion'.")] = "",
    git_commit: Annotated[
        bool, typer.Option("--git-commit", help="Commit ledger, lock file and metrics on --git-branch at the end.")
    ] = False,
    git_branch: Annotated[str, typer.Option(help="The branch of --git-commit; must not be checked out.")] = "nights",
) -> None:
    """Run one evolution cycle end to end and print its table; what is up to date is not run again."""
    set_ = within(budget, set_)
    settings_of(profile, seed, set_)  # a wrong setting is told before anything heavy is imported
    from flows.evolution_cycle import evolution_cycle, table

    numbers = evolution_cycle(profile, seed, set_, parent or None, dvc, git_commit=git_commit, git_branch=git_branch)
    typer.echo(table(numbers))


@app.command("build")
def build_data(
    profile: Profile = None,
    set_: Set = None,
    budget: Budget = None,
    dvc: Annotated[bool | None, typer.Option("--dvc/--no-dvc", help="As for `evolve`.")] = None,
) -> None:
    """Build GenEvolve-Data of a profile, unless it is up to date, and print what each step kept."""
    import json

    from genevolve.errors import SettingsError
    from genevolve.workspace import Workspace

    settings = settings_of(profile, None, within(budget, set_))
    use_dvc, workspace = Workspace.of(settings.profile, dvc)
    if set_ and use_dvc:
        raise SettingsError(
            "--set: DVC records this dataset with the values of params.yaml; change them, or use --no-dvc"
        )
    from flows.build_dataset import build_dataset
    from genevolve.stages.backends import pay_from

    pay_from(settings)
    metrics = build_dataset(settings, workspace, use_dvc)["metrics"]
    for row in json.loads((workspace.dataset / "yields.json").read_text(encoding="utf-8")):
        spare = f" (spare {row['spare']})" if row.get("spare") else ""
        typer.echo(f"{row['stage']:<34} {row['in']:>6} {row['kept']:>6}{spare}")
    typer.echo(f"{workspace.dataset}: {metrics['digest']}")


@app.command()
def ablate(
    seeds: Annotated[int | None, typer.Option(help="How many seeds (default: what each arm's entry says).")] = None,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 1,
    arms: Annotated[str | None, typer.Option(help="Names from ablation.yaml, a,b,c; or 'core'. Default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two arms, one seed, a part of the bench: a look.")] = False,
    profile: Profile = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result files (default: docs/results/ablation).")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Runs side by side, a core each (default: the cores this process may use); results do not depend on it."
        ),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Rebuild the report from the result files.")
    ] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Also write the summary beside --out: OUT.json.")] = False,
    dataset: Annotated[
        Path | None, typer.Option(help="A GenEvolve-Data folder (default: data, or the profile's own).")
    ] = None,
    budget: Budget = None,
) -> None:
    """Measure what each part of the method adds: arms by seeds, paired, with intervals; what is there is not run again."""
    from genevolve.ablation.command import ablate as command

    typer.echo(
        command(
            profile=profile,
            seeds=seeds,
            first_seed=first_seed,
            arms=arms,
            quick=quick,
            out=out,
            jobs=jobs,
            report_only=report_only,
            publish=publish,
            dataset=dataset,
            budget=budget,
        )
    )


@app.command()
def world(
    out: Annotated[Path, typer.Option(help="Where the world goes.")] = Path("build/world"),
) -> None:
    """Build the embedded world alone (encyclopedia, country facts, pictures) and say what is in it."""
    import json

    from genevolve.tools.world import build_world

    build_world(out)
    typer.echo(json.dumps(json.loads((out / "world.json").read_text(encoding="utf-8")), indent=1))


@app.command("pretrain-base")
def pretrain_base(
    out: Annotated[Path, typer.Option(help="Where the base goes.")] = Path("assets/base-policy"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int | None, typer.Option(help="Another seed than the committed base's.")] = None,
    start: Annotated[Path | None, typer.Option(help="Go on with the base in this folder.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="Tokens of practice, if not the recipe's.")] = None,
) -> None:
    """Make the small pretrained base of the embedded default (an hour or two on two cores; done once, by us)."""
    import json

    from genevolve.stages import pretrain_base as stage

    typer.echo(json.dumps(stage.run(out=out, device=device, seed=seed, start=start, tokens=tokens), indent=1))


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="build, cold_start, root, evolve or bench.")],
    cycle: Annotated[str, typer.Option(help="The ledger entry, cNNN (none for build).")] = "",
    budget: Budget = None,
) -> None:
    """Run one stage as dvc.yaml does: recipe from the ledger, folders from the workspace."""
    from genevolve.profiles import BUDGET_VARIABLE
    from genevolve.stages.runner import job, run_job
    from genevolve.workspace import Workspace

    if budget is not None:
        os.environ[BUDGET_VARIABLE] = repr(budget)
    if os.environ.get("GENEVOLVE_RESTORE_ONLY"):  # set by flows/dvc.py
        from genevolve.errors import StageError

        raise StageError(f"the GPU machine's result of {name} {cycle} is not here as DVC sees it, and is not made here")
    done = run_job(job(name, cycle, Workspace.with_dvc()))
    typer.echo(
        f"{name} {cycle}: {done['seconds']} s, {done['peak_memory_mb']} MB" + (", kept" if done["skipped"] else ""),
        err=True,  # flows/dvc.py passes it on
    )


Recipe = Annotated[
    Path | None, typer.Option(help="A file of whole settings instead of a profile, as a launched process gets it.")
]


@app.command()
def distill(
    policy: Annotated[Path, typer.Option(help="The policy that sampled the trajectories.")],
    reference: Annotated[Path, typer.Option(help="The policy that training began from.")],
    trajectories: Annotated[Path, typer.Option(help="A folder with trajectories.jsonl.")],
    experience: Annotated[Path, typer.Option(help="A folder with guides.jsonl.")],
    out: Annotated[Path, typer.Option(help="Where policy/ and trainer/ go.")],
    dataset: Annotated[Path | None, typer.Option(help="Where the pictures are that the policy was shown.")] = None,
    recipe: Recipe = None,
    profile: Profile = None,
    seed: Seed = None,
    set_: Set = None,
) -> None:
    """Make one distillation step from stored files; the evolve stage does this by itself, round for round."""
    settings = settings_of(profile, seed, set_) if recipe is None else _recipe(recipe)
    from genevolve.stages import distill as stage

    metrics = stage.run(
        settings,
        policy=policy,
        reference=reference,
        trajectories=trajectories,
        experience=experience,
        out=out,
        dataset=dataset,
    )
    _leave(metrics, out)


@app.command("cold-start")
def cold_start(
    dataset: Annotated[Path, typer.Option(help="A GenEvolve-Data folder.")],
    base: Annotated[str, typer.Option(help="A policy's folder, or ORG/NAME of the Hugging Face cache.")],
    out: Annotated[Path, typer.Option(help="Where policy/ goes.")],
    recipe: Recipe = None,
    profile: Profile = None,
    seed: Seed = None,
    set_: Set = None,
) -> None:
    """Fine-tune a base on a dataset's SFT split; the stage cold_start does this by itself."""
    settings = settings_of(profile, seed, set_) if recipe is None else _recipe(recipe)
    from genevolve.stages import cold_start as stage

    _leave(stage.run(settings, dataset=dataset, base=Path(base), out=out), out)


def _recipe(path: Path) -> Settings:
    import json

    from genevolve.settings import Settings

    return Settings.model_validate(json.loads(path.read_text(encoding="utf-8")))


def _leave(metrics: dict[str, Any], out: Path) -> None:
    """Print a training command's metrics; with several processes the first leaves them for the one that launched it."""
    import json

    from genevolve.files import write_whole
    from genevolve.stages.launch import METRICS, launched

    if not launched():
        typer.echo(json.dumps(metrics, indent=1))
    elif os.environ.get("RANK") == "0":
        write_whole(out / METRICS, json.dumps(metrics))
