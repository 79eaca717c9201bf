"""The cold start of real models: the tokens that sampling sees, TRL's loss and updates, language weights alone, resumable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from genevolve.policy.huggingface import HubPolicy
from genevolve.policy.pictures import Eyes, image_processor
from genevolve.policy.template import ChatTemplate
from genevolve.records import Message, ToolCall, Trajectory
from genevolve.training import cold_start, sft
from genevolve.training.checkpoint import policy_hash, tokenizer_hash
from genevolve.training.cold_start import ColdStartError
from genevolve.training.models import load_model
from genevolve.training.sft import SftConfig, batch_of, encode
from tests.policy.tiny import blind_model, make_tokenizer, png, save, seeing_model

EYES = Eyes(lambda file: png(int(file.partition(".")[0])))
CONFIG = SftConfig(
    lr=3e-3, epochs=3, batch=8, warmup=0.4, weight_decay=0.0, cutoff=4000, seed=1, micro_batch_tokens=600
)


def conversation(n: int) -> Trajectory:
    """A trajectory of 1 to 3 turns; the first one searches for pictures and finds two."""
    turns = 1 + n % 3
    messages = [("system", "You are an image agent."), ("user", f"Draw giraffe number {n}.")]
    for turn in range(turns):
        messages.append(("assistant", f"<think> step {turn}</think> Draw" + " giraffe" * (n % 5 + 1)))
        if turn + 1 < turns:
            messages.append(("user", f"<tool_response>\n -{' image' * (turn + 2)}\n</tool_response>"))
    found = [{"img_id": f"IMG_00{i + 1}", "file": f"{i}.png"} for i in range(2)]
    calls = (ToolCall(turn=0, name="image_search", arguments={}, ok=True, result=found),) if turns > 1 else ()
    return Trajectory(
        id=f"t{n}",
        request_id=f"r{n}",
        rollout=0,
        question=messages[1][1],
        messages=tuple(Message(role=r, content=c) for r, c in messages),  # type: ignore[arg-type]
        tool_calls=calls,
    )


DATA = [conversation(n) for n in range(8)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    blind = make_tokenizer(eyes=False)
    seeing = make_tokenizer()
    return {
        "blind": save(root / "blind", blind_model(blind), blind),
        "seeing": save(root / "seeing", seeing_model(seeing), seeing),
    }


def test_tokens_are_those_that_sampling_sees_and_the_mask_is_the_assistants_spans(folders: dict[str, Path]) -> None:
    policy = HubPolicy.load(folders["seeing"], eyes=EYES)
    template, token = policy.template, policy.model.config.image_token_id
    for trajectory in DATA:
        row = encode(template, trajectory, processor=policy.processor, eyes=EYES, show=1, image_token=token)
        messages = [{"role": m.role, "content": m.content} for m in trajectory.messages]
        shown = [p.img_id for p in row.pictures]
        assert shown == (["IMG_001"] if len(messages) > 3 else [])
        if shown:
            parts = [{"type": "text", "text": messages[3]["content"] + "\nIMG_001: "}, {"type": "image"}]
            messages[3]["content"] = parts
        whole = template.tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
        pad = template.tokenizer.convert_ids_to_tokens(token)
        once = template.decode([*row.prompt_ids, *row.completion_ids])
        for picture in row.pictures:
            at = range(picture.at, picture.at + picture.tokens)
            assert {row.completion_ids[i] for i in at} == {token}
            assert not any(row.assistant_mask[i] for i in at)
            once = once.replace(pad * picture.tokens, pad)
        assert once == whole  # the template's own rendering of the whole conversation
        spans, now = [], []
        for i, m in [*zip(row.completion_ids, row.assistant_mask, strict=True), (0, 0)]:
            if m:
                now.append(i)
            elif now:
                spans.append(template.decode(now))
                now = []
        assert spans == [m.content + "<|im_end|>" for m in trajectory.messages if m.role == "assistant"]
        assert row.completion_ids[-1] == template.end


def test_loss_schedule_and_updates_are_trls(folders: dict[str, Path], tmp_path: Path) -> None:
    """Whole-set batches, so that the order of rows plays no part; what AdamW decays is not compared."""
    theirs = cold_start.train(
        folders["blind"], DATA, DATA[:3], tmp_path / "trl", epochs=3, batch=8, learning_rate=3e-3, warmup=0.4,
        weight_decay=0.0, cutoff=4000, seed=1, threads=1,
    )  # fmt: skip
    ours = sft.train(folders["blind"], DATA, DATA[:3], tmp_path / "ours", CONFIG)
    for key in ("sequences", "too_long", "tokens", "assistant_tokens"):
        assert ours[key] == theirs[key]
    for key in ("heldout_loss_before", "heldout_loss"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
    for one, other in zip(ours["curve"], theirs["curve"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-6, abs=1e-12)
    start, a, b = (
        load_model(p).state_dict() for p in (folders["blind"], tmp_path / "ours/policy", tmp_path / "trl/policy")
    )
    moved = sum(float((b[k] - start[k]).square().sum()) for k in b) ** 0.5
    apart = sum(float((b[k] - a[k]).square().sum()) for k in b) ** 0.5
    assert moved > 0.1
    assert apart / moved < 1e-4


@pytest.mark.parametrize(
    "changes", [{}, {"lora_rank": 4}, {"precision": "bfloat16", "gradient_checkpointing": True, "lora_rank": 4}]
)
def test_language_weights_learn_and_the_vision_tower_stays(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = dataclasses.replace(CONFIG, **changes, epochs=4, lr=1e-2 if changes else 3e-3)
    metrics = sft.train(folders["seeing"], DATA, DATA, tmp_path, config, eyes=EYES, show=1)
    assert metrics["pictures"] == 5
    assert metrics["heldout_loss"] < 0.9 * metrics["heldout_loss_before"]
    before, after = load_model(folders["seeing"]), load_model(tmp_path / "policy")
    assert tokenizer_hash(tmp_path / "policy") == tokenizer_hash(folders["seeing"])
    for name, weight in before.state_dict().items():
        same = torch.equal(weight.to(torch.bfloat16), after.state_dict()[name].to(torch.bfloat16))
        assert same == (".visual." in name or (bool(changes) and ("norm" in name or "embed" in name or "head" in name)))
    with torch.no_grad():  # the merged weights are the policy that was measured
        policy = HubPolicy.load(tmp_path / "policy", eyes=EYES)
        trainer = sft.SftTrainer(
            after, dataclasses.replace(config, lora_rank=None), "", look=_look(tmp_path / "policy")
        )
        rows = [
            encode(policy.template, t, processor=policy.processor, eyes=EYES, show=1, image_token=policy.model.config.image_token_id)
            for t in DATA
        ]  # fmt: skip
        assert trainer.evaluate(rows) == pytest.approx(
            metrics["heldout_loss"], rel=2e-2 if changes.get("precision") else 1e-4
        )


def _look(folder: Path) -> Any:
    from genevolve.policy.pictures import pixel_inputs

    return lambda pictures: pixel_inputs(image_processor(folder), EYES.read, pictures)


def test_what_is_too_long_is_counted_and_nothing_left_is_a_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    template = ChatTemplate.load(folders["blind"])
    sizes = [len(r.prompt_ids) + len(r.completion_ids) for r in (encode(template, t) for t in DATA)]
    limit = sorted(sizes)[3]
    config = dataclasses.replace(CONFIG, cutoff=limit, epochs=1)
    metrics = sft.train(folders["blind"], DATA, DATA, tmp_path, config)
    assert metrics["sequences"] == sum(s <= limit for s in sizes)
    assert metrics["too_long"] == metrics["heldout_too_long"] == 8 - metrics["sequences"]
    with pytest.raises(ColdStartError, match=r"None of the 8 trajectories fits in 5 tokens"):
        sft.train(folders["blind"], DATA, [], tmp_path, dataclasses.replace(config, cutoff=5))
    odd = DATA[0].model_copy(update={"messages": DATA[0].messages[:2]})
    with pytest.raises(ColdStartError, match="Trajectory t0: a conversation must begin"):
        encode(template, odd)


def test_cut_off_and_started_again_it_ends_with_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, batch=3, checkpoint_every=2)  # nine steps
    truth = sft.train(folders["seeing"], DATA, DATA[:2], tmp_path / "whole", config, eyes=EYES, show=1)
    step = sft.SftTrainer.step

    def die(self: Any, rows: Any, done: int, total: int) -> float:
        if done == 5:
            raise KeyboardInterrupt
        return step(self, rows, done, total)

    monkeypatch.setattr(sft.SftTrainer, "step", die)
    with pytest.raises(KeyboardInterrupt):
        sft.train(folders["seeing"], DATA, DATA[:2], tmp_path / "cut", config, eyes=EYES, show=1)
    monkeypatch.undo()
    assert sft.train(folders["seeing"], DATA, DATA[:2], tmp_path / "cut", config, eyes=EYES, show=1) == truth
    assert policy_hash(tmp_path / "cut/policy") == policy_hash(tmp_path / "whole/policy")


def test_every_epoch_takes_every_row_once() -> None:
    config = dataclasses.replace(CONFIG, batch=3, epochs=2)
    assert config.steps(8) == 6
    epochs = [[batch_of(3 * e + i, 8, config) for i in range(3)] for e in range(2)]
    assert all(sorted(i for batch in e for i in batch) == list(range(8)) for e in epochs)
    assert epochs[0] != epochs[1]
    assert [len(b) for b in epochs[0]] == [3, 3, 2]
