"""The command line. Everything heavy is imported by the command that needs it, so that `--help` takes no half second."""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


def _settings(profile: str | None, seed: int | None, overrides: list[str] | None) -> Settings:
    from genevolve.profiles import load

    return load(profile, seed=seed, overrides=overrides or ())


def _within(budget: float | None, overrides: list[str] | None) -> list[str]:
    """Return the overrides with --budget among them: the last one counts."""
    return [*(overrides or ()), *(() if budget is None else (f"world.budget_usd={budget!r}",))]


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
    set_ = _within(budget, set_)
    _settings(profile, seed, set_)  # a wrong setting is told before anything heavy is imported
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

    settings = _settings(profile, None, _within(budget, set_))
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
    settings = _settings(profile, seed, _within(budget, set_))
    folder = _policy(policy, settings)
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

    settings = _settings(profile, seed, _within(budget, set_))
    if judge:
        from genevolve.stages import rescore

        typer.echo(json.dumps(rescore.run(settings, judge=judge, bench=out, dataset=dataset), indent=1))
        return
    folder = None if policy == "none" else _policy(policy, settings)
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

    settings = _settings(profile, None, _within(budget, set_))
    from genevolve.stages import rescore as stage

    found = stage.run(settings, judge=judge or settings.judge.image, bench=run, dataset=dataset)
    typer.echo(json.dumps(found, indent=1))


def _policy(name: str, settings: Settings) -> Path:
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


@app.command()
def doctor(profile: Profile = None, set_: Set = None) -> None:
    """Say, a line each, what is there, what is missing and what that blocks."""
    from genevolve.doctor import examine

    findings = examine(profile, set_ or ())
    for finding in findings:
        typer.echo(finding.line())
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command("serve-renderer")
def serve_renderer(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8001,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many, a process each (default: all of them).")] = None,
    queue: Annotated[int, typer.Option(min=1, help="Programs that may wait; beyond them callers get a 503.")] = 32,
    profile: Profile = None,
    set_: Set = None,
) -> None:
    """Serve the profile's generator over HTTP (POST /generate, GET /health); a token: GENEVOLVE_RENDER_KEY."""
    settings = _settings(profile, None, set_)
    from genevolve.stages.serve_renderer import run

    run(settings, host=host, port=port, gpus=gpus, queue=queue, say=lambda line: typer.echo(line, err=True))


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
def spend() -> None:
    """Say what services were asked and what it cost: calls, tokens, seconds and dollars, by month and backend."""
    from genevolve.operations.spend import ledgers, lines, table

    typer.echo("\n".join(table(lines(ledgers()))))


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
    settings = _settings(profile, seed, set_) if recipe is None else _recipe(recipe)
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
    settings = _settings(profile, seed, set_) if recipe is None else _recipe(recipe)
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


Reason = Annotated[str, typer.Option("--reason", help="Why; it is logged with time and user.")]
Line = Annotated[str, typer.Option("--line", help="A private line of cycles, as tiny; default: the project's own.")]


@app.command()
def promote(
    policy: Annotated[str, typer.Argument(help="A cycle, cNNN, or a registered version number.")],
    reason: Reason,
    line: Line = "",
) -> None:
    """Make a registered policy the champion by hand, whatever the gate said."""
    from genevolve.tracking import MlflowTracker

    track = MlflowTracker()
    version = policy if policy.isdigit() else track.version_of(f"{line}/{policy}" if line else policy)
    track.promote(version, line, reason)
    typer.echo(f"champion: version {version}, {track.champion(line)}; before: {track.previous(line) or 'nobody'}")


@app.command()
def rollback(reason: Reason, line: Line = "") -> None:
    """Make the champion before this one champion again; a second time returns to this one."""
    from genevolve.tracking import MlflowTracker

    track = MlflowTracker()
    version = track.rollback(line, reason)
    typer.echo(f"champion: version {version}, {track.champion(line)}; before: {track.previous(line) or 'nobody'}")


@app.command("gc")
def collect(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only say what would go.")] = False,
    keep: Annotated[int | None, typer.Option(help="Keep the last so many cycles (default: retention.cycles).")] = None,
    profile: Profile = None,
    dvc: Annotated[bool | None, typer.Option("--dvc/--no-dvc", help="As for `evolve`.")] = None,
) -> None:
    """Remove runs that are in no champion's lineage and not among the last: folders, registered copies, DVC's copies."""
    settings = _settings(profile, None, None if keep is None else [f"retention.cycles={keep}"])
    from flows.housekeeping import collect_garbage, to_go
    from genevolve.tracking import tracker
    from genevolve.workspace import Workspace

    use_dvc, workspace = Workspace.of(settings.profile, dvc)
    gone, foreign = to_go(workspace, settings, tracker(), use_dvc)
    for item in gone:
        typer.echo(item.line())
    if foreign:
        typer.echo(foreign)
    if yes:
        removed = collect_garbage(workspace, settings, tracker(), use_dvc)
        typer.echo(f"removed: {removed:.1f} MB")
    else:
        typer.echo(f"would remove {sum(g.mb for g in gone):.1f} MB: `genevolve gc --yes` does")


@app.command()
def campaign(
    profile: Profile = None,
    dvc: Annotated[bool | None, typer.Option("--dvc/--no-dvc", help="As for `evolve`.")] = None,
) -> None:
    """Archive the ledger and begin a new one with the champion as its root."""
    settings = _settings(profile, None, None)
    from flows.night import start_campaign
    from genevolve.tracking import tracker
    from genevolve.workspace import Workspace

    use_dvc, workspace = Workspace.of(settings.profile, dvc)
    typer.echo(f"the new campaign's root: {start_campaign(workspace, tracker(), settings, use_dvc)}")


def main() -> None:
    """Run the command line: an error is one sentence on stderr and an exit code that is not 0; --debug shows the trace."""
    if str(Path.cwd()) not in sys.path:  # flows/ lies beside params.yaml, not in the package
        sys.path.insert(0, str(Path.cwd()))
    gc.set_threshold(50_000)  # the imports of torch and MLflow make a million objects that stay
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
    finally:
        gc.freeze()  # the interpreter's last collection would take a second over them


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
    if found := re.search(r"\((?:sqlite3|psycopg2)\.[\w.]+\) (.+?)(?= \[SQL:|$)", text):
        replaced = re.search("readonly database|no such table", text)
        hint = ": its file was removed or replaced meanwhile (bring it back), or may not be written" if replaced else ""
        return f"MLflow's database says: {found[1]}{hint} (docs/operations.md#faults)"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return f"unexpected {type(error).__name__}: {text} (genevolve --debug ... shows where)"
