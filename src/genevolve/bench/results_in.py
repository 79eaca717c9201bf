"""The release's results.json becomes a bench folder of ours: blocks/*.jsonl and the pictures they name (docs/data.md).

Written by its scripts/run_agent.py (no pictures yet), generate_images.py (pictures) or evaluate_images.py (results_eval.json,
with scores).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from genevolve.agent.release import program_of
from genevolve.bench.score import DIMENSIONS, BenchError, bench_rows, overall_values
from genevolve.dataset.public import Quarantined, load_requests
from genevolve.dataset.release import convert
from genevolve.dataset.release.exporting import public_id, source_columns
from genevolve.dataset.release.pictures import Picture, PictureError, load_picture
from genevolve.dataset.release.rows import Fault, Row, RowError, read_rows
from genevolve.dataset.release.turns import read_turns
from genevolve.files import write_whole
from genevolve.judge import kscore
from genevolve.records import Message, Program, Request, Reward, Termination, Trajectory, write_jsonl

BLOCK = 64
ENDS: dict[str, Termination] = {"answer": "answer", "max_rounds_reached": "rounds", "no_answer": "rounds"}
PICTURES = ("output_path", "image_path", "generated_image", "gen_image")
"""Where the release's scorer looks for the picture, in its order."""


def find_picture(folder: Path, value: object) -> Picture:
    """Return the picture of a results row; raise PictureError. Nothing outside the results' folder is read.

    The release writes absolute paths of the machine it ran on: of such a path the longest tail that is below `folder` counts.
    """
    if not isinstance(value, str) or not value.strip():
        raise PictureError("no path")
    path = PurePosixPath(value.strip())
    if not path.is_absolute():
        return load_picture((folder,), str(path))
    parts = path.parts[1:]
    for start in range(len(parts)):
        try:
            return load_picture((folder,), "/".join(parts[start:]))
        except PictureError as e:
            if e.kind != "no such file":
                raise
    raise PictureError("no such file", f"{path.name} is not below the folder of results.json")


class Results:
    """One import of a results file under way."""

    def __init__(self, file: Path, dataset: Path, out: Path, keep: Callable[[Picture], str]) -> None:
        """`keep`: stores a reference picture and returns the name that programs use for it."""
        self.file, self.out, self.store = file, out, keep
        self.requests = load_requests(dataset, "bench")
        columns = source_columns(dataset)
        self.by_id = {r.id: r for r in self.requests}
        self.by_id |= {str(public_id(r, columns.get(r.id))): r for r in self.requests if columns.get(r.id)}
        self.quarantine: list[Quarantined] = []
        self.remarks: Counter[str] = Counter()
        self.rows = 0

    def trajectories(self) -> list[Trajectory]:
        """Return the trajectories of all rows that can be read, in the order of the bench; the others are left out, with why."""
        found: dict[str, Trajectory] = {}
        for row in read_rows(self.file, self.file.name):
            self.rows += row.place.row > 0
            if isinstance(row, Row) and "summary_type" in row.value:
                self.rows -= 1  # results_eval.json ends with its own means
                continue
            if isinstance(row, Fault):
                self.leave(row)
                continue
            try:
                t = self.trajectory(row)
                if t.request_id in found:
                    raise RowError("id", "an id that is there twice", t.request_id)
                found[t.request_id] = t
            except RowError as e:
                self.leave(e.fault(row.place, str(row.value.get("id", ""))))
        return [found[r.id] for r in self.requests if r.id in found]

    def leave(self, fault: Fault, stage: str = "results") -> None:
        self.quarantine.append(fault.quarantined(stage))

    def trajectory(self, row: Row) -> Trajectory:
        value = row.value
        request = self.by_id.get(str(value.get("id")))
        if request is None:
            raise RowError("id", "no request of the bench", str(value.get("id"))[:80])
        if " ".join(convert.question_of(value).split()) != " ".join(request.question.split()):
            raise RowError("prompt", f"not what request {request.id} asks")
        messages = _messages(value)
        files = self.references(value)
        program = self.program(value, files)
        error = value.get("error")
        failure = (
            "" if program else str(error or "The agent gave no program.").encode("utf-8", "replace").decode()[:500]
        )
        return Trajectory(
            id=f"{request.id}-0",
            request_id=request.id,
            rollout=0,
            question=request.question,
            messages=messages,
            tool_calls=read_turns(messages, files).tool_calls if messages else (),
            program=program,
            image=self.picture(row, request.id),
            reward=_reward(value),
            termination=ENDS.get(str(value.get("termination")), "error"),
            failure=failure,
        )

    def references(self, value: Mapping[str, Any]) -> dict[str, str]:
        """Return image id -> stored name of the references whose files came along; the others are remarked."""
        files: dict[str, str] = {}
        rows = value.get("reference_images")
        for r in rows if isinstance(rows, list) else ():
            if isinstance(r, Mapping) and isinstance(r.get("img_id"), str):
                try:
                    files[r["img_id"]] = self.store(find_picture(self.file.parent, r.get("local_path")))
                except PictureError as e:
                    self.remarks[f"a reference picture is not there ({e.kind}); its program is kept without it"] += 1
        return files

    def program(self, value: Mapping[str, Any], files: Mapping[str, str]) -> Program | None:
        prompt = value.get("gen_prompt")
        if prompt in (None, ""):
            return None
        text = convert.text_of(prompt, "gen_prompt", 8000)
        rows = value.get("reference_images") or []
        if not isinstance(rows, list) or not all(isinstance(r, Mapping) for r in rows):
            raise RowError("reference_images", "not a list of objects")
        pairs = [(str(r.get("img_id", "")), convert.cleaned(r.get("note", ""))) for r in rows]
        return program_of(text, pairs, files)

    def picture(self, row: Row, request_id: str) -> str | None:
        """Return the name of the picture, copied to out/images; None where the row has none, or (then said) none of use.

        The answer is kept: a lost picture is missing, while a lost answer would count as no program.
        """
        column = next((n for n in PICTURES if row.value.get(n)), None)
        if column is None:
            return None
        try:
            picture = find_picture(self.file.parent, row.value[column])
        except PictureError as e:
            self.leave(Fault(row.place, column, e.kind, e.detail, request_id), "pictures")
            return None
        name = f"images/{request_id}{picture.ending}"
        write_whole(self.out / name, picture.data)
        return name


def import_results(file: Path, dataset: Path, out: Path, keep: Callable[[Picture], str]) -> Iterator[str]:
    """Read a results file into the bench folder `out`, whole or not at all; yield the lines of its summary."""
    if not file.is_file():
        raise BenchError(f"{file}: there is no such file; give the results.json of the release's scripts.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BenchError(f"{out} is there already; remove it or give another --out folder.")
    new = out.with_name(f".{out.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        results = Results(file.resolve(), dataset, new, keep)
        played = results.trajectories()
        if not played:
            first = f" The first: {results.quarantine[0].reason}" if results.quarantine else ""
            raise BenchError(f"{file} holds no answer to a request of {dataset}.{first}")
        for start in range(0, len(played), BLOCK):
            write_jsonl(new / "blocks" / f"{start:05d}.jsonl", played[start : start + BLOCK])
        write_jsonl(new / "quarantine.jsonl", results.quarantine)
        judged = [t for t in played if t.reward and t.reward.image]
        if judged:
            answered = {t.request_id for t in played}
            write_scores(new, [r for r in results.requests if r.id in answered], played)
        new.replace(out)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    drawn = sum(t.image is not None for t in played)
    yield f"{file}: {results.rows} rows, {len(played)} kept, {results.rows - len(played)} left out"
    yield f"programs {sum(t.program is not None for t in played)}, pictures {drawn}, scores {len(judged)}"
    missing = len(results.requests) - len(played)
    if missing:
        yield f"{missing} of the {len(results.requests)} bench requests have no answer here and are not in this run"
    yield from (f"left out: {q.reason}" for q in results.quarantine[:10])
    if len(results.quarantine) > 10:
        yield f"and {len(results.quarantine) - 10} more; see {out / 'quarantine.jsonl'}"
    yield from (f"note: {n} x {text}" for text, n in sorted(results.remarks.items()))


def write_scores(out: Path, requests: Sequence[Request], played: Sequence[Trajectory]) -> None:
    """Write scores.json as the bench stage does, so that two runs can be compared."""
    values = overall_values(bench_rows(requests, played))
    halves = {half: {r.id: values[r.id] for r in requests if r.half == half} for half in ("gate", "report")}
    write_whole(out / "scores.json", json.dumps({**halves, "all": values}, indent=1, sort_keys=True))


def _messages(value: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the conversation as it was played; empty where the run did not get that far. Raises RowError."""
    rows = value.get("messages") or []
    if not isinstance(rows, list) or len(rows) > convert.MOST_MESSAGES:
        raise RowError("messages", f"not a list of at most {convert.MOST_MESSAGES} messages")
    out = []
    for i, m in enumerate(rows):
        if not isinstance(m, Mapping) or m.get("role") not in ("system", "user", "assistant"):
            raise RowError(f"messages.{i}.role", "not system, user or assistant")
        content = m.get("content")
        if content != "":  # a model may say nothing
            content = convert.text_of(content, f"messages.{i}.content", convert.LONGEST["message"])
        out.append(Message(role=m["role"], content=content))
    return tuple(out)


def _reward(value: Mapping[str, Any]) -> Reward | None:
    """Return the score of a results_eval.json row; None where it was not judged, or not in steps of one half."""
    scores = value.get("scores")
    if value.get("eval_success") is not True or not isinstance(scores, Mapping):
        return None
    given = [scores.get(d) for d in DIMENSIONS]
    if not all(isinstance(g, (int, float)) and g in (0, 0.5, 1) for g in given):
        return None
    f, v, t, a = (float(g) for g in given if g is not None)
    rationale = convert.cleaned(scores.get("rationale", ""))[:4000]
    score = kscore.build(f, v, None if scores.get("text_accuracy_na") is True else t, a, rationale)
    return Reward(image=score)
