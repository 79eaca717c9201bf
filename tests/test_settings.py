"""Profiles: what is loaded, what wins, and that every fault is one sentence that names its place."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from genevolve import settings as settings_module
from genevolve.errors import SettingsError
from genevolve.profiles import load
from genevolve.settings import Section, Settings

PARAMS = Path(__file__).parent.parent / "params.yaml"


@pytest.mark.parametrize("profile", ["embedded", "tiny", "paper"])
def test_every_profile_loads(profile: str) -> None:
    loaded = load(profile, path=PARAMS)
    assert loaded.profile == profile
    assert loaded.sampling.rounds > loaded.sampling.tool_calls


def test_embedded_is_the_default_and_the_environment_may_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(path=PARAMS).profile == "embedded"
    monkeypatch.setenv("GENEVOLVE_PROFILE", "tiny")
    assert load(path=PARAMS).profile == "tiny"


def test_paper_has_the_papers_values() -> None:
    paper = load("paper", path=PARAMS)
    sampling, distill, experience, cold_start = paper.sampling, paper.distill, paper.experience, paper.cold_start
    assert (sampling.k, sampling.temperature, sampling.top_p) == (6, 0.7, 0.95)
    assert (sampling.rounds, sampling.tool_calls, sampling.max_turn_tokens) == (11, 10, 4096)
    assert (sampling.bench_temperature, sampling.bench_top_p) == (0.6, 0.9)
    assert (distill.lr, distill.lambda_sdl, distill.kl_coef) == (1e-6, 2.0, 1e-3)
    assert (distill.clip_low, distill.clip_high, distill.top_fraction, distill.rho_max) == (0.2, 0.28, 0.1, 2.0)
    assert (experience.gap, experience.max_pairs, experience.capacity, experience.gate) == (0.2, 8, 500, 0.84)
    assert (cold_start.epochs, cold_start.batch, cold_start.learning_rate, cold_start.cutoff) == (2, 32, 1e-5, 32768)
    assert (cold_start.warmup, cold_start.weight_decay) == (0.02, 1e-6)
    assert (paper.judge.alpha, paper.cycle.requests_per_step, paper.cycle.steps) == (0.5, 8, 200)
    sizes = paper.dataset
    assert (sizes.recipes, sizes.sft, sizes.sft_heldout) == (19991, 8800, 200)
    assert (sizes.evolve, sizes.validation, sizes.bench) == (2446, 129, 594)


def test_the_trainers_configuration_takes_its_shared_values_from_their_own_sections() -> None:
    loaded = load("tiny", seed=7, overrides=["sampling.temperature=0.9"], path=PARAMS)
    assert (loaded.distill.steps, loaded.distill.temperature, loaded.distill.seed) == (loaded.cycle.steps, 0.9, 7)
    with pytest.raises(SettingsError, match=r"distill\.steps is taken from cycle\.steps: set that"):
        load(overrides=["distill.steps=3"], path=PARAMS)


def test_recipe_then_override_then_seed_win() -> None:
    recipe = {"sampling": {"k": 3}, "seeds": {"run_seed": 5}}
    loaded = load("tiny", recipe=recipe, overrides=["sampling.top_p=0.5"], seed=9, path=PARAMS)
    assert (loaded.sampling.k, loaded.sampling.top_p, loaded.seeds.run_seed) == (3, 0.5, 9)
    assert loaded.sampling.batch == load("tiny", path=PARAMS).sampling.batch


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["sampling.k=1"], "sampling.k: Input should be greater than or equal to 2, not 1"),
        (["sampling.colour=red"], "sampling.colour"),
        (["nothing.k=1"], "there is no section 'nothing'"),
        (["k=1"], "write section.key=value"),
        (["sampling.rounds=4"], "the last round is the answer"),
        (["render.backend=crayons"], "render.backend"),
    ],
)
def test_a_bad_override_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(overrides=overrides, path=PARAMS)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("embedded: {a: [1\n", "line 2: is not YAML"),
        ("- 1\n", "holds no mapping"),
        ("tiny: {}\n", "has no profile 'embedded'; it has tiny"),
        ("embedded: 3\n", "holds no sections"),
        ("embedded: {extends: embedded}\n", "extends itself"),
        ("embedded: {extends: ghost}\n", "has no profile 'ghost'"),
        ("embedded: {world: 3}\n", "world"),
        ("embedded: {distill: {}, cycle: 3}\n", "profile 'embedded'"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path=path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_and_a_binary_file_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is missing here"):
        load(path=tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not UTF-8 text"):
        load(path=tmp_path / "params.yaml")


def test_every_field_has_its_manual() -> None:
    sections = [c for _, c in inspect.getmembers(settings_module, inspect.isclass) if issubclass(c, Section)]
    assert len(sections) > 10
    silent = [
        f"{section.__name__}.{name}"
        for section in sections
        if section not in (Section, Settings)
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert silent == []


def test_params_name_nothing_twice() -> None:
    """A profile that extends another says only what differs."""
    profiles = yaml.safe_load(PARAMS.read_text())
    base = profiles["embedded"]
    same = [
        f"{section}.{key}"
        for section, values in profiles["tiny"].items()
        if isinstance(values, dict)
        for key, value in values.items()
        if base[section].get(key) == value
    ]
    assert same == []


def test_settings_of_models_stand_in_a_recipe_only_where_they_are_set(tmp_path: Path) -> None:
    plain = load(path=PARAMS).section_values("judge", "experience")
    assert set(plain["judge"]) == {"image", "program", "model", "alpha"}
    assert set(plain["experience"]) == {
        *("gap", "max_pairs", "capacity", "gate", "summariser", "embedder"),
    }, "as in ledgers written before there were models"
    rubric = tmp_path / "rubric.md"
    rubric.write_text("one")
    over = [f"judge.rubric={rubric}", "judge.options={seed: 1}", "experience.model=pen"]
    loaded = load(overrides=over, path=PARAMS)
    values = loaded.section_values("judge", "experience")
    assert (values["judge"]["options"], values["experience"]["model"]) == ({"seed": 1}, "pen")
    first = loaded.file_digests("judge", "experience")
    rubric.write_text("two")
    second = loaded.file_digests("judge", "experience")
    assert set(first) == set(second) == {"judge.rubric"}
    assert first != second, "another text under the same name is another judge"
    rubric.unlink()
    assert loaded.file_digests("judge") == {"judge.rubric": "missing"}
    assert load(path=PARAMS).file_digests("judge", "experience") == {}


def test_the_dialogue_stands_in_a_recipe_only_where_it_is_set_and_files_of_the_policy_count(tmp_path: Path) -> None:
    assert set(load(path=PARAMS).section_values("policy")["policy"]) == {"backend", "base"}
    assert load(path=PARAMS).file_digests("policy") == {}
    (tmp_path / "a.md").write_text("one")
    loaded = load(overrides=["policy.dialogue=release", f"policy.skills={tmp_path}"], path=PARAMS)
    assert loaded.section_values("policy")["policy"]["dialogue"] == "release"
    first = loaded.file_digests("policy")
    (tmp_path / "a.md").write_text("two")
    assert first != loaded.file_digests("policy")
