"""benchmarks.orchestration: how time is shared out, and that the probe sees a process, its imports and its stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.orchestration import innermost


def test_an_instant_belongs_to_what_began_last() -> None:
    rows = [(0.0, 10.0, "prefect"), (2.0, 8.0, "dvc"), (3.0, 7.0, "process starts"), (4.0, 6.0, "stages")]
    found = innermost([*rows, (5.0, 5.5, "mlflow")], -1.0, 11.0)
    assert {k: v for k, v in found.items() if v} == pytest.approx(
        {"waiting": 2.0, "prefect": 4.0, "dvc": 2.0, "process starts": 2.0, "stages": 1.5, "mlflow": 0.5}
    )
    assert sum(found.values()) == pytest.approx(12.0)
    assert innermost(rows, 4.0, 6.0)["stages"] == pytest.approx(2.0)  # what lies outside is cut off


def test_the_probe_notes_a_process_its_imports_and_dvc(tmp_path: Path, project: Path) -> None:
    code = "import flows.dvc, genevolve.tracking as t; t.tracker(); flows.dvc._call(('version',), {})"
    path = [project / "benchmarks" / "probe", project / "src", project]
    environment = {
        **os.environ,
        "GENEVOLVE_PROBE": str(tmp_path),
        "GENEVOLVE_TRACKING": "off",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }
    process = subprocess.Popen([sys.executable, "-c", code, "genevolve evolve"], env=environment, cwd=tmp_path)
    assert process.wait(timeout=300) == 0
    rows = [(what, end - begin) for begin, end, what in json.loads((tmp_path / f"{process.pid}.json").read_text())]
    assert [what for what, _ in rows[:1]] == ["prefect"]  # the life of the process that runs a cycle
    assert {"mlflow", "dvc"} <= {what for what, _ in rows[1:]}
    assert all(0 <= seconds <= rows[0][1] for _, seconds in rows)
    others = [p for p in tmp_path.glob("*.json") if p.stem != str(process.pid)]
    assert [json.loads(p.read_text())[0][2] for p in others] == ["dvc"]
