"""`genevolve ablate`: which folders, which seeds, then run what is missing and write the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genevolve.ablation import results as files
from genevolve.ablation.arms import Table, load_table
from genevolve.ablation.report import write_report
from genevolve.ablation.runner import Place, Stamp, plan, run
from genevolve.errors import SettingsError, StageError
from genevolve.profiles import load
from genevolve.services.cache import BudgetError
from genevolve.settings import Settings
from genevolve.stages.backends import pay_from
from genevolve.stages.runner import job, run_job
from genevolve.tracking import tracker
from genevolve.training.checkpoint import base_folder, policy_hash, tokenizer_hash
from genevolve.workspace import Workspace, folder_digest

COMMITTED = Path("docs/results/ablation")
"""Where the default profile's results go: git keeps them, so that another machine can continue the table."""
REPORTS = Path("reports/ablation")
WORK = Path("build/ablate")


def ablate(
    *,
    profile: str | None = None,
    seeds: int | None = None,
    first_seed: int = 1,
    arms: str | None = None,
    quick: bool = False,
    out: Path | None = None,
    jobs: int | None = None,
    report_only: bool = False,
    publish: bool = False,
    dataset: Path | None = None,
    budget: float | None = None,
    work: Path = WORK,
    arms_file: Path = Path("ablation.yaml"),
) -> str:
    """Run the arms that have no result yet, write the report, and return a small table for the terminal.

    Seeds are first_seed, first_seed + 1, ...: `seeds` of them, or as many as an arm's entry says. `jobs` runs go side by
    side, by default one a core that this process may use. All runs pay from one account, `budget` dollars or what the
    profile says. Raises BudgetError when it is used up and StageError when runs failed, both after the report of those
    that are there.
    """
    table = load_table(arms_file)
    settings = load(profile, seed=first_seed, overrides=[] if budget is None else [f"world.budget_usd={budget!r}"])
    pay_from(settings)
    chosen = table.select(arms or (",".join(table.quick.arms) if quick else None))
    if any(n is not None and n < 1 for n in (jobs, seeds)):
        raise SettingsError("--jobs and --seeds are at least 1")
    name = f"{settings.profile}{'-quick' if quick else ''}"
    results, reports = _folders(name, out, work)
    failed: Mapping[str, str] = {}
    spent: BudgetError | None = None
    if report_only:
        summary = _report(results, table, reports, publish, nothing=False)
    else:
        for benchmark, folder in table.benchmarks.items():
            if not folder.is_dir():
                raise StageError(f"There is no dataset at {folder}, the benchmark '{benchmark}' of {arms_file}.")
        place = Place(_dataset(settings, dataset), work / name, work / settings.profile, results, table.benchmarks)
        base = base_folder(settings.policy.base)
        base_digest = f"{policy_hash(base)} {tokenizer_hash(base)}"
        stamp = Stamp(files.commit(), files.machine(), folder_digest(place.dataset), base_digest)
        _note_requests(place)
        count = seeds or (1 if quick else max(arm.seeds for arm in chosen.values()))
        units = plan(
            table,
            chosen,
            place,
            stamp,
            profile=profile,
            seeds=range(first_seed, first_seed + count),
            per_arm=seeds is None,
            quick=quick,
        )
        track = tracker()
        with track.cycle(f"ablation/{name}", {"profile": settings.profile, "arms": ",".join(chosen)}):
            try:
                failed = run(units, place, stamp, jobs) if units else {}
            except BudgetError as e:
                spent = e
            summary = _report(results, table, reports, publish, nothing=bool(failed or spent))
            if summary is not None:
                track.log_metrics({arm: a["kscore"] for arm, a in summary["arms"].items()})
                track.log_files([reports / "ablation.html"], "report")
    text = terminal(summary, reports) if summary else ""
    if spent:
        raise spent
    if failed:
        first, why = next(iter(failed.items()))
        report = f" The report of the others is {reports / 'ablation.html'}." if summary else ""
        raise StageError(f"{len(failed)} runs failed ({', '.join(failed)}); {first}: {why}{report}")
    return text


def _folders(name: str, out: Path | None, work: Path) -> tuple[Path, Path]:
    """Return (results, reports): git's for the whole ablation of the default profile, else private ones."""
    if out is not None:
        return out, out / "report"
    if name == "embedded":
        return COMMITTED, REPORTS
    return work / name / "results", work / name / "report"


def _dataset(settings: Settings, dataset: Path | None) -> Path:
    """Return the dataset to use: the given one, the project's, or the profile's own, which is built if need be."""
    if dataset is None and settings.profile != "embedded":
        private = Workspace.private(Path("build") / settings.profile)
        run_job(job("build", "", private, settings))
        return private.dataset
    folder = dataset or Workspace.with_dvc().dataset
    if not folder.is_dir():
        raise StageError(f"There is no dataset at {folder}: run `make evolve` once, or pass --dataset FOLDER.")
    return folder


def _note_requests(place: Place) -> None:
    from genevolve.dataset.public import load_requests

    files.write_requests(place.out, files.describe(load_requests(place.dataset, "bench")))


def _report(results: Path, table: Table, reports: Path, publish: bool, nothing: bool) -> dict[str, Any] | None:
    """Write the report, and publish the summary beside the results' folder if asked; None where `nothing` may be there."""
    if nothing and not files.read_results(results):
        return None
    summary = write_report(results, table, reports)
    if publish:
        files.write_json(results.with_suffix(".json"), summary)
    return summary


def terminal(summary: Mapping[str, Any], reports: Path) -> str:
    """Return the table that the command ends with."""
    references = summary["references"]
    against = f"   minus {references[0]}" if references else ""
    lines = ["", f"{'arm':<20} seeds  KScore [95% interval]      {against}"]
    for name, arm in summary["arms"].items():
        k = arm["kscore"]
        line = f"{name:<20} {len(arm['seeds']):>5}  {k['mean']:.4f} [{k['low']:.4f}, {k['high']:.4f}]"
        d = arm["differences"].get(references[0]) if references else None
        lines.append(f"{line}   {d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]" if d else line)
    for name, b in summary.get("benchmarks", {}).items():
        if runs := b["lacking"]:
            lines += [
                "",
                f"Without scores on {name}: {len(runs)} runs, first {runs[0]}; delete their files to score them.",
            ]
    return "\n".join([*lines, "", f"Report    {reports / 'ablation.html'}"])
