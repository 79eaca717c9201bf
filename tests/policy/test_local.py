"""The engine against an ordinary forward, the loop's bookkeeping, and what a trajectory may depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from genevolve.agent.chat import observation_text, prompt_text
from genevolve.agent.rollout import rollouts
from genevolve.policy.base import Job, PolicyError, Sampled, Sampling
from genevolve.policy.draw import draw, uniforms
from genevolve.policy.engine import Engine
from genevolve.policy.local import LocalPolicy
from genevolve.records import Trajectory
from tests.agent.parts import make_tools, requests

SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_turn_tokens=60, max_context=400, batch=8)
SYSTEM = "You are an image agent.\n{{guide}}\nTools: search."


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from genevolve.training.tokenizer import train_tokenizer

    return train_tokenizer(["You are an image agent. Draw the giraffe number 3, please."] * 20, 420)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """A random Qwen3 that is far from flat and ends a turn every twenty tokens or so."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 3, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=512,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4) if p.dim() > 1 else p.add_(torch.randn_like(p) * 0.3)
        model.lm_head.weight[len(tokenizer) :] = 0  # padding of the vocabulary
        tries = LocalPolicy.of(model, tokenizer).sample(jobs(6), replace(SAMPLING, max_turn_tokens=40), seed=0)
        said = torch.bincount(torch.tensor([t for row in tries for t in row.completion_ids]))
        often = int((said / said.sum() - 1 / 15).abs().argmin())  # a token it says about that often
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("<|im_end|>")] = model.lm_head.weight[often]
    return model


@pytest.fixture(scope="module")
def policy(model: Any, tokenizer: Any) -> LocalPolicy:
    return LocalPolicy.of(model, tokenizer)


@pytest.fixture(scope="module")
def folder(model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def answering(turns: int, said: list[str] | None = None) -> Callable[[str], str | None]:
    """A conversation of so many turns, whose observations have different lengths."""
    count = 0

    def step(text: str) -> str | None:
        nonlocal count
        count += 1
        if said is not None:
            said.append(text)
        return None if count == turns else "<tool_response>\n" + " giraffe" * (3 * count) + "\n</tool_response>"

    return step


def jobs(n: int) -> list[Job]:
    return [
        Job(f"r{i}", "You are an image agent.", f"Draw {'a giraffe ' * (i % 4)}{i // 3}", answering(1 + i % 4))
        for i in range(n)
    ]


def truth(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def test_recorded_logprobs_are_those_of_an_ordinary_forward(policy: LocalPolicy, model: Any) -> None:
    out = policy.sample(jobs(20), SAMPLING, seed=1)
    sampled = 0
    for row in out:
        mask = torch.tensor(row.assistant_mask, dtype=torch.bool)
        logp = torch.tensor(row.logprobs)
        assert not logp[~mask].any()
        worst = (truth(model, row.prompt_ids, row.completion_ids, 0.7) - logp)[mask].abs().max()
        assert worst < 1e-4, worst
        sampled += int(mask.sum())
    assert sampled > 300
    assert any(0 in row.assistant_mask for row in out), "the test must see observations"


def test_tokens_are_the_chat_and_are_never_tokenised_again(policy: LocalPolicy, tokenizer: Any) -> None:
    said: list[list[str]] = [[] for _ in range(6)]
    asked = [Job(f"r{i}", "You are an image agent.", "Draw a giraffe", answering(3, said[i])) for i in range(6)]
    rows = policy.sample(asked, replace(SAMPLING, max_turn_tokens=120, max_context=600), seed=5)
    messages = [{"role": "system", "content": asked[0].system}, {"role": "user", "content": asked[0].question}]
    template = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert template == policy.encode(prompt_text(asked[0].system, asked[0].question))
    for row, texts in zip(rows, said, strict=True):
        assert list(row.prompt_ids) == template
        runs = [
            (bool(mask), [token for token, _ in part])
            for mask, part in groupby(
                zip(row.completion_ids, row.assistant_mask, strict=True), key=lambda pair: pair[1]
            )
        ]
        spoken = [ids for mine, ids in runs if mine]
        forced = [ids for mine, ids in runs if not mine]
        for text, ids in zip(texts, spoken, strict=False):
            assert ids.index(policy.end) == len(ids) - 1
            assert tokenizer.decode(ids[:-1]) == text
        for turn, ids in enumerate(forced, 1):
            message = "<tool_response>\n" + " giraffe" * (3 * turn) + "\n</tool_response>"
            assert ids == policy.encode(observation_text(message))
    assert max(map(len, said)) >= 2, "the test must see an observation and a turn behind it"


def test_a_trajectory_does_not_depend_on_its_company(model: Any, tokenizer: Any) -> None:
    def play(indices: range, batch: int) -> list[Sampled]:
        fresh = LocalPolicy.of(model, tokenizer)
        return fresh.sample([jobs(20)[i] for i in indices], replace(SAMPLING, batch=batch), seed=3)

    whole = play(range(20), 20)
    assert play(range(20), 20) == whole
    assert play(range(20), 3) == whole
    assert play(range(7, 12), 1) == whole[7:12]
    assert play(range(19, -1, -1), 6) == whole[::-1]
    assert len({row.completion_ids for row in whole}) == 20


def test_seed_and_key_name_the_stream(policy: LocalPolicy) -> None:
    job = jobs(1)[0]
    same = [replace(job, key="a", step=answering(1)), replace(job, key="b", step=answering(1))]
    a, b = policy.sample(same, SAMPLING, seed=1)
    assert a.completion_ids != b.completion_ids
    assert policy.sample([replace(same[0], step=answering(1))], SAMPLING, seed=2)[0] != a
    assert torch.equal(uniforms(1, "a", 9)[:4], uniforms(1, "a", 4))
    assert 0.45 < float(uniforms(0, "x", 4000).mean()) < 0.55


def test_limits_end_a_trajectory_in_a_sentence(policy: LocalPolicy) -> None:
    never = replace(SAMPLING, max_turn_tokens=5, temperature=0.0)
    turn = policy.sample(jobs(3), never, seed=0)
    assert all(r.assistant_mask[-5:] == (1,) * 5 and "turn has 5 tokens" in r.overlong for r in turn if r.overlong)
    assert any(r.overlong for r in turn)
    tight = policy.sample(jobs(8), replace(SAMPLING, max_context=70), seed=0)
    assert all(len(r.prompt_ids) + len(r.completion_ids) <= 70 for r in tight)
    assert any("trajectory has 70 tokens" in r.overlong for r in tight)
    none = policy.sample(jobs(2), replace(SAMPLING, max_context=5), seed=0)
    assert all("prompt alone" in r.overlong and not r.completion_ids for r in none)


def test_greedy_takes_the_best_token_and_reports_its_plain_logprob(policy: LocalPolicy, model: Any) -> None:
    row = policy.sample([replace(jobs(1)[0], step=answering(1))], replace(SAMPLING, temperature=0.0), seed=0)[0]
    with torch.no_grad():
        logits = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0, len(row.prompt_ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == list(row.completion_ids)
    torch.testing.assert_close(truth(model, row.prompt_ids, row.completion_ids, 1.0), torch.tensor(row.logprobs))


@pytest.mark.parametrize(("spread", "top_p"), [(3.0, 0.9), (0.2, 0.95), (3.0, 1.0)])
def test_draws_follow_the_nucleus_exactly(spread: float, top_p: float) -> None:
    """Against transformers' own temperature and top-p: each quantile of the kept distribution gives its token."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    torch.manual_seed(1)
    logits = torch.randn(1, 200) * spread
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(0.7)(None, logits))
    want = torch.softmax(warped, -1)[0]
    n = 20_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, logprobs = draw(logits.expand(n, -1), u, 0.7, top_p)
    got = torch.bincount(torch.tensor(tokens), minlength=200) / n
    assert (got - want).abs().max() < 2 / n + 1e-5
    assert logprobs[0] == pytest.approx(float(torch.log_softmax(logits / 0.7, -1)[0, tokens[0]]), abs=1e-5)


def test_a_row_survives_moving_and_restoring(model: Any) -> None:
    engine = Engine(model.state_dict(), model.config.to_dict(), slots=4, capacity=64)
    ids = list(range(5, 25))
    with torch.inference_mode():
        straight = engine.extend(0, ids)
        engine.reset(0)
        saved = engine.save(0, engine.extend(0, ids[:9]))
        engine.move(0, 3)
        engine.restore(1, saved)
        assert torch.allclose(engine.extend(3, ids[9:]), straight, atol=1e-4)
        engine.restore(2, saved)
        assert torch.equal(engine.extend(1, ids[9:]), engine.extend(2, ids[9:]))


def test_guides_change_the_prompt_of_their_request_only(policy: LocalPolicy) -> None:
    wanted = requests(2)
    out = rollouts(policy, wanted, 2, make_tools(), SAMPLING, 1, system=SYSTEM, guides={wanted[1].id: " - Look twice."})
    assert [("Look twice" in t.messages[0].content) for t in out] == [False, False, True, True]
    assert [(t.id, t.request_id, t.rollout) for t in out][1::2] == [
        ("req-000-1", "req-000", 1),
        ("req-001-1", "req-001", 1),
    ]


def test_trajectories_name_their_policy_and_survive_their_codec(folder: Path) -> None:
    loaded = LocalPolicy.load(folder)
    played = rollouts(loaded, requests(2), 2, make_tools(), SAMPLING, 4, system=SYSTEM)
    assert all(Trajectory.model_validate_json(t.model_dump_json()) == t for t in played)
    assert played[0].policy_hash == loaded.policy_hash
    assert len(loaded.tokenizer_hash) == 64


def test_a_bad_folder_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    def damaged(name: str, content: bytes | None) -> str:
        copy = tmp_path / str(len(list(tmp_path.iterdir())))
        copy.mkdir()
        for path in folder.iterdir():
            data = content if path.name == name else path.read_bytes()
            if data is not None:
                (copy / path.name).write_bytes(data)
        with pytest.raises(PolicyError) as caught:
            LocalPolicy.load(copy)
        return str(caught.value)

    assert "no .safetensors" in damaged("model.safetensors", None)
    assert "damaged" in damaged("model.safetensors", (folder / "model.safetensors").read_bytes()[:1000])
    assert "no tokenizer.json" in damaged("tokenizer.json", None)
    assert "config.json" in damaged("config.json", None)
    assert "damaged" in damaged("config.json", b"{")
    config = json.loads((folder / "config.json").read_text())
    other = json.dumps({**config, "architectures": ["LlamaForCausalLM"]}).encode()
    assert "LlamaForCausalLM" in damaged("config.json", other)
    assert "do not match" in damaged("config.json", json.dumps({**config, "vocab_size": 100}).encode())
    with pytest.raises(PolicyError, match="sliding"):
        Engine({}, {**config, "use_sliding_window": True}, 4, 64)
    with pytest.raises(PolicyError, match="lack"):
        Engine({}, config, 4, 64)
