"""Nights with toy stages around the real ledger, gate, registry and runner: promoted, rejected, fallen, rolled back, killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.evolution_cycle import evolution_cycle
from flows.gate import decided, gate, published
from genevolve.errors import SettingsError, StageError
from genevolve.ledger import Ledger
from genevolve.profiles import load
from genevolve.registry import TrackingError
from genevolve.tracking import MlflowTracker, NullTracker
from genevolve.workspace import Workspace
from tests.flows import toys

PLACE = Workspace.private("build/tiny")


@pytest.fixture
def use(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A project of toys in the working directory; call it with other stage bodies to use them."""
    toys.lay_out(tmp_path, project)
    monkeypatch.chdir(tmp_path)

    def replace(**bodies: toys.Body) -> None:
        for name, module in toys.modules(**bodies).items():
            monkeypatch.setitem(sys.modules, name, module)

    replace()
    return replace


def gaining(gain: float, flags: float = 0.0) -> toys.Body:
    """Return an evolution whose policy is better than its parent by `gain`, and by `flags` more on requests about flags."""

    def body(settings: Any, *, dataset: Path, parent: Path, earlier: Path | None = None, out: Path) -> dict[str, Any]:
        done = toys.evolve(settings, dataset=dataset, parent=parent, earlier=earlier, out=out)
        (out / "policy" / "w").write_text(f"{(parent / 'w').read_text()} {gain}/{flags}/{settings.cycle.night}")
        return done

    return body


def bench(settings: Any, *, dataset: Path, policy: Path, baseline: Path | None, out: Path) -> dict[str, Any]:
    """Score what `gaining` wrote: .5 and all gains on the way from the cold start."""
    gains = [word.split("/") for word in (policy / "w").read_text().split() if word.count("/") == 2]
    score = [0.3 + sum(float(g) + (float(f) if i < 5 else 0) for g, f, _ in gains) + i / 1000 for i in range(10)]
    scores = {half: {f"q{i}": score[i] for i in range(10)} for half in ("gate", "report", "all")}
    (out / "scores.json").write_text(json.dumps(scores))
    return toys.compared(settings, scores, baseline)


def night(*overrides: str, **how: Any) -> dict[str, Any]:
    return evolution_cycle("tiny", 7, ["bench.split_rows=5", *overrides], "champion", **how)


def memory(cycle: str) -> list[str]:
    return (PLACE.trained(cycle) / "memory.jsonl").read_text().splitlines()


def test_five_nights_promoted_rejected_and_the_memory_of_all(use: Callable[..., None]) -> None:
    track = MlflowTracker()
    champions, outcomes = [], []
    for gain in (0.1, 0.05, -0.2, 0.0, 0.1):
        use(evolve=gaining(gain), bench=bench)
        done = night()
        outcomes.append((done["cycle"], done["parent"], done["promoted"]))
        champions.append(track.champion("tiny"))
    assert outcomes == [
        ("c001", "c000", True),
        ("c002", "c001", True),
        ("c003", "c002", False),
        ("c004", "c002", False),
        ("c005", "c002", True),
    ]
    assert champions == ["tiny/c001", "tiny/c002", "tiny/c002", "tiny/c002", "tiny/c005"]
    ledger = Ledger.read(PLACE.ledger)
    assert [ledger.entry(c).after for c in ledger.cycles] == ["c000", "c001", "c002", "c003", "c004"]
    assert memory("c005") == [f"night {n}" for n in (0, 2, 3, 4, 5)]  # rejected nights too
    policies = {(PLACE.policy(c) / "w").read_text() for c in ("c003", "c004", "c005")}
    assert len(policies) == 3  # three nights from one champion are three runs
    moves = track.moves("tiny")
    assert [(m["who"], m["from"], m["to"]) for m in moves] == [
        ("gate", "", "tiny/c001"),
        ("gate", "tiny/c001", "tiny/c002"),
        ("gate", "tiny/c002", "tiny/c005"),
    ]
    assert moves[-1]["reason"].startswith("c005 takes the place of c002: +0.1000 on 10 gate requests")
    words = json.loads(PLACE.report("c003", "gate").read_text())["words"]
    assert words.startswith("c003 does not take the place of c002: -0.2000")


def test_a_night_where_the_first_cycle_was_turned_down_begins_at_the_cold_start_again(use: Callable[..., None]) -> None:
    use(evolve=gaining(-0.1), bench=bench)
    assert (night()["cycle"], MlflowTracker().champion("tiny")) == ("c001", None)
    use(evolve=gaining(0.1), bench=bench)
    again = night()
    assert (again["cycle"], again["parent"], again["promoted"]) == ("c002", "c000", True)
    assert memory("c002") == ["night 0", "night 2"]


def test_a_split_that_falls_turns_a_gain_down(use: Callable[..., None]) -> None:
    use(evolve=gaining(0.1), bench=bench)
    night()
    use(evolve=gaining(0.3, flags=-0.4), bench=bench)
    done = night("bench.gate_margin=-0.2")  # the gain alone would do
    assert not done["promoted"]
    assert "fell by more than 0.05: category: flags -0.1000 [-0.1000, -0.1000] over 5 requests" in done["gate"]
    assert MlflowTracker().champion("tiny") == "tiny/c001"


def test_small_categories_are_looked_at_together_and_an_unsure_fall_is_named(use: Callable[..., None]) -> None:
    def luck(settings: Any, *, dataset: Path, policy: Path, baseline: Path | None, out: Path) -> dict[str, Any]:
        """Requests about flags get better and worse, all others better."""
        changes = [-0.3, 0.2, -0.3, 0.2, -0.1, *[0.9] * 5] if baseline else [0.0] * 10
        scores = {half: {f"q{i}": change for i, change in enumerate(changes)} for half in ("gate", "report", "all")}
        (out / "scores.json").write_text(json.dumps(scores))
        return toys.compared(settings, scores, baseline)

    use(bench=luck)
    done = night()
    assert done["promoted"]
    assert "; none of 5 splits fell. Fell by more than 0.05, but not for sure, and so no reason: " in done["gate"]
    assert "category: flags -0.0600 [" in done["gate"]
    use(bench=bench, evolve=gaining(0.1))
    night("bench.split_rows=6")
    splits = json.loads(PLACE.report("c002", "gate").read_text())["splits"]
    assert {name: split["n"] for name, split in splits.items() if "category" in name} == {"category: others": 10}


def test_the_rival_is_the_champion_and_not_the_parent(use: Callable[..., None]) -> None:
    use(evolve=gaining(0.2), bench=bench)
    night()
    use(evolve=gaining(0.1), bench=bench)
    done = evolution_cycle("tiny", 7, ["bench.split_rows=5"], "c000")  # better than its parent, worse than the champion
    assert done["diff"] == pytest.approx(0.1)
    assert (done["parent"], done["promoted"]) == ("c000", False)
    assert "c002 does not take the place of c001: -0.1000" in done["gate"]


def test_a_champion_that_was_benched_otherwise_plays_again(use: Callable[..., None]) -> None:
    use(evolve=gaining(0.1), bench=bench)
    night()
    other = evolution_cycle("tiny", 8, ["bench.split_rows=5"], "champion")
    assert other["promoted"]
    assert (PLACE.root / "c002" / "rival" / "scores.json").exists()  # seed 7's streams are not seed 8's


def test_a_champion_that_played_once_plays_twice_beside_a_challenger_that_does(use: Callable[..., None]) -> None:
    use(evolve=gaining(0.1), bench=bench)
    night()
    assert "draws" not in Ledger.read(PLACE.ledger).entry("c001").recipe["bench"]  # as in a record older than the field
    profiles = yaml.safe_load(Path("params.yaml").read_text())
    profiles["tiny"].setdefault("bench", {})["draws"] = 2
    Path("params.yaml").write_text(yaml.safe_dump(profiles))
    assert night()["promoted"]
    assert (PLACE.root / "c002" / "rival" / "scores.json").exists()
    assert night()["promoted"]
    assert not (PLACE.root / "c003" / "rival").exists()  # c002 played twice itself


@pytest.mark.parametrize("gate", [0.1, -0.1])
def test_the_gate_half_decides_and_not_the_report_half(gate: float, use: Callable[..., None]) -> None:
    def halves(settings: Any, *, dataset: Path, policy: Path, baseline: Path | None, out: Path) -> dict[str, Any]:
        """The other way round on the report half, which is easier, too."""
        gained = sum(float(w.split("/")[0]) for w in (policy / "w").read_text().split() if w.count("/") == 2)
        levels = {"gate": 0.3 + gained, "report": 0.6 - gained}
        scores = {half: {f"q{i}": level + i / 1000 for i in range(10)} for half, level in levels.items()}
        (out / "scores.json").write_text(json.dumps(scores))
        return toys.compared(settings, scores, baseline)

    use(evolve=gaining(gate), bench=halves)
    for cycle in ("c001", "c002"):  # the rival is the parent, then, where c001 is promoted, the champion
        done = night()
        assert (done["cycle"], done["promoted"], done["diff"]) == (cycle, gate > 0, pytest.approx(-gate))
        assert f": {gate:+.4f} on 10 gate requests" in done["gate"]


def test_a_champion_of_another_ledger_is_the_rival_and_no_parent(use: Callable[..., None]) -> None:
    use(evolve=gaining(0.2), bench=bench)
    night()
    PLACE.ledger.write_text("cycles: {}\n")
    for report in PLACE.reports.rglob("gate.json"):
        report.unlink()
    use(evolve=gaining(0.1), bench=bench)
    with pytest.raises(SettingsError, match=r"the champion tiny/c001 is not in build/tiny/cycles\.yaml"):
        night()
    evolution_cycle("tiny", 9, ["bench.split_rows=5"])
    evolution_cycle("tiny", 10, ["bench.split_rows=5"])
    done = json.loads(PLACE.report("c003", "gate").read_text())
    assert (done["rival"], done["promoted"]) == ("c001", False)


def test_a_rollback_is_logged_and_holds_when_the_cycle_is_looked_at_again(use: Callable[..., None]) -> None:
    track = MlflowTracker()
    use(evolve=gaining(0.1), bench=bench)
    night()
    night()
    track.rollback("tiny", "worse on posters")
    assert (track.champion("tiny"), track.previous("tiny")) == ("tiny/c001", "tiny/c002")
    last = track.moves("tiny")[-1]
    assert (last["from"], last["to"], last["reason"]) == ("tiny/c002", "tiny/c001", "worse on posters")
    assert "@" in last["who"]
    assert last["time"].startswith("20")
    again = gate("c002", PLACE, load("tiny", seed=7), {}, track, False)
    assert again["promoted"]  # so it was decided then
    assert track.champion("tiny") == "tiny/c001"  # and a person decided after that
    done = night()
    assert (done["cycle"], done["parent"]) == ("c003", "c001")
    assert memory("c003") == ["night 0", "night 2", "night 3"]


def test_a_decision_that_came_with_git_is_made_anew_in_a_registry_that_knows_nothing_of_it(
    use: Callable[..., None],
) -> None:
    class Fresh(NullTracker):
        def __init__(self) -> None:
            self.promoted: list[str] = []

        def promote(self, version: str, line: str = "", reason: str = "", who: str = "") -> None:
            self.promoted.append(line)

    use(evolve=gaining(0.1), bench=bench)
    night()
    assert decided(PLACE, "c001")
    there = Fresh()
    assert gate("c001", PLACE, load("tiny", seed=7), {}, there, False)["promoted"]
    assert there.promoted == ["tiny"]


def test_a_killed_night_is_gone_on_with_wherever_it_was_cut(
    use: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(evolve=gaining(0.1), bench=bench)
    night()

    def cut(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    for bodies in ({"evolve": cut, "bench": bench}, {"evolve": gaining(0.1), "bench": cut}):
        use(**bodies)
        with pytest.raises(KeyboardInterrupt):
            night()
        assert not decided(PLACE, "c002")
    use(evolve=gaining(0.1), bench=bench)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowTracker, "promote", cut)  # between the decision's note and the alias
        with pytest.raises(KeyboardInterrupt):
            night()
    track = MlflowTracker()
    assert (track.champion("tiny"), decided(PLACE, "c002")) == ("tiny/c001", False)
    assert night()["cycle"] == "c002"
    assert (track.champion("tiny"), decided(PLACE, "c002")) == ("tiny/c002", True)
    assert list(Ledger.read(PLACE.ledger).cycles) == ["c001", "c002"]
    assert night()["cycle"] == "c003"


@pytest.mark.parametrize("gain", [0.1, -0.1], ids=["promoted", "turned down"])
def test_a_night_that_was_decided_and_not_published_is_gone_on_with(
    gain: float, use: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    track = MlflowTracker()
    use(evolve=gaining(gain), bench=bench)
    for cycle in ("c001", "c002"):  # that of the cold start, and a night
        with monkeypatch.context() as patch:
            patch.setattr(MlflowTracker, "log_outcome", cut)
            with pytest.raises(KeyboardInterrupt):
                night()
        assert (decided(PLACE, cycle), published(PLACE, cycle)) == (True, False)
        done = night("cycle.campaign=1")  # a full campaign is not archived before it
        assert (done["cycle"], done["promoted"], published(PLACE, cycle)) == (cycle, gain > 0, True)
        (run,) = track._runs(f"tags.cycle = 'tiny/{cycle}' and tags.kind = 'cycle'")
        assert run.data.tags["outcome"] == ("promoted" if gain > 0 else "not promoted")
    note = PLACE.report("c002", "gate")
    note.write_text(json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "published"}))
    assert night()["cycle"] == "c003"  # a note of a former version


def test_housekeeping_leaves_all_that_the_next_night_needs(use: Callable[..., None]) -> None:
    from typer.testing import CliRunner

    from genevolve.cli import app

    for gain in (0.1, -0.1, -0.1, -0.1, -0.1):
        use(evolve=gaining(gain), bench=bench)
        night()
    folder = Path(next(f for v, c, f in MlflowTracker().policies() if c == "tiny/c002"))
    said = CliRunner().invoke(app, ["gc", "-p", "tiny", "--keep", "2"])
    assert "build/tiny/c002" in said.output
    assert "registered version 2 of tiny/c002" in said.output
    assert "would remove 0.0 MB" in said.output
    assert folder.is_dir()
    done = CliRunner().invoke(app, ["gc", "-p", "tiny", "--keep", "2", "--yes"])
    assert (done.exit_code, folder.is_dir(), (PLACE.root / "c002").is_dir()) == (0, False, False)
    assert all(PLACE.policy(c).is_dir() for c in ("c000", "c001", "c003", "c004", "c005"))
    with pytest.raises(TrackingError, match="cannot be champion: its folder"):
        MlflowTracker().promote("2", "tiny")
    use(evolve=gaining(0.1), bench=bench)
    more = evolution_cycle("tiny", 7, ["bench.split_rows=5", "retention.cycles=2"], "champion", collect=True)
    assert (more["cycle"], more["promoted"]) == ("c006", True)
    assert not (PLACE.root / "c003").exists()
    assert memory("c006") == [f"night {n}" for n in (0, 2, 3, 4, 5, 6)]  # also of the night that is gone


def test_without_room_a_night_does_not_begin(use: Callable[..., None]) -> None:
    use(evolve=gaining(0.1), bench=bench)
    night()
    with pytest.raises(StageError, match=r"a night needs 1000000.0 GB of disk .* `genevolve gc` says what can go"):
        night("retention.free_gb=1000000")
    assert list(Ledger.read(PLACE.ledger).cycles) == ["c001"]


def test_a_full_campaign_is_archived_and_the_champion_goes_on_as_its_root(use: Callable[..., None]) -> None:
    track = MlflowTracker()
    for gain in (0.1, -0.1):
        use(evolve=gaining(gain), bench=bench)
        night()
    use(evolve=gaining(0.1), bench=bench)
    done = night("cycle.campaign=2")
    ledger = Ledger.read(PLACE.ledger)
    assert (ledger.names(), ledger.entry("c003").of) == (["c003", "c004"], "c001")
    assert (done["cycle"], done["parent"], done["promoted"]) == ("c004", "c003", True)
    assert done["gate"].startswith("c004 takes the place of c001: +0.1000")
    assert memory("c004") == ["night 0", "night 2", "night 4"]  # that of the night that was turned down, too
    assert list(Ledger.read(PLACE.campaign("until-c003.yaml")).cycles) == ["c001", "c002"]
    assert (track.champion("tiny"), track.previous("tiny")) == ("tiny/c004", "tiny/c001")
    track.rollback("tiny", "to the first campaign's champion")
    assert night()["parent"] == "c003"  # which is the root's policy


def test_the_benchmark_of_nights_tells_what_they_came_to(
    use: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.nights import publish, schedule, told
    from genevolve.operations.journal import last_nights

    for gain in (-0.2, 0.1, 0.05):
        use(evolve=gaining(gain), bench=bench)
        night()
    with pytest.raises(SettingsError, match="no_such"):
        night("bench.no_such=1")  # this one comes to no cycle
    times = [(n.began.isoformat(), n.ended.isoformat()) for n in last_nights("tiny", 9)[::-1]]
    states = ["COMPLETED"] * 3 + ["FAILED"]
    runs = [
        {
            "state": {"type": state, "name": state.title(), "message": "said"},
            "expected_start_time": began,
            "start_time": began,
            "end_time": ended,
            "total_run_time": 2.0,
            "auto_scheduled": True,
        }
        for (began, ended), state in zip(times, states, strict=True)
    ]
    away = [
        {"state": {"type": kind, "name": name}} for kind, name in (("CANCELLED", "Cancelled"), ("CRASHED", "Crashed"))
    ]
    result = told(tmp_path, "tiny", [*runs, *away])
    nights = result["nights"]
    assert [(n["cycle"], n["parent"], n["promoted"], n["champion"]) for n in nights] == [
        ("c001", "c000", False, None),
        ("c002", "c000", True, "c002"),
        ("c003", "c002", True, "c003"),
        ("", None, False, "c003"),
    ]
    assert nights[0]["gate"].startswith("c001 does not take the place of c000: -0.2000")
    assert "no_such" in nights[3]["gate"]
    assert [n["kscore"]["gate"] for n in nights] == pytest.approx([0.3045, 0.4045, 0.4545, 0.4545])
    assert (result["gain"]["report"], result["falls"]["gate"]) == (pytest.approx(0.15), 0)
    assert (result["promoted"], result["cancelled"], result["skipped"], result["crashed"]) == (2, 1, 0, 1)
    assert nights[1]["stages"].keys() == {"c002/trained", "c002/bench"}
    shift = pytest.approx(0.05)
    assert nights[2]["report"] == {"n": 10, "diff": shift, "low": shift, "high": shift}
    capsys.readouterr()
    publish({**result, "seed": 7, "left": []}, tmp_path)
    told_last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told_last["met"] == {"gain": True, "falls": True, "by_schedule": True, "nothing_left": True}
    assert json.loads((tmp_path / "nights.json").read_text()) == told_last
    assert (tmp_path / "nights.png").stat().st_size > 10_000

    # A gain on the gate half alone meets no aim; a night that somebody helped, or a process that stays, is no proof at all.
    nights[1]["by_schedule"] = False
    half = {"gain": {**result["gain"], "report": 0.04}, "falls": {**result["falls"], "report": 1}}
    with pytest.raises(SystemExit, match="a night was not begun by the schedule; something was left behind"):
        publish({**result, **half, "seed": 7, "left": ["process 1: python"]}, tmp_path)
    found = json.loads((tmp_path / "nights.json").read_text())["met"]
    assert found == {"gain": False, "falls": False, "by_schedule": False, "nothing_left": False}
    file = tmp_path / "prefect.yaml"
    file.write_text((Path(__file__).parents[2] / "prefect.yaml").read_text())
    schedule(file, 7, "tiny", 3)
    nightly = next(d for d in yaml.safe_load(file.read_text())["deployments"] if d["name"] == "nightly")
    assert nightly["schedules"] == [{"cron": "*/7 * * * *", "timezone": "UTC", "active": True}]
    wanted = {"profile": "tiny", "seed": 3, "collect": True}  # as it is deployed
    assert {key: nightly["parameters"][key] for key in wanted} == wanted
    assert (nightly["parameters"]["parent"], nightly["concurrency_limit"]["limit"]) == ("champion", 1)
