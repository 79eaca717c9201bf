"""The report of an ablation: ablation.json (everything), ablation.csv (one row an arm) and ablation.html, from results."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from genevolve.ablation.analysis import RESAMPLES, SPLITS, summarise
from genevolve.ablation.arms import Table
from genevolve.ablation.charts import PALETTE, curves_chart, interval_chart
from genevolve.ablation.results import ResultError, read_requests, read_results, write_json

CURVES = (
    ("Validation KScore (0 without a valid program)", "validation_overall"),
    ("Validation: share of valid programs", "validation_valid"),
    ("Share of requests whose teacher had a guide (hit rate)", "hit_rate"),
    ("Share guided by another request's bundle (transfer)", "hit_rate_transfer"),
    ("Teacher advantage on the best rollouts, nats", "teacher_advantage_best"),
    ("Teacher advantage on the worst rollouts, nats", "teacher_advantage_worst"),
    ("KL to the start, nats", "kl"),
)


def write_report(out: Path, table: Table, folder: Path, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Write the report of the results in `out` into `folder`; return the summary. Raises ResultError without any result."""
    results = read_results(out)
    if not results:
        raise ResultError(f"There is no result in {out}: run `genevolve ablate` first.")
    summary = summarise(
        results, read_requests(out), table.references, list(table.select(None)), resamples, table.benchmarks
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "ablation.json", summary)
    _write_csv(folder / "ablation.csv", summary)
    core = [name for name, arm in table.arms.items() if arm.core]
    (folder / "ablation.html").write_text(page(summary, core), encoding="utf-8")
    return summary


def _write_csv(path: Path, summary: Mapping[str, Any]) -> None:
    rows = [_row(name, arm, summary["references"]) for name, arm in summary["arms"].items()]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _row(name: str, arm: Mapping[str, Any], references: Sequence[str]) -> dict[str, Any]:
    k, second = arm["kscore"], arm["kscore_second"] or {}
    row = {"arm": name, "label": arm["label"], "seeds": len(arm["seeds"]), "requests": k["requests"]}
    row |= {"kscore": k["mean"], "low": k["low"], "high": k["high"], "kscore_second": second.get("mean")}
    for reference in references:
        d = arm["differences"].get(reference) or {}
        row |= {
            f"minus {reference}{end}": d.get(key) for end, key in (("", "mean"), (" low", "low"), (" high", "high"))
        }
        row[f"minus {reference} second"] = (d.get("second") or {}).get("mean")
        row[f"share to reach {reference}"] = (arm["reach"].get(reference) or {}).get("share")
    return row | {"valid": arm["valid"], "rollouts": arm["rollouts"], "minutes": arm["minutes"]}


def page(summary: Mapping[str, Any], core: Sequence[str]) -> str:
    """Return the report as one HTML page that needs no other file; curves are of the `core` arms, of all if none is there."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files("genevolve.ablation").joinpath("report.html").read_text(encoding="utf-8"))
    seeds = sorted({str(seed) for arm in summary["arms"].values() for seed in arm["seeds"]}, key=int)
    return template.render(s=summary, charts=_charts(summary, core), groups=_groups(summary, core), seeds=seeds)


def _charts(summary: Mapping[str, Any], core: Sequence[str]) -> dict[str, Any]:
    from markupsafe import Markup  # the charts escape the texts they hold

    arms = summary["arms"]
    kscore = [(a["label"], *(a["kscore"][k] for k in ("mean", "low", "high"))) for a in arms.values()]
    differences = []
    for reference in summary["references"]:
        found = [(a["label"], a["differences"].get(reference)) for a in arms.values()]
        rows = [(label, d["mean"], d["low"], d["high"]) for label, d in found if d]
        if rows:
            differences.append(
                (arms[reference]["label"], Markup(interval_chart(rows, f"minus {reference}", zero=True)))
            )
    shown = [a for name, a in arms.items() if name in core and a["curve"]] or [a for a in arms.values() if a["curve"]]
    colours = {a["label"]: PALETTE[i % len(PALETTE)] for i, a in enumerate(shown)}
    curves = []
    for title, field in CURVES:
        series = {a["label"]: [(row["rollouts"], row[field]) for row in a["curve"] if field in row] for a in shown}
        svg = curves_chart(series, colours, title)
        if svg:
            curves.append((title, Markup(svg)))
    return {"kscore": Markup(interval_chart(kscore, "KScore")), "differences": differences, "curves": curves}


def _groups(summary: Mapping[str, Any], core: Sequence[str]) -> dict[str, Any] | None:
    """Return the table of differences to the first reference by split and group, a column a core arm (else every arm)."""
    if not summary["references"]:
        return None
    reference = summary["references"][0]
    arms = {name: a for name, a in summary["arms"].items() if a["groups"].get(reference)}
    arms = {name: a for name, a in arms.items() if name in core} or arms
    if not arms:
        return None
    tables = [a["groups"][reference] for a in arms.values()]
    splits = []
    for split in SPLITS:
        values = sorted({value for table in tables for value in table.get(split, {})})
        splits.append((split, [(value, [t.get(split, {}).get(value) for t in tables]) for value in values]))
    return {"labels": [a["label"] for a in arms.values()], "splits": splits}
