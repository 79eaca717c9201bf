"""Any transformers model in slots: against a plain forward, our own engine, and what a trajectory may depend on."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from genevolve.policy.base import Job, PolicyError, Sampled
from genevolve.policy.huggingface import HubPolicy
from genevolve.policy.local import LocalPolicy
from genevolve.policy.template import ChatTemplate
from genevolve.training.checkpoint import policy_hash, tokenizer_hash
from tests.policy.tiny import SAMPLING, blind_model, job, jobs, make_tokenizer, plain, save, seeing_model, seen, worst


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def blind(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("qwen3"), blind_model(tokenizer), tokenizer)


@pytest.fixture(scope="module")
def seeing(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("qwen3vl"), seeing_model(tokenizer), tokenizer)


@pytest.mark.parametrize("kind", ["blind", "seeing"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_recorded_logprobs_are_those_of_a_plain_forward(
    kind: str, attention: str, request: pytest.FixtureRequest
) -> None:
    policy = HubPolicy.load(request.getfixturevalue(kind), attention=attention)
    assert policy.model.config.get_text_config()._attn_implementation == attention
    rows = policy.sample(jobs(8), SAMPLING, seed=1)
    assert all(worst(row, plain(policy, row, 0.7)) < 1e-4 for row in rows)
    assert sum(map(sum, (row.assistant_mask for row in rows))) > 100
    assert sum(0 in row.assistant_mask for row in rows) > 2, "the test must see observations"


def test_the_tokens_are_the_templates_and_never_tokenised_again(seeing: Path) -> None:
    policy = HubPolicy.load(seeing)
    said: list[list[str]] = [[] for _ in range(6)]
    asked = [job(f"r{i}", 3, said=said[i]) for i in range(6)]
    rows = policy.sample(asked, SAMPLING, seed=5)
    assert max(map(len, said)) == 3, "the test must see a whole conversation"
    for row, talk, texts in zip(rows, asked, said, strict=True):
        messages = [{"role": "system", "content": talk.system}, {"role": "user", "content": talk.question}]
        rendered = policy.template.tokenizer.apply_chat_template
        assert list(row.prompt_ids) == rendered(messages, add_generation_prompt=True, return_dict=False)
        pairs = zip(row.completion_ids, row.assistant_mask, strict=True)
        runs = [(mine, tuple(i for i, _ in part)) for mine, part in groupby(pairs, key=lambda pair: pair[1])]
        assert [ids for mine, ids in runs if not mine] == [
            policy.template.encode(policy.template.observation(seen(n))) for n in range(1, len(runs) // 2 + 1)
        ]
        for n, text in enumerate(texts, 1):
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": seen(n)}]
        if not row.overlong:
            whole = policy.text([*row.prompt_ids, *row.completion_ids])
            assert whole + "\n" == rendered(messages[:-1], tokenize=False)


def test_our_engine_and_transformers_give_the_same(blind: Path) -> None:
    ours, theirs = LocalPolicy.load(blind), HubPolicy.load(blind)
    assert (ours.policy_hash, ours.tokenizer_hash) == (theirs.policy_hash, theirs.tokenizer_hash)
    ours.never = theirs.never  # ids that this tokenizer has no token for
    a, b = (p.sample(jobs(8), replace(SAMPLING, max_context=300), seed=3) for p in (ours, theirs))
    same = [(x, y) for x, y in zip(a, b, strict=True) if x.completion_ids == y.completion_ids]
    assert len(same) >= 7  # a draw on the edge between two tokens may fall to either side
    for x, y in same:
        assert torch.tensor(x.logprobs) == pytest.approx(torch.tensor(y.logprobs), abs=1e-4)
    assert [x.prompt_ids for x in a] == [y.prompt_ids for y in b]


def test_rollouts_differ_and_a_seed_repeats_them_in_any_company(seeing: Path) -> None:
    policy = HubPolicy.load(seeing)

    def play(indices: range, batch: int, seed: int = 3) -> list[Sampled]:
        return policy.sample([jobs(8)[i] for i in indices], replace(SAMPLING, batch=batch), seed)

    whole = play(range(8), 8)
    assert len({row.completion_ids for row in whole}) == 8
    assert play(range(8), 8) == whole
    assert [r.completion_ids for r in play(range(8), 3)] == [r.completion_ids for r in whole]
    assert [r.completion_ids for r in play(range(5, 7), 1)] == [r.completion_ids for r in whole[5:7]]
    assert [r.completion_ids for r in play(range(8), 8, seed=4)] != [r.completion_ids for r in whole]


def test_placeholders_and_ids_without_a_token_are_never_drawn(seeing: Path) -> None:
    policy = HubPolicy.load(seeing)
    never = set(policy.never.tolist())
    assert {policy.model.config.image_token_id, policy.model.config.video_token_id} < never
    assert len(policy.template.tokenizer) in never
    rows = policy.sample(jobs(6), replace(SAMPLING, temperature=2.0, top_p=1.0), seed=0)
    assert not never & {i for row in rows for i in row.completion_ids}
    assert all(worst(row, plain(policy, row, 2.0)) < 1e-4 for row in rows)  # of the full vocabulary nonetheless


def test_sliding_windows_are_masked(tokenizer: Any) -> None:
    for layers in (["full_attention", "sliding_attention", "sliding_attention"], ["sliding_attention"] * 3):
        model = blind_model(tokenizer, sliding_window=16, use_sliding_window=True, layer_types=layers)
        policy = HubPolicy(model, ChatTemplate(tokenizer))
        rows = policy.sample(jobs(4), SAMPLING, seed=1)
        assert all(worst(row, plain(policy, row, 0.7)) < 1e-4 for row in rows)


def test_limits_and_one_prefill_for_the_rollouts_of_a_request(blind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = HubPolicy.load(blind)
    tight = policy.sample(jobs(6), replace(SAMPLING, max_context=80), seed=0)
    assert all(len(r.prompt_ids) + len(r.completion_ids) <= 80 for r in tight)
    from genevolve.policy.slots import SlotEngine

    fed: list[int] = []
    real = SlotEngine.extend
    monkeypatch.setattr(
        SlotEngine, "extend", lambda self, s, ids, p=None: fed.append(len(ids)) or real(self, s, ids, p)
    )
    group = [Job(f"r/{i}", "System.", "Question.", lambda _: None) for i in range(9)]
    rows = policy.sample(group, SAMPLING, seed=0)
    assert len(fed) == 1
    assert len({r.completion_ids for r in rows}) == 9


def test_too_little_memory_is_one_sentence_and_the_policy_goes_on(blind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genevolve.policy.slots import SlotEngine

    policy = HubPolicy.load(blind)

    def full(self: SlotEngine, tokens: list[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(SlotEngine, "decode", full)
        with pytest.raises(
            PolicyError, match=r"5 trajectories at once; lower sampling.batch \(now 5\) or sampling.max_co"
        ):
            policy.sample(jobs(7), SAMPLING, seed=0)
    assert len(policy.sample(jobs(2), SAMPLING, seed=0)) == 2


def test_a_model_that_slots_compute_wrongly_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from genevolve.policy.slots import SlotEngine

    def shifted(self: SlotEngine, tokens: Any, pixels: Any) -> Any:
        return 2 * torch.arange(tokens.shape[1])[None]

    monkeypatch.setattr(SlotEngine, "_places", shifted)
    with pytest.raises(PolicyError, match=r"differ by .* from a plain forward pass"):
        HubPolicy(blind_model(tokenizer), ChatTemplate(tokenizer))


def test_bfloat16_is_played(seeing: Path) -> None:
    policy = HubPolicy.load(seeing, dtype="bfloat16")
    row = policy.sample(jobs(1), SAMPLING, seed=0)[0]
    assert policy.model.dtype == torch.bfloat16
    assert worst(row, plain(policy, row, 0.7)) < 0.3


@pytest.mark.parametrize("kind", ["blind", "seeing"])
def test_an_adapter_is_its_base_and_more(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base: Path = request.getfixturevalue(kind)
    model = HubPolicy.load(base).model
    for p in (wrapped := get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))).parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(tmp_path / "adapter")
    policy = HubPolicy.load(tmp_path / "adapter")
    assert not LocalPolicy.plays(tmp_path / "adapter")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(policy.model(ids).logits, wrapped(ids).logits, atol=1e-4, rtol=1e-4)
        assert (policy.model(ids).logits - HubPolicy.load(base).model(ids).logits).abs().max() > 0.1
    assert policy.policy_hash == policy_hash(tmp_path / "adapter") != policy_hash(base)
    assert policy.tokenizer_hash == tokenizer_hash(base)
    if kind == "seeing":  # made for a part of the base that is not there: nothing is left out in silence
        other = save(tmp_path / "other", blind_model(policy.template.tokenizer), policy.template.tokenizer)
        config = tmp_path / "adapter" / "adapter_config.json"
        config.write_text(config.read_text().replace(str(base), str(other)))
        with pytest.raises(PolicyError, match="does not fit its base"):
            HubPolicy.load(tmp_path / "adapter")


def test_what_cannot_be_loaded_is_one_sentence(blind: Path, seeing: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(PolicyError, match="hf download Nobody/Nothing"):
        HubPolicy.load("Nobody/Nothing")
    with pytest.raises(PolicyError, match=r"policy\.device is cuda"):
        HubPolicy.load(blind, device="cuda")
    copy = Path(shutil.copytree(seeing, tmp_path / "a"))
    (copy / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(PolicyError, match="the model cannot be loaded"):
        HubPolicy.load(copy)
    copy = Path(shutil.copytree(seeing, tmp_path / "b"))
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(PolicyError, match="the tokenizer cannot be read"):
        HubPolicy.load(copy)
