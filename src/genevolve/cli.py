"""The command line. Everything heavy is imported by the command that needs it, so that `--help` takes no half second."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
import uuid
from pathlib import Path
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


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
) -> None:
    os.environ.setdefault("GENEVOLVE_COMMAND", uuid.uuid4().hex)  # the account of this command and all that it starts
    if debug:
        os.environ["GENEVOLVE_DEBUG"] = "1"


def _settings(profile: str | None, seed: int | None, overrides: list[str] | None) -> Settings:
    from genevolve.profiles import load

    return load(profile, seed=seed, overrides=overrides or ())


@app.command()
def evolve(
    profile: Profile = None,
    seed: Seed = None,
    set_: Set = None,
    dvc: Annotated[
        bool | None, typer.Option("--dvc/--no-dvc", help="Let DVC decide what is up to date (default: for embedded).")
    ] = None,
    parent: Annotated[str, typer.Option(help="Open a further cycle from this one (cNNN), or from 'champion'.")] = "",
) -> None:
    """Run one evolution cycle end to end and print its table; what is up to date is not run again."""
    _settings(profile, seed, set_)  # a wrong setting is told before anything heavy is imported
    from flows.evolution_cycle import evolution_cycle, table

    typer.echo(table(evolution_cycle(profile, seed, set_, parent or None, dvc)))


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
    jobs: Annotated[int, typer.Option(help="Runs side by side, a core each; results do not depend on it.")] = 2,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Rebuild the report from the result files.")
    ] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Also write the summary beside --out: OUT.json.")] = False,
    dataset: Annotated[
        Path | None, typer.Option(help="A GenEvolve-Data folder (default: data, or the profile's own).")
    ] = None,
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
        )
    )


@app.command()
def generate(
    request: Annotated[str, typer.Argument(help="What to draw, in plain English.")],
    policy: Annotated[str, typer.Option(help="A registered version or alias, or a policy's folder.")] = "champion",
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("picture.png"),
    dataset: Annotated[Path, typer.Option(help="A GenEvolve-Data folder: its world is searched.")] = Path("data"),
    profile: Profile = None,
    seed: Seed = None,
    set_: Set = None,
) -> None:
    """Answer one request with a registered policy: picture, program and trajectory."""
    settings = _settings(profile, seed, set_)
    folder = _policy(policy)
    from genevolve.stages import generate as stage

    for line in stage.run(settings, question=request, policy=folder, out=out, dataset=dataset):
        typer.echo(line)


@app.command()
def bench(
    policy: Annotated[str, typer.Option(help="A registered version or alias, or a policy's folder.")] = "champion",
    out: Annotated[Path, typer.Option(help="Folder of the scores, pictures and trajectories.")] = Path("build/bench"),
    dataset: Annotated[Path, typer.Option(help="A GenEvolve-Data folder.")] = Path("data"),
    profile: Profile = None,
    seed: Seed = None,
    set_: Set = None,
) -> None:
    """Score any policy on the bench."""
    import json

    settings = _settings(profile, seed, set_)
    folder = _policy(policy)
    from genevolve.stages.runner import Job, run_job

    inputs = {"dataset": dataset, "policy": folder, "baseline": None}
    job = Job("bench", "", settings, inputs, out, out.with_name(f"{out.name}.json"))
    typer.echo(json.dumps(run_job(job)["metrics"], indent=1))


def _policy(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from genevolve.tracking import MlflowTracker

    return MlflowTracker().policy_folder(name)


@app.command()
def doctor(profile: Profile = None) -> None:
    """Say, a line each, what is there, what is missing and what that blocks."""
    from genevolve.doctor import examine

    findings = examine(profile)
    for finding in findings:
        typer.echo(finding.line())
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def serve(
    pool: Annotated[
        str, typer.Option(help="The work pool whose worker to start: default-process-pool or gpu-process-pool.")
    ] = "default-process-pool",
    pages: Annotated[bool, typer.Option("--pages/--no-pages", help="MLflow's pages, too.")] = True,
) -> None:
    """Start, or find, Prefect's server, the work pools, a worker and MLflow's pages; wait for each and say where it is."""
    from flows.serve import start

    typer.echo("\n".join(start(pool, pages)))


@app.command()
def stop() -> None:
    """Stop what `serve` started, and nothing else."""
    from flows.serve import end

    typer.echo("\n".join(end()))


@app.command()
def deploy() -> None:
    """Register the deployments of prefect.yaml on the server."""
    from flows.deploy import deploy as register

    typer.echo("\n".join(register()))


@app.command()
def status(profile: Profile = None) -> None:
    """Say in ten lines: champion, last nights, next run, disk, paid calls, and what needs you."""
    from genevolve.operations.status import status as look
    from genevolve.profiles import DEFAULT

    name = profile or os.environ.get("GENEVOLVE_PROFILE") or DEFAULT
    typer.echo("\n".join(look("" if name == DEFAULT else name)))


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
) -> None:
    """Make the small pretrained base of the embedded default (an hour or two on two cores; done once, by us)."""
    import json

    from genevolve.stages import pretrain_base as stage

    typer.echo(json.dumps(stage.run(out=out, device=device, seed=seed), indent=1))


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="build, cold_start, evolve or bench.")],
    cycle: Annotated[str, typer.Option(help="The ledger entry, cNNN (none for build).")] = "",
) -> None:
    """Run one stage as dvc.yaml does: recipe from the ledger, folders from the workspace."""
    from genevolve.stages.runner import job, run_job
    from genevolve.workspace import Workspace

    if os.environ.get("GENEVOLVE_RESTORE_ONLY"):  # set by flows/dvc.py
        from genevolve.errors import StageError

        raise StageError(f"the GPU machine's result of {name} {cycle} is not here as DVC sees it, and is not made here")
    done = run_job(job(name, cycle, Workspace.with_dvc()))
    typer.echo(
        f"{name} {cycle}: {done['seconds']} s, {done['peak_memory_mb']} MB" + (", kept" if done["skipped"] else "")
    )


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="A registered version number, or 'previous' to roll back.")],
) -> None:
    """Make a registered policy the champion by hand; `promote previous` rolls back."""
    from genevolve.tracking import MlflowTracker

    track = MlflowTracker()
    if version == "previous":
        version = track.rollback()
    else:
        track.promote(version)
    typer.echo(f"champion: version {version}")


def main() -> None:
    """Run the command line: an error is one sentence on stderr and an exit code that is not 0; --debug shows the trace."""
    if str(Path.cwd()) not in sys.path:  # flows/ lies beside params.yaml, not in the package
        sys.path.insert(0, str(Path.cwd()))
    try:
        app()
    except KeyboardInterrupt:
        sys.exit("genevolve: stopped; the same command goes on from here")
    except Exception as error:
        from genevolve.errors import MAY_PASS, TRY_LATER, may_pass

        passing = may_pass(error)
        _close_bars()
        if os.environ.get("GENEVOLVE_DEBUG"):
            traceback.print_exc()
        else:
            print(f"genevolve: {sentence(error).removesuffix(MAY_PASS)}{MAY_PASS if passing else ''}", file=sys.stderr)
        sys.exit(TRY_LATER if passing else getattr(error, "exit_code", 1))


def _close_bars() -> None:
    """End the lines of progress bars that an error left open: its sentence needs one of its own, for `flows/dvc.py` too."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def sentence(error: Exception) -> str:
    """Return one line for a person: our own errors as they are, the system's with their file, others with their name."""
    text = " ".join(str(error).split())
    if type(error).__module__.startswith("genevolve"):
        return text
    if getattr(error, "errno", None) == errno.ENOSPC or re.search("disk is full|No space left on device", text):
        return "the disk is full; make room, and the same command goes on from here"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return f"unexpected {type(error).__name__}: {text} (genevolve --debug ... shows where)"
