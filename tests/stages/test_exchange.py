"""Imported data in the stages: what runs on it, and what says that it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genevolve.dataset.public import load_requests
from genevolve.dataset.release.importing import import_dataset
from genevolve.errors import SettingsError
from genevolve.profiles import load
from genevolve.settings import Settings
from genevolve.stages import backends, bench, build, cold_start, rescore
from genevolve.stages.crew import Crew
from genevolve.stages.exchange import bring_in, hand_out
from genevolve.stages.runner import job
from genevolve.workspace import Workspace
from tests.dataset.release.parts import write_source

NO_WORLD = ["world.search=serper", "world.image_search=serper", "world.budget_usd=1"]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public")
    import_dataset(write_source(folder / "GenEvolve-Data-Bench"), folder / "imported")
    return folder / "imported"


def test_embedded_back_ends_say_in_a_sentence_that_imported_data_is_not_theirs(
    settings: Settings, public: Path, project: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        SettingsError, match=r"has no embedded world: set world.search, world.image_search, judge.program"
    ):
        Crew(settings, public)
    params = project / "params.yaml"
    served = load("tiny", overrides=[*NO_WORLD, "judge.program=vlm"], path=params)
    backends.check_dataset(served, public)
    with pytest.raises(SettingsError, match=r"Request bench-0 of .* has no scene, .*: set judge.image to a model"):
        backends.check_dataset(served, public, load_requests(public, "bench"))
    judged = load("tiny", overrides=[*NO_WORLD, "judge.program=vlm", "judge.image=vlm"], path=params)
    backends.check_dataset(judged, public, load_requests(public, "bench"))
    (tmp_path / "blocks").mkdir()
    with pytest.raises(SettingsError, match=r"Request bench-0 of .* has no scene, .* take --judge vlm"):
        rescore.run(settings, judge="pixels", bench=tmp_path, dataset=public)


def test_the_build_stage_takes_an_imported_dataset(
    public: Path, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    taken = load("paper", overrides=[f"dataset.imported={public}"], path=project / "params.yaml")
    work = job("build", "", Workspace.private(tmp_path / "work"), taken)
    assert work.inputs == {"imported": public}
    out = tmp_path / "dataset"
    metrics = build.run(taken, out=out, **{k: v for k, v in work.inputs.items() if v is not None})
    assert metrics["splits"]["bench"] == {"n": 6}
    assert load_requests(out) == load_requests(public)
    plain = load("paper", path=project / "params.yaml")
    assert job("build", "", Workspace.private(tmp_path / "work"), plain).inputs == {}
    assert "imported" not in plain.section_values("dataset")["dataset"]  # recipes and fingerprints stay as they were
    with pytest.raises(SettingsError, match=r"holds no requests\.jsonl"):
        build.run(taken, out=tmp_path / "other", imported=tmp_path)


@pytest.mark.parametrize("trainer", ["trl", "ranks"])
def test_the_cold_start_trains_on_imported_conversations(
    public: Path, tmp_path: Path, project: Path, trainer: str
) -> None:
    over = ["cold_start.batch=2", "sampling.workers=1", f"cold_start.trainer={trainer}"]
    few = load("tiny", overrides=over, path=project / "params.yaml")
    out = tmp_path / "out"
    out.mkdir()
    metrics = cold_start.run(few, dataset=public, base=project / "assets" / "base-policy", out=out)
    assert metrics["sequences"] == 4
    assert metrics["heldout_loss"] < metrics["heldout_loss_before"]
    (public / "sft_heldout_trajectories.jsonl").rename(tmp_path / "aside")  # a source may have no eval split
    try:
        again = tmp_path / "again"
        again.mkdir()
        assert (
            cold_start.run(few, dataset=public, base=project / "assets" / "base-policy", out=again)["heldout_loss"]
            is None
        )
    finally:
        (tmp_path / "aside").rename(public / "sft_heldout_trajectories.jsonl")


def test_a_bench_run_goes_out_comes_back_and_is_judged_the_same(
    settings: Settings, dataset: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENEVOLVE_WEB", str(tmp_path / "web"))
    run = tmp_path / "bench"
    run.mkdir()
    bench.run(settings, dataset=dataset, policy=project / "assets" / "base-policy", out=run)
    list(hand_out(run, tmp_path / "public", dataset))
    lines = list(bring_in(tmp_path / "public" / "results.json", tmp_path / "back", dataset, None))
    assert "0 left out" in lines[0]
    assert json.loads((tmp_path / "back" / "scores.json").read_text()) == json.loads((run / "scores.json").read_text())
    summary = rescore.run(settings, judge="pixels", bench=tmp_path / "back", dataset=dataset)
    assert summary["all"]["judged"] > 0
    found = json.loads((tmp_path / "back.pixels" / "scores.json").read_text())
    assert found == json.loads((run / "scores.json").read_text())
    after = tmp_path / "after"
    after.mkdir()
    metrics = bench.run(
        settings, dataset=dataset, policy=project / "assets" / "base-policy", baseline=tmp_path / "back", out=after
    )
    assert (
        metrics["all"]["diff"] == 0
    )  # an imported run is a baseline like any other, its report drawn with its references
    assert (after / "report.html").stat().st_size


def test_a_results_file_needs_to_know_its_dataset(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(SettingsError, match="say with --dataset"):
        list(bring_in(tmp_path / "results.json", tmp_path / "out", None, None))


def test_doctor_compares_the_words_of_the_data_with_the_profiles(public: Path, project: Path) -> None:
    from genevolve.doctor.finding import Finding
    from genevolve.doctor.profile import _wording

    def line(*over: str) -> Finding:
        (found,) = _wording(load("paper", overrides=over, path=project / "params.yaml"), public)
        return found

    file = public / "system_prompt.md"
    differs = line()
    assert differs.said == "system prompt system is not the data's; dialogue ours, the data's is release"
    assert f"set policy.system={file} and policy.dialogue=release" in differs.line()
    same = line(f"policy.system={file}", "policy.dialogue=release")
    assert same.ok, same.line()
    assert not line("policy.system=nowhere.md").ok
