"""`genevolve ablate` is killed with all its processes while an arm evolves, and given again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from genevolve.ablation.results import read_result

SMALL = {
    "cycle": {"steps": 3, "requests_per_step": 2, "validation_k": 1, "patience": 0},
    "sampling": {"k": 2},
    "bench": {"requests": 2},
}
ARMS = ("sft", "sft+grpo")
PATIENCE = 600.0


@pytest.mark.slow
def test_a_killed_ablation_goes_on_to_the_results_of_an_undisturbed_one(
    project: Path, dataset: Path, tmp_path: Path
) -> None:
    raw = yaml.safe_load((project / "ablation.yaml").read_text())
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({**raw, "common": SMALL}))

    def start(name: str) -> subprocess.Popen[bytes]:
        """Each in a folder of its own: stage folders lie below the working directory."""
        place = tmp_path / name
        if not place.exists():
            place.mkdir()
            for path in (project / "params.yaml", project / "assets", tmp_path / "ablation.yaml"):
                (place / path.name).symlink_to(path)
        command = [sys.executable, "-m", "genevolve", "ablate", "--profile", "tiny", "--seeds", "1", "--jobs", "2"]
        command += ["--arms", ",".join(ARMS), "--dataset", str(dataset), "--out", "out"]
        env = {**os.environ, "GENEVOLVE_TRACKING": "off"}
        return subprocess.Popen(command, cwd=place, env=env, start_new_session=True)

    first, second = (tmp_path / "killed" / "out" / f"{arm}-s1.json" for arm in ARMS)
    process, deadline = start("killed"), time.monotonic() + PATIENCE
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # the arms' processes are of its group
    assert process.wait() == -signal.SIGKILL, "it ended by itself"
    assert first.exists()
    assert not second.exists()
    kept = first.read_bytes()

    for name in ("killed", "undisturbed"):
        assert start(name).wait(PATIENCE) == 0
    assert first.read_bytes() == kept, "what is there is not done again"
    for path in (first, second):
        other = tmp_path / "undisturbed" / "out" / path.name
        ours, theirs = (read_result(p).model_dump(exclude={"seconds", "finished"}) for p in (path, other))
        assert ours == theirs, path.name
