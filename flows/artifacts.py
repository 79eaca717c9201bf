"""What a person looks at in Prefect's pages after a night: gate, yields, learning curve, pictures, the way to the report.

Called outside a Prefect run, nothing happens. Pictures travel as data addresses and are kept small: artifacts lie in the
server's database.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.context import FlowRunContext

from genevolve.bench.score import rollout_value, shown_pair
from genevolve.records import Trajectory, read_jsonl
from genevolve.workspace import Workspace

CASES = 6
"""Gains and losses in a gallery."""
MAX_BYTES = 150_000
"""Of a picture, before base64."""


@dataclass(frozen=True)
class Change:
    """A bench request whose score moved."""

    id: str
    before: float
    after: float

    @property
    def diff(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Picture:
    """What `draw` made: `name` is its artifact's key and, with `kind` as its ending, its file's."""

    name: str
    kind: str
    content: bytes
    words: str

    @property
    def address(self) -> str:
        kind = "jpeg" if self.kind == "jpg" else self.kind
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode('ascii')}"


def draw(numbers: Mapping[str, Any], workspace: Workspace) -> list[Picture]:
    """Draw learning curve, best gains and worst losses of a cycle, those that can be made."""
    cycle, parent = str(numbers["cycle"]), str(numbers["parent"])
    drawn: list[Picture] = []
    with _costs_nothing("learning-curve"):
        curve = learning_curve(workspace.report(cycle, "evolve").with_suffix(".csv"))
        drawn += [Picture("learning-curve", "png", curve, f"{cycle}: score by round.")] if curve else []
    with _costs_nothing("gallery"):
        drawn += _galleries(workspace.bench(parent), workspace.bench(cycle))
    return drawn


def show(
    numbers: Mapping[str, Any], decision: Mapping[str, Any], workspace: Workspace, link: str, drawn: Sequence[Picture]
) -> None:
    """Create the artifacts of a published cycle; `decision` is its gate.json."""
    if FlowRunContext.get() is None:
        return
    cycle = str(numbers["cycle"])
    with _costs_nothing("gate"):
        create_markdown_artifact(gate_words(numbers, decision), key="gate", description=cycle)
    with _costs_nothing("yield"):
        _yield(workspace)
    for picture in drawn:
        with _costs_nothing(picture.name):
            create_image_artifact(picture.address, key=picture.name, description=picture.words)
    with _costs_nothing("report"):
        create_link_artifact(link, f"Bench report of {cycle}", key="report", description=cycle)


def files(decision: Mapping[str, Any], workspace: Workspace, folder: Path, drawn: Sequence[Picture]) -> list[Path]:
    """Write the same for the cycle's MLflow run into a folder: gate.json, yields.json, and what was drawn; return them."""
    told = {
        key: value for key, value in decision.items() if key not in ("done", "published")
    }  # notes for the next start
    contents = {"gate.json": (json.dumps(told, indent=1, sort_keys=True) + "\n").encode()}
    contents |= {f"{picture.name}.{picture.kind}": picture.content for picture in drawn}
    with _costs_nothing("yields.json"):
        contents["yields.json"] = (workspace.dataset / "yields.json").read_bytes()
    made = []
    for name, content in contents.items():
        with _costs_nothing(name):
            (folder / name).write_bytes(content)
            made.append(folder / name)
    return made


@contextmanager
def _costs_nothing(name: str) -> Iterator[None]:
    """Tell of a missing file, or of a server that has just gone; the cycle itself is done."""
    try:
        yield
    except Exception as error:
        print(f"'{name}' is not shown: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)


def gate_words(numbers: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    """Return the gate's decision as markdown: its words, what it saw of each split, and the half that decides nothing."""
    verdict = (
        f"**{numbers['cycle']} is champion.**"
        if numbers["promoted"]
        else f"**{numbers['cycle']} is not promoted; the champion stays.**"
    )
    low, high = numbers["ci"]
    splits = [
        f"- {_plain(name)}: {s['diff']:+.4f} [{s['low']:+.4f}, {s['high']:+.4f}] over {s['n']}{', fell' * s['fell']}"
        for name, s in decision.get("splits", {}).items()
    ]
    return "\n\n".join(
        [
            verdict,
            _plain(str(numbers["gate"]), 2000),
            *(["By split:", "\n".join(splits)] if splits else []),
            f"On the {numbers['n']} requests of the report half, which decide nothing, {numbers['parent']} scores "
            f"{numbers['before']:.4f} and {numbers['cycle']} {numbers['after']:.4f}: difference {numbers['diff']:+.4f} "
            f"[{low:+.4f}, {high:+.4f}].",
        ]
    )


def _yield(workspace: Workspace) -> None:
    rows = json.loads((workspace.dataset / "yields.json").read_text(encoding="utf-8"))
    table = [{k: row.get(k) for k in ("stage", "in", "kept", "spare")} for row in rows]
    create_table_artifact(table, key="yield", description="What each step of the dataset's build kept.")


def learning_curve(path: Path) -> bytes:
    """Return reward and validation KScore by round as a PNG; empty where the file has neither."""
    from matplotlib.figure import Figure

    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    figure = Figure(figsize=(6, 3), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    drawn = 0
    for column, label in (("reward", "mean reward of the rollouts"), ("validation_kscore", "KScore on validation")):
        points = [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
        points = [p for p in points if math.isfinite(p[1])]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
            drawn += 1
    if not drawn:
        return b""
    axes.set_xlabel("round")
    axes.legend(fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _galleries(before: Path, after: Path) -> list[Picture]:
    """Draw the largest gains and the largest losses, where there are any."""
    rows = changes(before, after)
    gains = [c for c in rows if c.diff > 0][:CASES]
    losses = [c for c in reversed(rows) if c.diff < 0][:CASES]
    found = []
    for name, what, cases in (("best-gains", "Largest gains", gains), ("worst-losses", "Largest losses", losses)):
        if cases:
            picture, words = gallery(before, after, cases)
            words = f"{what}: before on the left, after on the right.\n\n{words}"
            found.append(Picture(name, "jpg", picture, words))
    return found


def changes(before: Path, after: Path) -> list[Change]:
    """Return the bench requests that both policies were scored on, the largest gain first."""
    scores = [json.loads((folder / "scores.json").read_text(encoding="utf-8")) for folder in (before, after)]
    a, b = ({**s.get("gate", {}), **s.get("report", {}), **s.get("all", {})} for s in scores)
    rows = [Change(i, float(a[i]), float(b[i])) for i in a if a[i] is not None and b.get(i) is not None]
    return sorted(rows, key=lambda c: (-c.diff, c.id))


def gallery(before: Path, after: Path, cases: list[Change]) -> tuple[bytes, str]:
    """Return (a JPEG with both policies' pictures of each case, a list of the cases in markdown)."""
    from PIL import Image

    from genevolve.render.contact import contact_sheet

    wanted = {c.id for c in cases}
    sides = [_played(folder, wanted) for folder in (before, after)]
    pairs, words = [], []
    for change in cases:
        old, new = _shown(*(side.get(change.id, []) for side in sides))
        found = new or old
        question = " ".join(found.question.split()) if found else change.id
        pairs.append((f"{change.diff:+.2f} {question}", _picture(before, old) or _blank(), _picture(after, new)))
        words.append(f"- {change.before:.2f} to {change.after:.2f}: {_plain(question)}")
    sheet = Image.open(io.BytesIO(contact_sheet(pairs))).convert("RGB")
    for quality in (80, 60, 40, 20):
        out = io.BytesIO()
        sheet.save(out, "JPEG", quality=quality, optimize=True)
        if out.tell() <= MAX_BYTES:
            break
    return out.getvalue(), "\n".join(words)


def _played(folder: Path, wanted: set[str]) -> dict[str, list[Trajectory]]:
    groups: dict[str, list[Trajectory]] = {}
    for path in sorted((folder / "blocks").glob("*.jsonl")):
        for t in read_jsonl(path, Trajectory):
            if t.request_id in wanted:
                groups.setdefault(t.request_id, []).append(t)
    return groups


def _shown(before: list[Trajectory], after: list[Trajectory]) -> tuple[Trajectory | None, Trajectory | None]:
    i, j = shown_pair([rollout_value(t) for t in before], [rollout_value(t) for t in after])
    return before[i] if before else None, after[j] if after else None


def _picture(folder: Path, trajectory: Trajectory | None) -> bytes | None:
    if trajectory is None or not trajectory.image:
        return None
    path = (folder / trajectory.image).resolve()
    return path.read_bytes() if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _blank() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (8, 8), (205, 205, 210)).save(out, "PNG")
    return out.getvalue()


def _plain(text: str, most: int = 200) -> str:
    """Return a stranger's words so that markdown shows them and makes nothing of them."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-!|~&" else c for c in text[:most])
