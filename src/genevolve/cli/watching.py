"""Commands that look after it: doctor, servers, deployments, status, champions, housekeeping."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from genevolve.cli.frame import Profile, Set, app, settings_of


@app.command()
def doctor(profile: Profile = None, set_: Set = None) -> None:
    """Say, a line each, what is there, what is missing and what that blocks."""
    from genevolve.doctor.examine import examine

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
    settings = settings_of(profile, None, set_)
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
    settings = settings_of(profile, None, None if keep is None else [f"retention.cycles={keep}"])
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
    settings = settings_of(profile, None, None)
    from flows.night import start_campaign
    from genevolve.tracking import tracker
    from genevolve.workspace import Workspace

    use_dvc, workspace = Workspace.of(settings.profile, dvc)
    typer.echo(f"the new campaign's root: {start_campaign(workspace, tracker(), settings, use_dvc)}")
