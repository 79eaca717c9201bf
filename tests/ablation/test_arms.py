"""The table of arms: every entry is something the settings take, and all evolving arms spend the same rollouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from genevolve.ablation.arms import arm_settings, load_table, rollouts, start_settings
from genevolve.errors import SettingsError
from genevolve.settings import SWITCHES


@pytest.mark.parametrize("profile", ["embedded", "tiny"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_arm_is_accepted_and_spends_the_same_rollouts(in_project: Path, profile: str, quick: bool) -> None:
    table = load_table()
    found = {n: arm_settings(table, a, profile, 3, quick) for n, a in table.arms.items() if a.policy == "evolved"}
    assert len({rollouts(s) for s in found.values()}) == 1
    assert {s.seeds.run_seed for s in found.values()} == {3}
    assert {s.sampling.workers for s in found.values()} == {1}
    if profile == "embedded":  # no arm is another one again; tiny's own K is 4
        assert len({s.fingerprint() for s in found.values()}) == len(found)
    for name, settings in found.items():
        for section, fields in table.arms[name].overrides.items():
            got = settings.model_dump(mode="json")[section]
            assert {k: got[k] for k in fields} == fields, name


def test_the_issues_arms_are_there_and_the_switches_are_all_used(in_project: Path) -> None:
    table = load_table()
    assert set(table.select("core")) == {"sft", "sft+grpo", "full", "placebo"}
    assert list(table.select(None))[:4] == list(table.select("core"))
    set_by = {(s, f) for arm in table.arms.values() for s, fields in arm.overrides.items() for f in fields}
    quick = {(s, f) for s, fields in table.quick.overrides.items() for f in fields}
    assert {(s, f) for s, fields in SWITCHES.items() for f in fields} <= set_by | quick
    k = [arm_settings(table, table.arms[n], "embedded", 1).sampling.k for n in ("rollouts-4", "full", "rollouts-8")]
    assert k == [4, 6, 8]


def test_a_cold_start_is_the_same_for_all_arms_and_for_a_quick_look(in_project: Path) -> None:
    table = load_table()
    start = start_settings(table, "embedded", 2)
    assert start.bench.requests is None
    assert start.sampling.removed_tools == ()
    assert start.sampling.workers == 1


def test_k_that_does_not_divide_the_budget_takes_the_nearest_number_of_rounds_or_is_refused(
    in_project: Path, tmp_path: Path
) -> None:
    raw = yaml.safe_load(Path("ablation.yaml").read_text())
    raw["arms"]["k-5"] = {"label": "K 5", "overrides": {"sampling": {"k": 5}}}
    raw["arms"]["k-7"] = {"label": "K 7", "overrides": {"sampling": {"k": 7}}}
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(raw))
    table = load_table(path)
    five = arm_settings(table, table.arms["k-5"], "embedded", 1)
    assert (rollouts(five), five.cycle.steps, five.cycle.requests_per_step) == (480, 8, 12)
    with pytest.raises(SettingsError, match="K = 7 does not divide the budget of 480"):
        arm_settings(table, table.arms["k-7"], "embedded", 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"arms": {"a b": {"label": "x"}}, "references": ["a b"]}, "needs a name of"),
        ({"references": ["ghost"]}, "'ghost' is named, but there is no such arm"),
        ({"arms": {"full": {"label": "x", "colour": "red"}}}, "arms.full.colour"),
    ],
)
def test_a_broken_table_is_one_sentence(in_project: Path, tmp_path: Path, change: dict, sentence: str) -> None:  # type: ignore[type-arg]
    raw = {**yaml.safe_load(Path("ablation.yaml").read_text()), **change}
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(SettingsError) as caught:
        load_table(path)
    assert sentence in str(caught.value)


def test_an_unknown_arm_names_the_known_ones(in_project: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no arm 'ful'; there are untuned, sft, .*'core'"):
        load_table().select("sft,ful")
