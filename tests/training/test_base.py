"""The base's parts: tokenizer, wired start, practice, and a few real steps of pretraining."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from genevolve.agent.chat import prompt_text
from genevolve.agent.protocol import Answer, Call, parse_turn
from genevolve.scene import SKILLS
from genevolve.training import drills
from genevolve.training.drills import examples, lookup_drill, trajectory
from genevolve.training.lore import Lore, read_lore, splice
from genevolve.training.pretrain import (
    PretrainConfig,
    batches,
    encode,
    new_model,
    optimisers,
    token_counts,
    train,
    weighted_loss,
)
from genevolve.training.tokenizer import IMG_TOKENS, drop_rare, letter_tokens, train_tokenizer

LORE = Lore(
    titles=("steel guitar", "wood engraving", "tidal marsh", "copper kettle", "night train", "paper mill"),
    descriptions=("Sprint race over sixty paces", "tool for drawing parallel lines", "Order of small green stones"),
    sentences=(
        "The mill was built by the river in the year of the great flood and still stands.",
        "A marsh is a place where the ground is wet for the most part of the year.",
        "The train left in the night and came to the coast before the sun was up again.",
        "Paper was made there from old cloth until the last owner sold all of the machines.",
    ),
    guidance=dict.fromkeys(SKILLS, "Write: like this."),
)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    rng = Random(1)
    source = examples(rng, LORE)
    return train_tokenizer(("".join(t for t, _ in next(source)) for _ in range(400)), vocab_size=1024)


def test_a_word_has_the_same_tokens_in_running_text_in_json_and_behind_a_quote(tokenizer) -> None:  # type: ignore[no-untyped-def]
    word = tokenizer(" steel guitar")["input_ids"]
    for text in ("Draw a steel guitar, twice", '"query": " steel guitar"}}', " - steel guitar IMG_004\n"):
        ids = tokenizer(text)["input_ids"]
        assert any(ids[i : i + len(word)] == word for i in range(len(ids))), text
    asked, quoted = tokenizer('the sign "KETTLE" at')["input_ids"], tokenizer("text 'KETTLE' in")["input_ids"]
    kettle = tokenizer("KETTLE")["input_ids"]
    assert all(any(ids[i : i + len(kettle)] == kettle for i in range(len(ids))) for ids in (asked, quoted))


def test_scaffolds_and_ids_are_single_tokens_and_text_survives_the_round_trip(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for token in (*IMG_TOKENS, "<|im_end|>", '</think><answer>{"gen_prompt": "'):
        assert len(tokenizer(token)["input_ids"]) == 1
    for pieces in (trajectory(Random(i), LORE) for i in range(10)):
        for text, _ in pieces:
            assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=False) == text


def test_rare_tokens_are_dropped_and_nothing_else_of_a_tokenizer(tokenizer) -> None:  # type: ignore[no-untyped-def]
    cut = copy.deepcopy(tokenizer)
    counts = token_counts(tokenizer, LORE, n=300)
    drop_rare(cut, counts, 30)
    merged = {"".join(m) for m in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]}
    rare = {i for text, i in tokenizer.get_vocab().items() if text in merged and counts[i] < 30}
    assert len(rare) > 50
    assert cut.get_vocab() == tokenizer.get_vocab()
    texts = [text for i in range(20) for text, _ in trajectory(Random(i), LORE)] + ["Zürich mammoth 日本 IMG_003\n"]
    was, now = (list(t(texts)["input_ids"]) for t in (tokenizer, cut))
    assert any(rare & set(row) for row in was)
    assert not any(rare & set(row) for row in now)
    assert [cut.decode(row, skip_special_tokens=False) for row in now] == texts
    kept = sum(a == b for a, b in zip(was, now, strict=True) if not rare & set(a))
    assert kept > 0.6 * sum(not rare & set(a) for a in was)
    before = cut.backend_tokenizer.to_str()
    drop_rare(cut, {}, 30)  # a second time changes nothing, whatever is counted
    assert cut.backend_tokenizer.to_str() == before


def test_a_word_is_cut_alike_everywhere_without_rare_tokens_too(tokenizer) -> None:  # type: ignore[no-untyped-def]
    cut = copy.deepcopy(tokenizer)
    drop_rare(cut, token_counts(tokenizer, LORE, n=300), 30)
    test_a_word_has_the_same_tokens_in_running_text_in_json_and_behind_a_quote(cut)


def test_no_practice_keeps_the_weights(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    cfg = PretrainConfig(vocab_size=1024, hidden_size=32, layers=3, heads=4, kv_heads=4, head_dim=8, mlp=32, workers=1)
    model = new_model(replace(cfg, tokens=1))
    train(replace(cfg, tokens=0), tokenizer, LORE, tmp_path, model=model)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(
        torch.equal(saved[name], value.bfloat16()) for name, value in model.state_dict().items() if name in saved
    )


def test_the_chat_template_says_what_the_engine_says(tokenizer) -> None:  # type: ignore[no-untyped-def]
    said = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert said == prompt_text("S", "U")


def test_the_wired_start_copies_before_any_training() -> None:
    model = new_model(PretrainConfig(vocab_size=1024)).eval()
    ids = torch.randint(0, 1024, (4, 80), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = model(input_ids=torch.cat([ids, ids], 1)).logits[:, 80:-1].argmax(-1)
    assert (said == ids[:, 1:]).float().mean() > 0.6


def test_practice_goes_on_with_a_base_in_its_own_sizes(tmp_path: Path) -> None:
    small = new_model(PretrainConfig(vocab_size=1024, kv_heads=2))
    small.save_pretrained(tmp_path)
    again = new_model(PretrainConfig(start=str(tmp_path)))
    assert again.config.num_key_value_heads == 2
    assert again.dtype == torch.float32
    assert torch.equal(again.model.embed_tokens.weight, small.model.embed_tokens.weight)


def test_the_wired_start_tells_lines_apart_that_end_in_the_same_two_words() -> None:
    """Five lines "a b c d"; only a and b differ. Asked again for one of them, its own d comes first among the five."""
    model = new_model(PretrainConfig(vocab_size=1024)).eval()
    rng, right = torch.Generator().manual_seed(0), 0
    for case in range(20):
        lines = torch.randint(0, 1024, (5, 5), generator=rng)
        lines[:, 2:4] = lines[0, 2:4]
        asked = lines[case % 5]
        filler = torch.randint(0, 1024, (60,), generator=rng)
        with torch.no_grad():
            logits = model(input_ids=torch.cat([filler, lines.reshape(-1), filler, asked[:4]])[None]).logits[0, -1]
        right += int(logits[lines[:, 4]].argmax()) == case % 5
    assert right >= 16


def test_every_turn_of_a_practice_trajectory_is_a_valid_turn_and_the_guide_is_obeyed() -> None:
    guided = 0
    for i in range(150):
        pieces = trajectory(Random(i), LORE, guided=0.5)
        turns = [parse_turn(text.removesuffix("<|im_end|>"), False) for text, weight in pieces if weight == 1.0]
        assert all(isinstance(t, Call) for t in turns[:-1])
        assert isinstance(turns[-1], Answer)
        prompt = pieces[0][0]
        if "Current-Task Decision Guide" in prompt:
            guided += 1
            advised = {s for s in SKILLS if f"query_knowledge for {s} " in prompt or f"the skill {s} first" in prompt}
            asked = {t.arguments["skill_name"] for t in turns if isinstance(t, Call) and t.name == "query_knowledge"}
            assert advised <= asked
    assert guided > 40


def test_the_look_up_drill_asks_for_every_title_and_names_its_own_id() -> None:
    page, said = (text for text, _ in lookup_drill(Random(3), LORE))
    rows = dict(line.removeprefix(" - ").rsplit(" ", 1) for line in page.splitlines() if "IMG_" in line)
    assert len(rows) >= 4
    assert all(f"Take {title} {img_id}." in said for title, img_id in rows.items())


def test_lore_names_no_entity() -> None:
    lore = read_lore(["flag of Bhutan", "giraffe", "American bison"], {})
    text = " ".join((*lore.titles, *lore.descriptions, *lore.sentences)).lower()
    assert len(lore.sentences) > 1000
    assert "giraffe" in " ".join(read_lore(["flag of Bhutan"], {}).sentences).lower()
    for name in ("bhutan ", " giraffe", "american bison"):
        assert name not in text


SMALL = PretrainConfig(vocab_size=1024, hidden_size=208, kv_heads=2, layers=2)


def test_spliced_names_use_every_token_and_no_forbidden_name(tokenizer) -> None:  # type: ignore[no-untyped-def]
    known = letter_tokens(tokenizer)
    assert {" the", "ing"} <= set(known)
    assert all(t.strip().isalpha() for t in known)
    lore = replace(LORE, tokens=(" lemon", " gi", "raffe"), forbidden=frozenset({"lemon", "giraffe"}))
    names = {splice(Random(i), lore) for i in range(200)}
    assert "gi" in names
    assert {"lemonraffe", "giraffe", "lemon"} & names == {"lemonraffe"}


def test_training_lowers_the_loss_and_saves_a_loadable_base(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    cfg = replace(SMALL, tokens=30_000, batch_tokens=1500, workers=1)
    rows: list[dict[str, float]] = []
    source, rng = examples(Random(9), LORE), Random(9)
    ids, weights = next(batches(tokenizer, source, 1500, rng))
    model = new_model(cfg)

    def loss() -> float:
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1]
        keep = weights[:, 1:] >= 0.9
        return torch.nn.functional.cross_entropy(logits[keep], ids[:, 1:][keep]).item()

    before = loss()
    train(cfg, tokenizer, LORE, tmp_path, rows.append, model)
    assert loss() < before - 1
    assert rows[-1]["trajectory_loss"] > 0
    assert json.loads((tmp_path / "pretrain.json").read_text())["config"]["seed"] == cfg.seed
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == 1024


def test_two_workers_make_the_step_of_one_over_both_their_batches(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    cfg = replace(SMALL, tokens=1, batch_tokens=2000, workers=2)  # over after one step
    together = train(cfg, tokenizer, LORE, tmp_path, lambda row: None)

    alone = new_model(cfg)
    for rank in range(2):
        rng, draw = Random(cfg.seed + rank), torch.Generator().manual_seed(cfg.seed + rank)
        ids, weights = next(batches(tokenizer, examples(rng, LORE), 1000, rng))
        (weighted_loss(alone, ids, weights, 0.2, draw) / 2).backward()
    torch.nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
    for opt in optimisers(alone, cfg.lr_matrix * 0.01, cfg.lr_other * 0.01):
        opt.step()
    for a, b in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_examples_are_a_function_of_the_seed(tokenizer) -> None:  # type: ignore[no-untyped-def]
    a, b = examples(Random(4), LORE), examples(Random(4), LORE)
    assert [encode(tokenizer, next(a)) for _ in range(30)] == [encode(tokenizer, next(b)) for _ in range(30)]
    assert replace(PretrainConfig(), seed=1) != PretrainConfig()
    assert drills.QUIET < 0.2  # below `low` in pretrain.train: text that is read is sampled, not skipped
