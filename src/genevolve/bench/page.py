"""The report's HTML page: gathers what the template `report.html` shows; the template escapes all text from outside."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.bench.pictures import Picture, inline, line_chart
from genevolve.bench.score import DIMENSIONS, BenchRow, overall_values, shown_pair
from genevolve.records import Message

if TYPE_CHECKING:
    from genevolve.bench.report import BenchReport

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_RESPONSE = re.compile(r"</?tool_response>")

_MEASURES = (
    ("KScore, released formula", "overall", 3),
    ("KScore, missing as zero", "overall_missing_zero", 3),
    ("KScore, text N/A renormalised", "overall_renormalised", 3),
    ("Second summary (dimension means first)", "second_summary", 3),
    ("Text accuracy, rows with text", "text_accuracy_with_text", 3),
    ("Judged", "judged", 0),
    ("Missing", "missing", 0),
    ("Invalid programs", "invalid_programs", 0),
)


@dataclass(frozen=True)
class Turn:
    """One message of a trajectory, made readable."""

    who: str
    label: str
    text: str
    think: str = ""


def render_page(report: BenchReport) -> str:
    """Return the report as one HTML page that needs no other file."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    template = environment.from_string(files("genevolve.bench").joinpath("report.html").read_text(encoding="utf-8"))
    changes = report.changes()
    gains = [key for key, diff in changes if diff > 0][: report.cases]
    losses = [key for key, diff in reversed(changes) if diff < 0][: report.cases]
    diffs = dict(changes)
    draws = max(Counter(r.request.id for r in report.after.rows).values(), default=0)
    means = [overall_values(side.rows) if draws > 1 else {} for side in (report.before, report.after)]
    # line_chart escapes its one text itself; nothing else goes into the page as markup.
    drawn = [(name, line_chart(points, name)) for name, points in report.curves.items()]
    return template.render(
        title=report.title,
        meta=list(report.meta.items()),
        before_name=report.before.name,
        after_name=report.after.name,
        paired=report.paired,
        draws=draws,
        measures=_measures(report.summaries),
        splits=_splits(report.summaries),
        charts=[{"title": name, "svg": Markup(svg)} for name, svg in drawn if svg],
        yields=report.yields,
        gains=[_case(report, *_rows(report, key), diffs[key], [m[key] for m in means if key in m]) for key in gains],
        losses=[_case(report, *_rows(report, key), diffs[key], [m[key] for m in means if key in m]) for key in losses],
    )


def _measures(summaries: dict[str, Any]) -> list[dict[str, Any]]:
    before, after = summaries["before"]["all"], summaries["after"]["all"]
    rows = [_compare(label, before[key], after[key], digits) for label, key, digits in _MEASURES]
    dimensions = [_compare(_label(d), before["dimensions"][d], after["dimensions"][d], 3) for d in DIMENSIONS]
    return rows[:4] + dimensions + rows[4:]


def _compare(label: str, before: float | None, after: float | None, digits: int) -> dict[str, Any]:
    diff = None if before is None or after is None else after - before
    return {"label": label, "before": before, "after": after, "diff": diff, "digits": digits, "count": digits == 0}


def _splits(summaries: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    out = []
    for split, values in summaries["before"]["splits"].items():
        rows = []
        for value, b in values.items():
            a = summaries["after"]["splits"][split][value]
            row = _compare(_label(value), b["overall_missing_zero"], a["overall_missing_zero"], 3)
            counts = {"n": b["requests"], "missing_before": b["missing"], "missing_after": a["missing"]}
            rows.append({**row, **counts})
        out.append((_label(split), rows))
    return out


def _label(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def _rows(report: BenchReport, key: str) -> tuple[BenchRow, BenchRow]:
    before, after = ([r for r in side.rows if r.request.id == key] for side in (report.before, report.after))
    i, j = shown_pair([r.value for r in before], [r.value for r in after])
    return before[i], after[j]


def _case(report: BenchReport, before: BenchRow, after: BenchRow, diff: float, means: Sequence[Any]) -> dict[str, Any]:
    request = before.request
    facts = [request.id, *filter(None, (_label(request.eval_type or ""), request.category, request.difficulty))]
    return {
        "question": request.question,
        "facts": [
            *facts,
            *([f"{request.half} half"] if request.half else []),
            *(["mean of all rollouts {:.2f}, then {:.2f}".format(*means)] if means else []),
        ],
        "diff": diff,
        "gt": inline(report.dataset, request.gt_image),
        "before": _side(before, report.before.images, report.world),
        "after": _side(after, report.after.images, report.world),
    }


def _side(row: BenchRow, images: Path | None, world: Path | None) -> dict[str, Any]:
    t, score = row.trajectory, row.score
    program = t.program if t else None
    shown = []
    if score is not None:
        for d in DIMENSIONS:
            na = d == "text_accuracy" and score.text_accuracy_na
            shown.append((_label(d), "n/a (0.5)" if na else f"{getattr(score, d):g}"))
    references = []
    for i, r in enumerate(program.reference_images if program else ()):
        file = program.files[i] if program and i < len(program.files) else None
        references.append({"img_id": r.img_id, "note": r.note, "picture": inline(world, file)})
    failure = (t.failure or "No program.") if t else "No trajectory."
    return {
        "overall": score.overall if score else (None if row.valid else 0.0),
        "image": inline(images, t.image, failure if not row.valid else "No picture.")
        if t
        else Picture(problem=failure),
        "dimensions": shown,
        "prompt": program.gen_prompt if program else "",
        "failure": failure,
        "references": references,
        "rationale": score.rationale if score else "",
        "turns": turns(t.messages) if t else [],
    }


def turns(messages: Sequence[Message]) -> list[Turn]:
    """Return the messages after the request as readable turns; what cannot be read stays as it was written."""
    out: list[Turn] = []
    for m in messages:
        if m.role == "system" or (m.role == "user" and not out):
            continue
        out.append(_policy_turn(m.content) if m.role == "assistant" else _tool_turn(m.content))
    return out


def _tool_turn(content: str) -> Turn:
    lines = (line.strip() for line in _RESPONSE.sub("", content).strip().splitlines())
    return Turn("tool", "Observation", "\n".join(lines))


def _policy_turn(content: str) -> Turn:
    think = _THINK.search(content)
    thought = think.group(1).strip() if think else ""
    call, answer = _CALL.search(content), _ANSWER.search(content)
    try:
        if call:
            value = json.loads(call.group(1))
            given = ", ".join(_flat(v) for v in value["arguments"].values())
            return Turn("policy", str(value["name"]), given, thought)
        if answer:
            value = json.loads(answer.group(1))
            ids = ", ".join(str(r["img_id"]).strip() for r in value["reference_images"])
            return Turn("policy", "answer", f"{str(value['gen_prompt']).strip()}\n{ids}", thought)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # a malformed turn is shown as the policy wrote it
    return Turn("policy", "unreadable turn", content.strip())


def _flat(value: object) -> str:
    return "; ".join(str(v).strip() for v in value) if isinstance(value, list) else str(value).strip()
