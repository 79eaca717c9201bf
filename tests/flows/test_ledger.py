"""The ledger: append only, pinned recipes, and a lineage that leads to a cold start."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve.errors import SettingsError
from genevolve.ledger import Ledger
from genevolve.profiles import load
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
    ledger, further = ledger.open_cycle(settings(), parent="c001")
    assert (further, ledger.root_of(further)) == ("c005", "c000")
    ledger.write(tmp_path / "cycles.yaml")
    assert Ledger.read(tmp_path / "cycles.yaml") == ledger


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
        ("cycles: {c001: {parent: c000}}", "cycles.c001.profile"),
        ("cycles: [", "is not YAML"),
    ],
)
def test_a_broken_ledger_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "cycles.yaml").write_text(text)
    with pytest.raises(SettingsError, match=says):
        Ledger.read(tmp_path / "cycles.yaml")
