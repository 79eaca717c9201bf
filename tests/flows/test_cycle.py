"""The flows: a cycle as a plain function, as a Prefect run, and what the gate decides."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.flows import toys


@pytest.fixture
def folder(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toys.lay_out(tmp_path, project)
    monkeypatch.chdir(tmp_path)
    for name, module in toys.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return tmp_path


def test_a_cycle_runs_plain_promotes_and_goes_on_from_the_champion(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.evolution_cycle import evolution_cycle, table
    from genevolve.tracking import MlflowTracker

    def build(settings: Any, *, out: Path) -> dict[str, Any]:
        (out / "yields.json").write_text(json.dumps([{"stage": "audit", "in": 9, "kept": 5}]))
        return toys.build(settings, out=out)

    monkeypatch.setitem(sys.modules, "genevolve.stages.build", toys.modules(build=build)["genevolve.stages.build"])
    first = evolution_cycle("tiny", 7)
    assert (first["before"], first["after"]) == pytest.approx((0.5045, 0.6045))
    assert first["ci"] == pytest.approx([0.1, 0.1])
    assert (first["n"], first["seed"], first["promoted"]) == (10, 7, True)
    assert set(first["seconds"]) == {"build", "cold_start", "bench_before", "evolve", "bench"}
    assert first["peak_memory_mb"] > 10
    assert json.loads((folder / "build/tiny/reports/latest.json").read_text()) == first
    for part in ("0.5045", "0.6045", "+0.1000", "seed 7", "make ui", "report.html"):
        assert part in table(first)

    track = MlflowTracker()
    assert (track.champion("tiny"), track.champion()) == ("tiny/c001", None)
    assert (track.policy_folder("champion-tiny") / "w").read_text() == "base-policy 7 evolved"

    (cycle,) = track._runs("tags.cycle = 'tiny/c001' and tags.kind = 'cycle'")
    (start,) = track._runs("tags.cycle = 'tiny/c000' and tags.kind = 'cycle'")
    for run, kscore, outcome in ((start, 0.5, "start"), (cycle, 0.6, "promoted")):
        assert run.data.metrics["kscore/report"] == pytest.approx(kscore)
        assert run.data.tags["outcome"] == outcome
    assert cycle.data.tags["mlflow.note.content"] == first["gate"]
    assert (start.data.params, start.info.start_time) == (cycle.data.params, cycle.info.start_time - 1)

    kept = {f.path: f for f in track._client.list_artifacts(cycle.info.run_id, "night")}
    assert set(kept) == {f"night/{f}" for f in ("gate.json", "yields.json", "learning-curve.png", "best-gains.jpg")}
    place = Path(cycle.info.artifact_uri)
    noted = json.loads((folder / "build/tiny/reports/c001/gate.json").read_text())
    told = json.loads((place / "night/gate.json").read_text())
    assert told == {key: noted[key] for key in noted if key not in ("done", "published")}
    assert told["words"] == first["gate"]
    assert json.loads((place / "night/yields.json").read_text()) == [{"stage": "audit", "in": 9, "kept": 5}]
    assert [Image.open(place / "night" / f).format for f in ("learning-curve.png", "best-gains.jpg")] == ["PNG", "JPEG"]

    assert evolution_cycle("tiny", 7) == first  # nothing to do: the same numbers, the same times
    further = evolution_cycle("tiny", 7, parent="champion")
    assert (further["cycle"], further["before"]) == ("c002", pytest.approx(0.6045))
    assert (track.champion("tiny"), further["promoted"]) == ("tiny/c002", True)


def test_a_cycle_that_does_not_gain_leaves_the_champion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.evolution_cycle import evolution_cycle
    from genevolve.tracking import MlflowTracker

    def idle(settings: Any, *, dataset: Path, parent: Path, out: Path) -> dict[str, Any]:
        (out / "policy").mkdir(exist_ok=True)
        (out / "policy" / "w").write_text((parent / "w").read_text())
        return {}

    for name, module in toys.modules(evolve=idle).items():
        monkeypatch.setitem(sys.modules, name, module)
    done = evolution_cycle("tiny")
    assert (done["diff"], done["promoted"]) == (0, False)
    assert MlflowTracker().champion("tiny") is None
