"""How every stage runs: folder in, folder out, whole or not at all, found again after a crash, remembered by MLflow.

A stage module is `genevolve.stages.NAME` with

    def run(settings: Settings, *, <inputs>: Path ..., out: Path) -> dict[str, Any]

that leaves its files in `out` and returns its metrics: plain numbers, nested as it likes, the same on every run. Four
keys are taken out of them: `curve` (rows with a `step`; reports/cNNN/STAGE.csv and MLflow), `images` and `pages` (paths
below `out` to show in MLflow), `traces` ({label: [Trajectory]}). `out` may hold what an earlier, killed run of the same recipe on
the same inputs left there: the body goes on from its complete records.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import genevolve
from genevolve.errors import StageError
from genevolve.files import read_object, write_whole
from genevolve.ledger import COLD_START_SECTIONS, CYCLE_SECTIONS, Ledger
from genevolve.profiles import load
from genevolve.registry import numbers
from genevolve.settings import Settings
from genevolve.stages import telling
from genevolve.tracking import SWITCH_VARIABLE, NullTracker, Tracker
from genevolve.training.checkpoint import base_folder
from genevolve.workspace import Workspace, folder_digest

SECTIONS: dict[str, tuple[str, ...]] = {
    "build": ("world", "dataset", "render", "judge", "seeds"),
    "root": ("policy",),
    "cold_start": (*COLD_START_SECTIONS, "seeds"),
    "evolve": (*CYCLE_SECTIONS, "seeds"),
    "bench": ("world", "policy", "sampling", "render", "judge", "bench", "seeds"),
}
"""The settings a stage depends on; these and no others make its fingerprint."""

ABOVE = frozenset({"ablation"})
"""Packages that no stage may import (import-linter): a new plot of an ablation must not rerun its evolutions."""


def sections_of(stage: str, settings: Settings) -> tuple[str, ...]:
    """Return the sections of SECTIONS; a teacher that is a model reads the policy's system prompt and its limits, too."""
    models = stage == "build" and settings.dataset.teacher == "openai" and settings.dataset.imported is None
    return (*SECTIONS[stage], "policy", "sampling") if models else SECTIONS[stage]


@dataclass(frozen=True)
class Job:
    """One stage to run: what it reads, where its folder goes, where its metrics go."""

    stage: str
    cycle: str
    settings: Settings
    inputs: Mapping[str, Path | None]
    out: Path
    report: Path

    @property
    def title(self) -> str:
        return f"{self.stage}@{self.cycle}" if self.cycle else self.stage

    def beside(self, suffix: str) -> Path:
        """Return a path next to `out`, where DVC does not look."""
        return self.out.with_name(f".{self.out.name}{suffix}")

    def fingerprint(self) -> str:
        """Return sha256 over settings, input bytes and our own code: equal fingerprints, equal bytes out."""
        sections = sections_of(self.stage, self.settings)
        values = self.settings.section_values(*sections)
        if self.stage == "build":
            values["seeds"] = {"data_seed": self.settings.seeds.data_seed}
        parts = {
            "settings": values,
            "inputs": {k: folder_digest(p) if p is not None and p.is_dir() else str(p) for k, p in self.inputs.items()},
            "code": folder_digest(Path(genevolve.__file__).parent, without=ABOVE),
        }
        if files := self.settings.file_digests(*sections):
            parts["files"] = files
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def job(stage: str, cycle: str, workspace: Workspace, settings: Settings | None = None) -> Job:
    """Return the job of a stage of a cycle; `build` belongs to no cycle and needs `settings`, default the profile's."""
    ledger = Ledger.read(workspace.ledger)
    if stage == "build":
        settings = settings or load(recipe={})  # of no cycle, but of a command with a budget
        given: dict[str, Path | None] = {}
        if settings.dataset.imported is not None:
            given["imported"] = Path(settings.dataset.imported)
        return Job(stage, "", settings, given, workspace.built, workspace.reports / "dataset.json")
    settings = settings or ledger.settings(cycle)
    parent = ledger.entry(cycle).parent
    inputs: dict[str, Path | None] = {"dataset": workspace.dataset}
    if stage == "root":
        inputs = {"champion": workspace.campaign(cycle)}
        out = workspace.trained(cycle)
    elif stage == "cold_start":
        inputs["base"] = base_folder(settings.policy.base)
        out = workspace.trained(cycle)
    elif stage == "evolve":
        if parent is None:
            raise StageError(f"{cycle} is a cold start: it has no parent to evolve from")
        inputs["parent"] = workspace.policy(parent)
        after = ledger.entry(cycle).after
        if after is not None and after not in ledger.cold_starts:  # a cold start leaves no memory and no records
            inputs["earlier"] = workspace.trained(after)
        out = workspace.trained(cycle)
    elif stage == "bench":
        inputs["policy"] = workspace.policy(cycle)
        inputs["baseline"] = None if parent is None else workspace.bench(parent)
        out = workspace.bench(cycle)
    else:
        raise StageError(f"there is no stage '{stage}'; there are {', '.join(SECTIONS)}")
    return Job(stage, cycle, settings, inputs, out, workspace.report(cycle, stage))


def run_job(job: Job, track: Tracker | None = None) -> dict[str, Any]:
    """Run a stage unless its folder is there with the same fingerprint; return {metrics, seconds, peak_memory_mb, skipped}.

    What it did is told to `track`, default the project's, unless the caller does that (telling.py). Raises StageError when
    an input is missing.
    """
    for name, path in job.inputs.items():
        local = name != "base" or job.settings.policy.backend == "local"
        if path is not None and local and not path.is_dir():
            mend = (
                "give a folder, or fetch the model with `hf download`" if name == "base" else "run the stage before it"
            )
            raise StageError(f"{job.title} needs {name} at {path}, which is missing: {mend}")
    job.out.parent.mkdir(parents=True, exist_ok=True)
    tell = telling.teller(job.out, track)
    off = isinstance(track, NullTracker) or os.environ.get(SWITCH_VARIABLE) == "off"
    with telling.alone(job.out), telling.told(tell):
        fingerprint = job.fingerprint()
        stamp = read_object(job.beside(".done.json"))
        if stamp.get("fingerprint") == fingerprint and _is_whole(job, stamp):
            _write_reports(job, stamp["metrics"], stamp["curve"])
            return {**stamp, "skipped": True}
        partial = _partial(job, fingerprint)
        params = job.settings.section_values(*sections_of(job.stage, job.settings))
        began = time.monotonic()
        with telling.noted(job.out, job.title, params, fingerprint, off) as note:
            with _PeakMemory() as memory:
                metrics, curve = _run_body(job, partial, note)
            stamp = {
                "fingerprint": fingerprint,
                "metrics": metrics,
                "curve": curve,
                "seconds": round(time.monotonic() - began, 1),
                "peak_memory_mb": round(memory.peak_mb),
                "digest": folder_digest(partial),
            }
            note.write(ended=time.time(), digest=stamp["digest"])
            _write(job.beside(".done.json"), stamp)  # from here on the stage is done
        _put_in_place(job)
        _write_reports(job, metrics, curve)
        return {**stamp, "skipped": False}


def _is_whole(job: Job, stamp: Mapping[str, Any]) -> bool:
    """Return whether the stamp's very files lie in `out`, where a run that was killed before it had moved them is helped out.

    A folder by itself proves nothing: a kill may have come in the middle of its removal, or DVC have put another there.
    """
    if job.out.is_dir() and folder_digest(job.out) == stamp["digest"]:
        return True
    partial = job.beside(".partial")
    if not partial.is_dir() or folder_digest(partial) != stamp["digest"]:
        return False
    _put_in_place(job)
    return True


def _put_in_place(job: Job) -> None:
    shutil.rmtree(job.out, ignore_errors=True)
    job.beside(".partial").replace(job.out)
    job.beside(".partial.json").unlink(missing_ok=True)


def _run_body(job: Job, partial: Path, note: telling.Note) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    module = importlib.import_module(f"genevolve.stages.{job.stage}")
    metrics = dict(module.run(job.settings, **job.inputs, out=partial))
    curve = [dict(row) for row in metrics.pop("curve", [])]
    for kind in ("images", "pages"):
        note.keep(kind, [partial / path for path in metrics.pop(kind, [])])
    traces: Mapping[str, Any] = metrics.pop("traces", {})
    note.content["traces"] = {label: [t.model_dump(mode="json") for t in shown] for label, shown in traces.items()}
    dataset = job.inputs.get("dataset")
    if job.stage == "build":
        note.content["dataset"] = [str(job.out), folder_digest(partial), "training"]
    elif dataset is not None:
        context = "evaluation" if job.stage == "bench" else "training"
        note.content["dataset"] = [str(dataset), folder_digest(dataset), context]
    note.content |= {"metrics": metrics, "curve": curve}
    return metrics, curve


def _partial(job: Job, fingerprint: str) -> Path:
    """Return the folder to write in, with what an earlier run of the same fingerprint left, else empty."""
    partial, note = job.beside(".partial"), job.beside(".partial.json")
    if read_object(note).get("fingerprint") != fingerprint:
        shutil.rmtree(partial, ignore_errors=True)
        _write(note, {"fingerprint": fingerprint})
    partial.mkdir(exist_ok=True)
    return partial


def _write_reports(job: Job, metrics: Mapping[str, Any], curve: list[dict[str, Any]]) -> None:
    _write(job.report, metrics)
    if job.stage in ("cold_start", "evolve"):  # dvc.yaml plots these two
        rows = [numbers(row) for row in curve]
        # sorted: a skipped stage reads its curve from a note, in another order than the stage that made it
        columns = ["step", *sorted({key for row in rows for key in row} - {"step"})]
        path = job.report.with_suffix(".csv")
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


class _PeakMemory:
    """Watches the memory of this process and its children, shared pages counted once (PSS), twice a second."""

    def __enter__(self) -> _PeakMemory:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while True:
            total = 0.0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.Error, AttributeError):  # it ended meanwhile, or this system has no PSS
                    continue
            self.peak_mb = max(self.peak_mb, total / 2**20)
            if self._stop.wait(0.5):
                return
