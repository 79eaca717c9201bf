"""Policies with eyes: what is shown, what is recorded, and that training can see it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genevolve.agent.rollout import rollouts
from genevolve.agent.session import Session
from genevolve.policy.base import PolicyError
from genevolve.policy.huggingface import HubPolicy
from genevolve.policy.pictures import Eyes, bounded, decode, pixel_inputs
from genevolve.records import Picture, Trajectory, dump, parse
from genevolve.tools.base import ToolError
from tests.agent.parts import make_tools, requests
from tests.policy.tiny import SAMPLING, blind_model, job, jobs, make_tokenizer, plain, png, save, seeing_model, worst


def read(file: str) -> bytes:
    number = int(Path(file).stem)
    return png(number, (120 + 40 * number, 90))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer()
    return save(tmp_path_factory.mktemp("qwen3vl"), seeing_model(tokenizer), tokenizer)


@pytest.fixture(scope="module")
def policy(folder: Path) -> HubPolicy:
    return HubPolicy.load(folder, eyes=Eyes(read, 4096))


def test_logprobs_behind_pictures_are_those_of_a_plain_forward_with_the_recorded_pixels(policy: HubPolicy) -> None:
    rows = policy.sample(jobs(9, pictures=2), SAMPLING, seed=1)
    pad = policy.model.config.image_token_id
    counts = [len(row.pictures) for row in rows]
    assert {1, 2} <= set(counts)
    for row in rows:
        spots = {i for p in row.pictures for i in range(p.at, p.at + p.tokens)}
        assert spots == {i for i, token in enumerate(row.completion_ids) if token == pad}
        assert not any(row.assistant_mask[i] for i in spots)
        pixels = pixel_inputs(policy.processor, read, row.pictures) if row.pictures else None
        assert worst(row, plain(policy, row, 0.7, pixels)) < 1e-4
    seen = next(row for row in rows if row.pictures)
    dark = {k: torch.zeros_like(v) if k == "pixel_values" else v for k, v in
            pixel_inputs(policy.processor, read, seen.pictures).items()}  # fmt: skip
    last = max(i for i, m in enumerate(seen.assistant_mask) if m)
    assert last > seen.pictures[0].at, "the test must see a turn behind a picture"
    assert worst(seen, plain(policy, seen, 0.7, dark)) > 1e-3, "the pictures must matter"


def test_a_seed_repeats_rows_with_pictures_in_any_company(policy: HubPolicy) -> None:
    whole = policy.sample(jobs(6, pictures=2), SAMPLING, seed=2)
    alone = policy.sample(jobs(6, pictures=2)[2:4], SAMPLING, seed=2)
    assert [r.completion_ids for r in alone] == [r.completion_ids for r in whole[2:4]]
    assert [r.pictures for r in alone] == [r.pictures for r in whole[2:4]]


def test_a_picture_is_scaled_to_the_limit_and_changed_ones_are_refused(policy: HubPolicy) -> None:
    rows = policy.sample([job(f"r{i}", 2, pictures=2) for i in range(3)], SAMPLING, seed=4)
    pictures = next(r.pictures for r in rows if r.pictures)
    assert all(p.width * p.height <= 4096 for p in pictures)
    assert pictures[0].width / pictures[0].height == pytest.approx(120 / 90, abs=0.05)
    assert [p.img_id for p in pictures] == ["IMG_001", "IMG_002"]
    assert pictures[0].tokens == pictures[0].grid[1] * pictures[0].grid[2] // 4
    with pytest.raises(PolicyError, match=r"0\.png is not the picture"):
        pixel_inputs(policy.processor, lambda _: read("5.png"), pictures)
    other = pictures[0].model_copy(update={"grid": (1, 2, 2)})
    with pytest.raises(PolicyError, match="cuts pictures otherwise"):
        pixel_inputs(policy.processor, read, [other])


def test_a_picture_that_cannot_be_read_is_not_shown(folder: Path) -> None:
    def broken(file: str) -> bytes:
        if file == "0.png":
            raise ToolError("gone")
        return b"GIF89a not a picture" if file == "1.png" else read(file)

    blinking = HubPolicy.load(folder, eyes=Eyes(broken, 4096))
    talk = job("r", 2, pictures=3)
    message = talk.step("turn")
    piece = blinking.reply(talk, str(message))
    assert [p.img_id for p in piece.pictures] == ["IMG_003"]
    assert "IMG_003: <|vision_start|>" in blinking.text(piece.ids)
    assert "IMG_001" not in blinking.text(piece.ids)


def test_the_session_says_which_pictures_an_observation_brings() -> None:
    tools = make_tools()
    search = '<think>a</think><tool_call>{"name": "search", "arguments": {"queries": ["Bhutan"]}}</tool_call>'
    look = '<think>a</think><tool_call>{"name": "image_search", "arguments": {"query": "flag of Bhutan"}}</tool_call>'
    for show, want in ((0, ()), (1, (("IMG_001", "bt.svg"),)), (5, (("IMG_001", "bt.svg"), ("IMG_002", "np.svg")))):
        session = Session(type(tools)(tools.search, tools.image_search, tools.knowledge, 2, show))
        session.start("A flag.", "s")
        session.step(look)
        assert session.pictures == want
        session.step(search)
        assert session.pictures == ()


class Searching(HubPolicy):
    """The tiny policy, whose first turn is read as an image search: random weights never write one."""

    def text(self, ids: Any) -> str:
        said = super().text(ids)
        return (
            '<think>a</think><tool_call>{"name": "image_search", "arguments": {"query": "flag"}}</tool_call>' + said[:0]
        )


def test_trajectories_name_their_pictures_and_survive_their_codec(policy: HubPolicy) -> None:
    files = {"bt.svg": 0, "np.svg": 1, "giraffe.svg": 2}
    eyes = Eyes(lambda file: read(f"{files[file]}.png"), 2048)
    searching = Searching(policy.model, policy.template, ("p", "t"), processor=policy.processor, eyes=eyes)
    tools = make_tools()
    shown = type(tools)(tools.search, tools.image_search, tools.knowledge, 2, 2)
    played = rollouts(searching, requests(1), 4, shown, SAMPLING, 4, system="You are an image agent.")
    with_pictures = [t for t in played if t.pictures]
    assert with_pictures
    for t in with_pictures:
        assert [p.file for p in t.pictures[:2]] == [row["file"] for row in t.tool_calls[0].result[:2]]
        assert parse(dump(t), Trajectory, "line") == t
    blind = rollouts(searching, requests(1), 1, tools, SAMPLING, 4, system="You are an image agent.")[0]
    assert not blind.pictures
    assert '"pictures"' not in dump(blind)


def test_only_models_with_eyes_are_shown_pictures(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    blind = save(tmp_path / "blind", blind_model(tokenizer), tokenizer)
    with pytest.raises(PolicyError, match="without eyes"):
        HubPolicy.load(blind, eyes=Eyes(read))
    (blind / "preprocessor_config.json").write_text("{")
    with pytest.raises(PolicyError, match="image processor cannot be read"):
        HubPolicy.load(blind, eyes=Eyes(read))
    (blind / "preprocessor_config.json").unlink()
    with pytest.raises(PolicyError, match="without eyes"):
        HubPolicy.load(blind, eyes=Eyes(read))


def test_sizes_and_transparency() -> None:
    import io

    from PIL import Image

    assert bounded(100, 50, 10_000) == (100, 50)
    assert bounded(4000, 1000, 10_000) == (200, 50)
    assert bounded(90_000, 1, 10_000) == (30_000, 1)
    out = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(out, "PNG")
    assert decode(out.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match="not a picture"):
        decode(b"<svg/>")
    with pytest.raises(ValueError):
        Picture(img_id="IMG_1", file="a", sha256="0" * 64, width=1, height=1, grid=(1, 2, 2), at=0, tokens=1)
