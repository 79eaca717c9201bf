"""The ledger: append only, pinned recipes, and a lineage that leads to a cold start."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest

from genevolve.errors import SettingsError
from genevolve.ledger import Ledger
from genevolve.profiles import BUDGET_VARIABLE, load
from genevolve.settings import Settings

PARAMS = Path(__file__).parents[2] / "params.yaml"


def settings(seed: int | None = None, *overrides: str) -> Settings:
    return load("tiny", seed=seed, overrides=overrides, path=PARAMS)


def test_equal_settings_find_their_cycle_again_and_others_open_a_new_one(tmp_path: Path) -> None:
    ledger, first = Ledger().open_cycle(settings())
    assert first == "c001"
    assert ledger.open_cycle(settings()) == (ledger, "c001")
    ledger, other_seed = ledger.open_cycle(settings(7))
    assert (other_seed, ledger.entry("c003").parent) == ("c003", "c002")
    ledger, other_lambda = ledger.open_cycle(settings(None, "distill.lambda_sdl=0"))
    assert (other_lambda, ledger.entry("c004").parent) == ("c004", "c000")  # the same cold start serves both
    ledger, further = ledger.open_night(settings(), parent="c001", after="c001")
    assert (further, ledger.root_of(further)) == ("c005", "c000")
    ledger.write(tmp_path / "cycles.yaml")
    assert Ledger.read(tmp_path / "cycles.yaml") == ledger


def test_nights_of_one_parent_are_different_runs_and_stand_in_one_line() -> None:
    ledger, first = Ledger().open_cycle(settings())
    ledger, second = ledger.open_night(settings(), first, first)
    ledger, third = ledger.open_night(settings(), first, second)
    recipes = [deepcopy(ledger.entry(c).recipe) for c in (first, second, third)]
    assert "night" not in recipes[0]["cycle"]
    assert [r["cycle"].pop("night", 0) for r in recipes] == [0, 2, 3]
    assert recipes[1] == recipes[2]
    assert ledger.line("c000") == ledger.line(third) == [first, second, third]
    assert (ledger.lineage(third), ledger.entry(third).after) == ([third, first, "c000"], second)
    assert ledger.same_night(third, settings(), first)
    assert not ledger.same_night(third, settings(7), first)
    assert not ledger.same_night(first, settings(), "c000")  # the cold start's own cycle is no night


def test_a_campaign_keeps_one_entry_and_the_numbers_go_on(tmp_path: Path) -> None:
    ledger, first = Ledger().open_cycle(settings())
    ledger, second = ledger.open_night(settings(), first, first)
    newer, root = ledger.new_campaign(second)
    assert (root, newer.names(), newer.here("c002"), newer.here("c001")) == ("c003", ["c003"], "c003", None)
    newer, night = newer.open_night(settings(), root, root)
    newer.write(tmp_path / "cycles.yaml")
    again = Ledger.read(tmp_path / "cycles.yaml")
    assert again == newer
    assert (night, again.root_of(night), again.entry(night).after) == ("c004", root, root)


def test_a_ledger_of_before_there_were_nights_is_read_and_written_in_todays_form(tmp_path: Path) -> None:
    path = tmp_path / "cycles.yaml"
    ledger, first = Ledger().open_cycle(settings())
    ledger.write(path)
    path.write_text(path.read_text().replace("    after: c000\n", "").replace("roots: {}\n", ""))
    assert "after" not in path.read_text()
    read = Ledger.read(path)
    assert read == ledger
    assert read.open_cycle(settings()) == (ledger, first)


def test_what_gate_and_housekeeping_go_by_stands_in_no_recipe() -> None:
    ledger, first = Ledger().open_cycle(settings())
    values = ("cycle.campaign=3", "bench.split_margin=0.2", "bench.split_rows=40", "retention.cycles=3")
    assert ledger.open_cycle(settings(None, *values)) == (ledger, first)


def test_another_budget_is_the_same_run_and_the_commands_budget_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, first = Ledger().open_cycle(settings(None, "world.budget_usd=3"))
    assert ledger.open_cycle(settings(None, "world.budget_usd=7")) == (ledger, first)
    assert ledger.entry(first).recipe["world"]["budget_usd"] == 0, "as in every ledger written so far"
    monkeypatch.delenv(BUDGET_VARIABLE, raising=False)
    paper, cycle = Ledger().open_cycle(load("paper", path=PARAMS))
    assert paper.settings(cycle, PARAMS).world.budget_usd == 2000
    monkeypatch.setenv(BUDGET_VARIABLE, "1.5")
    assert paper.settings(cycle, PARAMS).world.budget_usd == 1.5


def test_a_default_that_the_profile_does_not_have_is_read_back() -> None:
    """A recipe leaves out fields at their defaults; `paper` has others for some of them."""
    over = ("cold_start.device=cpu", "cold_start.processes=1", "distill.processes=1", "cold_start.precision=float32")
    chosen = load("paper", overrides=[*over, "render.text_model=Qwen/Qwen-Image"], path=PARAMS)
    ledger, cycle = Ledger().open_cycle(chosen)
    start, evolved = ledger.settings("c000", PARAMS), ledger.settings(cycle, PARAMS)
    assert start.cold_start == chosen.cold_start
    assert evolved.distill == chosen.distill
    assert evolved.render == start.render == chosen.render
    assert start.distill.processes == 8, "a cold start's entry says nothing of distillation"


def test_a_changed_default_changes_no_recipe(tmp_path: Path) -> None:
    ledger, cycle = Ledger().open_cycle(settings())
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS.read_text().replace("lambda_sdl: 2.0", "lambda_sdl: 0.5"))
    assert load("tiny", path=params).distill.lambda_sdl == 0.5
    assert ledger.settings(cycle, params) == settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cycles: {c001: {parent: c000, profile: tiny, recipe: {}}}", "parent c000, which is not in the ledger"),
        (
            "cold_starts: {c000: {profile: tiny, recipe: {}}}\ncycles: {c001: {parent: c000, after: c7, profile: tiny, recipe: {}}}",
            "after c7, which",
        ),
        ("cycles: {c001: {parent: c000}}", "cycles.c001.profile"),
        ("cycles: [", "is not YAML"),
    ],
)
def test_a_broken_ledger_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "cycles.yaml").write_text(text)
    with pytest.raises(SettingsError, match=says):
        Ledger.read(tmp_path / "cycles.yaml")
