"""DVC by its command line: dvc.yaml is sound and unrolls the ledger; a stage runs, rests, fails in a sentence, waits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import dvc
from flows.housekeeping import collect_garbage
from flows.night import start_campaign
from flows.stages import dvc_name, run_stage, up_to_date
from genevolve.errors import MAY_PASS, SettingsError, StageError, TryLaterError
from genevolve.ledger import Ledger
from genevolve.profiles import load
from genevolve.tracking import NullTracker
from genevolve.workspace import Workspace

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


@pytest.fixture
def folder(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(project / ".dvc" / "config", tmp_path / ".dvc" / "config")
    return tmp_path


def test_the_pipeline_unrolls_the_ledger(folder: Path, project: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(project / name, folder / name)
    ledger, first = Ledger().open_cycle(load())
    ledger, second = ledger.open_night(load(), first, first)
    ledger = ledger.model_copy(
        update={"roots": {"c009": ledger.entry(first).model_copy(update={"parent": None, "of": "c008"})}}
    )
    ledger.write(Path("cycles.yaml"))
    done = subprocess.run([sys.executable, "-m", "dvc", "stage", "list", "--name-only"], capture_output=True, text=True)
    names = set(done.stdout.split())
    assert names == {
        "build",
        "cold_start@c000",
        "bench_cold@c000",
        "root@c009",
        "bench_root@c009",
        *(f"{stage}@{cycle}" for stage in ("evolve", "bench") for cycle in (first, second)),
    }, done.stderr
    place = Workspace.with_dvc()
    asked = [
        ("build", ""),
        ("cold_start", "c000"),
        ("bench", "c000"),
        ("evolve", "c001"),
        ("bench", "c002"),
        ("bench", "c009"),
        ("root", "c009"),
    ]
    assert {dvc_name(stage, cycle, place) for stage, cycle in asked} <= names
    dag = subprocess.run([sys.executable, "-m", "dvc", "dag", "--dot"], capture_output=True, text=True).stdout
    for edge in (
        '"bench@c001" -> "bench@c002"',
        '"evolve@c001" -> "evolve@c002"',
        '"cold_start@c000" -> "evolve@c001"',
    ):
        assert edge in dag


def test_a_stage_runs_once_rests_and_fails_in_a_sentence(
    folder: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project / "flows")  # as Prefect does in a run of a deployment: our dvc.py is not DVC

    def pipeline(command: str) -> None:
        stage = {"cmd": command, "deps": ["in"], "outs": ["out"]}
        Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"copy": stage}}))

    Path("in").write_text("1")
    pipeline("echo run >> log && cp in out")
    dvc.repro("copy")
    dvc.repro("copy")
    assert (Path("log").read_text(), Path("out").read_text()) == ("run\n", "1")
    Path("in").write_text("2")
    pipeline("echo 'genevolve: the disk is full' >&2 && exit 3")
    with pytest.raises(StageError, match=r"copy: the disk is full$"):
        dvc.repro("copy")
    pipeline(f"echo 'genevolve: no service answers{MAY_PASS}' >&2 && exit 75")
    with pytest.raises(TryLaterError, match=r"copy: no service answers \(this may pass"):
        dvc.repro("copy")
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    with pytest.raises(StageError, match=r"push copy: .*no remote specified"):
        dvc.push("copy")


def test_what_rests_is_found_in_one_call_that_runs_and_changes_nothing(folder: Path) -> None:
    copy = {"cmd": "cp in ${key}", "deps": ["in"], "outs": ["${key}"]}
    build = {"cmd": "mkdir -p build/dataset && cp in build/dataset", "deps": ["in"], "outs": ["build/dataset"]}
    pipeline = {"stages": {"build": build, "bench": {"foreach": {"c000": 0, "c001": 0}, "do": copy}}}
    Path("dvc.yaml").write_text(yaml.safe_dump(pipeline))
    Path("in").write_text("1")
    names = ["build", "bench@c000", "bench@c001", dvc.IMPORT]  # the import is said in other words
    for name in ("build", dvc.IMPORT, "bench@c000", "bench@c001"):
        assert not dvc.unchanged(names)
        dvc.repro(name)
    assert dvc.unchanged(names)
    assert not dvc.unchanged([*names, "none such"])
    lock = Path("dvc.lock").read_bytes()
    Path("in").write_text("2")
    assert not dvc.unchanged(names)
    made = [Path("c000"), Path("c001"), Path("build/dataset/in"), Path("data/in")]
    assert ([path.read_text() for path in made], Path("dvc.lock").read_bytes()) == (["1"] * 4, lock)
    Path("in").write_text("1")
    Path("dvc.lock").write_bytes(lock[:20])
    assert not dvc.unchanged(names)
    Path("dvc.lock").write_bytes(lock)
    Path("data/in").unlink()
    assert not dvc.unchanged(names)


def test_a_lock_file_that_cannot_be_read_is_not_taken_for_a_torn_one(folder: Path) -> None:
    dvc.LOCK.mkdir()
    with pytest.raises(SettingsError, match=r"dvc.lock cannot be read: Is a directory"):
        dvc.repro("copy")
    assert dvc.LOCK.is_dir()


def test_what_a_night_begins_with_is_taken_as_it_is_where_all_of_it_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    rests = [False]
    monkeypatch.setattr(dvc, "unchanged", lambda names: asked.append(list(names)) or rests[0])
    place = Workspace.with_dvc()
    Ledger().open_cycle(load(path=PARAMS))[0].write(place.ledger)
    shutil.copy(PARAMS, "params.yaml")
    stages = {"build": ("build", ""), "cold_start": ("cold_start", "c000"), "bench_before": ("bench", "c000")}
    for where in (place.built, place.trained("c000"), place.bench("c000")):
        assert up_to_date(stages, "c001", place) == {}
        where.mkdir(parents=True)
    assert asked == []
    assert up_to_date(stages, "c001", place) == {}
    assert asked == [["build", "cold_start@c000", "bench_cold@c000", "data.dvc"]]
    rests[0] = True
    for number, report in enumerate(("dataset.json", "c000/cold_start.json", "c000/bench.json")):
        (place.reports / report).parent.mkdir(parents=True, exist_ok=True)
        (place.reports / report).write_text(f'{{"n": {number}}}')
    (place.root / ".dataset.done.json").write_text('{"seconds": 3.5, "metrics": {"n": 9}}')
    assert up_to_date(stages, "c001", place) == {
        "build": {"seconds": 3.5, "metrics": {"n": 0}},
        "cold_start": {"metrics": {"n": 1}},
        "bench_before": {"metrics": {"n": 2}},
    }


@pytest.mark.parametrize(
    ("said", "again"),
    [
        (
            "failed to transfer 'md5: ab' - An error occurred (AccessDenied) when calling PutObject: Access Denied",
            False,
        ),
        ("unexpected error - Forbidden: An error occurred (403) when calling the HeadObject operation", False),
        ("unexpected error - Unable to locate credentials", False),
        ("unexpected error - Permission denied for user night on host remote", False),
        ("failed to transfer 'md5: ab' - Connection timed out", True),
    ],
)
def test_a_remote_that_is_away_is_tried_again_and_one_that_refuses_is_not(
    said: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = f"ERROR: {said}\nERROR: failed to push data to the cloud - 1 files failed to upload\n"
    monkeypatch.setattr(dvc, "_call", lambda *_: (1, errors))
    with pytest.raises(StageError if not again else TryLaterError) as error:
        dvc.push("copy")
    assert type(error.value) is (TryLaterError if again else StageError)
    assert ("check its credentials" in str(error.value)) is not again


@pytest.mark.faults
def test_a_busy_lock_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"cmd": "sleep 4 && echo 1 > slow", "outs": ["slow"]}
    other = {"cmd": "echo 2 > quick", "outs": ["quick"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"slow": stage, "quick": other}}))
    monkeypatch.setattr(dvc, "WAIT_SECONDS", 0.5)
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q", "-s", "slow"]) as first:
        while not any(Path(".dvc/tmp").glob("*lock*")):
            assert first.poll() is None
        dvc.repro("quick")
        first.wait()
    assert (first.returncode, Path("slow").read_text(), Path("quick").read_text()) == (0, "1\n", "2\n")


def test_a_campaign_begins_with_dvc_and_loses_nothing_to_its_housekeeping(
    folder: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENEVOLVE_TRACKING", "off")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(project / name, folder / name)
    source = Path("src/genevolve/stages/root.py")
    source.parent.mkdir(parents=True)
    shutil.copy(project / source, source)
    place = Workspace.with_dvc()
    ledger, first = Ledger().open_cycle(load())
    ledger.write(place.ledger)
    place.policy(first).mkdir(parents=True)
    (place.policy(first) / "w").write_text("champion")
    (place.trained(first) / "memory.jsonl").write_text("{}\n")

    class Registry(NullTracker):
        def champion(self, line: str = "") -> str | None:
            return first

    root = start_campaign(place, Registry(), load(), True)
    assert root == start_campaign(place, Registry(), load(), True) == "c002"  # it has begun: nothing to do
    shutil.rmtree("build")
    assert run_stage("root", "c002", workspace=place, use_dvc=True)["metrics"]["carried"]["memory"] == 1
    assert (place.policy("c002") / "w").read_text() == "champion"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "campaign"], check=True)
    assert collect_garbage(place, load(), Registry(), True) == 0
    shutil.rmtree("build")
    shutil.rmtree("campaigns/c002")
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q", "root@c002", "campaigns/c002.dvc"], check=True)
    assert (place.policy("c002") / "w").read_text() == "champion"
    assert (place.campaign("c002") / "policy" / "w").read_text() == "champion"
