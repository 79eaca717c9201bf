"""Training by several processes: `accelerate launch` on this machine, one process a GPU, gone again after the work.

That the processes end with the step is meant: sampling then has the GPUs to itself. What goes on from step to step lies in
the round's folder (weights in float32, optimiser), written by all processes at once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve.errors import SettingsError, StageError
from genevolve.files import write_whole
from genevolve.records import Trajectory, write_jsonl
from genevolve.settings import Settings
from genevolve.stages.experience import write_guides

METRICS = "training.json"
"""What a launched command leaves in its out folder for the one that launched it."""


def launched() -> bool:
    """Return whether this process is one of several that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class LaunchedLearner:
    """`stages.distill.Learner` for an evolution whose steps are made by processes of their own."""

    def __init__(self, settings: Settings, start: Path, dataset: Path | None) -> None:
        self.settings, self.start, self.dataset = settings, start, dataset
        self.policy = start
        """The policy that sampled what is learnt next, its checkpoint beside it; the evolution moves both."""

    def learn(self, trajectories: Sequence[Trajectory], guides: Mapping[str, str], out: Path) -> dict[str, float]:
        """Train on one sampled batch; leaves the policy in `out` and its checkpoint beside it."""
        work = out.parent / "launch"
        write_jsonl(work / "trajectories.jsonl", trajectories)
        write_guides(work / "guides.jsonl", dict(guides))
        metrics = launch_distill(
            self.settings,
            policy=self.policy,
            reference=self.start,
            trajectories=work,
            experience=work,
            out=out.parent,
            dataset=self.dataset,
        )
        shutil.rmtree(work)
        return metrics

    def save(self, folder: Path) -> None:
        """See that the processes have written it."""
        if not folder.is_dir():
            raise StageError(f"The training processes left no checkpoint in {folder}.")

    def resume(self, policy: Path, folder: Path) -> None:
        """Go on from `policy`; its checkpoint is found beside it."""
        self.policy = policy


def launch_distill(
    settings: Settings,
    *,
    policy: Path,
    reference: Path,
    trajectories: Path,
    experience: Path,
    out: Path,
    dataset: Path | None,
) -> dict[str, Any]:
    """Make one step with `distill.processes` processes; return its metrics. Raises StageError with what they said."""
    folders = {"policy": policy, "reference": reference, "trajectories": trajectories, "experience": experience}
    words = [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
    words += ["--dataset", str(dataset)] if dataset else []
    return launch("distill", words, settings, out, settings.distill.processes, settings.distill.accelerate)


def launch(
    command: str, words: Sequence[str], settings: Settings, out: Path, processes: int, configuration: str
) -> dict[str, Any]:
    """Run `genevolve COMMAND` in so many processes on the settings given; return the metrics it leaves in `out`."""
    if not Path(configuration).is_file():
        raise SettingsError(f"There is no accelerate configuration {configuration}; see configs/accelerate.")
    out.mkdir(parents=True, exist_ok=True)
    recipe = write_whole(out / "recipe.json", json.dumps(values_of(settings)))
    call = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", configuration]
    call += ["--num_processes", str(processes), "--main_process_port", "0"]
    log = out / "launch.log"
    # torch's launcher makes a folder for logs of its own, and leaves it.
    with log.open("wb") as stream, tempfile.TemporaryDirectory(prefix="launch-") as logs:
        call += ["--log_dir", logs, "-m", "genevolve", command, *words, "--recipe", str(recipe), "--out", str(out)]
        process = subprocess.Popen(call, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    said = log.read_text(encoding="utf-8", errors="replace")
    if code:
        raise StageError(f"The {processes} training processes failed: {_why(said, log)}")
    metrics: dict[str, Any] = json.loads((out / METRICS).read_text(encoding="utf-8"))
    for name in (METRICS, "recipe.json", "launch.log"):
        (out / name).unlink()
    return metrics


def values_of(settings: Settings) -> dict[str, Any]:
    """Return settings as the values that `Settings.model_validate` takes."""
    sections = [name for name in type(settings).model_fields if name != "profile"]
    return {"profile": settings.profile, **settings.section_values(*sections)}


def _why(said: str, log: Path) -> str:
    """Return our own sentence out of the launcher's talk, or where to read on."""
    own = re.findall(r"^(?:\[.*?\]:)?genevolve: (.+)$", said, re.MULTILINE)
    return own[0] if own else f"{log} says why"
