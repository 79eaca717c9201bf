"""A chat server is asked for one JSON object, told what was wrong, and paid by what it counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from genevolve.services import loop
from genevolve.services.cache import CallCache
from genevolve.services.chat import Ask, Chat, found_object, found_objects, system, user
from genevolve.services.client import CallError, Client
from genevolve.services.endpoint import Endpoint
from genevolve.services.patience import Patience
from tests.tools.web import Reply, Server, picture, said


class Verdict(BaseModel):
    rationale: str
    score: Literal[0, 1]


def answer(content: Any, finish: str = "stop", **more: Any) -> Reply:
    return said({"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish}], **more})


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Any]:
    server = Server({})
    with server.running():

        async def at_once(seconds: float) -> None:
            pass

        endpoint = Endpoint("judge", f"{server.url}/v1", rate=1e6, usd_in=1.0, usd_out=2.0)
        patience = Patience(attempts=2)
        client = Client(endpoint, CallCache(tmp_path / "c"), budget=1.0, account="", patience=patience, sleep=at_once)

        def start(*replies: Reply) -> tuple[Chat, Server]:
            server.script["/v1/chat/completions"] = list(replies)
            return Chat(client, "some-model"), server

        yield start


GOOD = '{"rationale": "a } in it", "score": 1}'


def test_an_object_comes_with_its_raw_answer_and_its_price(play: Any) -> None:
    chat, server = play(
        answer(f"Thinking.\n```json\n{GOOD}\n```", usage={"prompt_tokens": 1000, "completion_tokens": 500})
    )
    ask = Ask((system("Judge."), user("Now.", [("Image 1:", picture()), ("Image 2:", picture("JPEG"))])), max_tokens=50)
    for _ in range(2):
        found, raw = loop.run(chat.object(ask, Verdict, family="judge"))
        assert (found.score, GOOD in raw) == (1, True)
    assert len(server.requests) == 1
    body = json.loads(server.requests[0][3])
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0.0, 50)
    kinds = [p["type"] for p in body["messages"][1]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    assert body["messages"][1]["content"][3]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    spent = chat.client.cache.spent("judge")
    assert (spent.tokens, round(spent.cost, 6)) == (1500, 0.002)


def test_a_wrong_answer_is_sent_back_with_what_was_wrong(play: Any) -> None:
    chat, server = play(answer('{"rationale": "x", "score": 7}'), answer("No idea."), answer(GOOD))
    found, _ = loop.run(chat.object(Ask((user("Now."),)), Verdict, family="judge"))
    assert found.score == 1
    bodies = [json.loads(r[3])["messages"] for r in server.requests]
    assert [len(b) for b in bodies] == [1, 3, 3]
    assert "field 'score'" in bodies[1][2]["content"]
    assert "no whole JSON object" in bodies[2][2]["content"]


@pytest.mark.parametrize(
    "bad", [said({}), said({"choices": []}), said([1]), answer(None), answer(" "), answer(GOOD, "length"), answer("no")]
)
def test_no_usable_answer_is_a_missing_sample_and_not_kept(play: Any, bad: Reply) -> None:
    chat, _ = play(bad)
    with pytest.raises(CallError):
        loop.run(chat.object(Ask((user("Now."),)), Verdict, family="judge", tries=2))
    chat, _ = play(answer(GOOD))
    if not chat.client.cache.spent().tokens:
        assert loop.run(chat.object(Ask((user("Now."),)), Verdict, family="judge"))[0].score == 1


@pytest.mark.parametrize(
    "text",
    [
        "{'rationale': 'x', 'score': 1}",
        '{"rationale": "x", "score": 1,}',
        '{rationale: "x", score: 1}',
        '{"rationale": "two\nlines", "score": 1}',
    ],
)
def test_slips_of_the_pen_are_repaired(text: str) -> None:
    assert Verdict.model_validate(found_object(f"So: {text} Done.")).score == 1


def test_the_last_object_counts_and_a_cut_one_is_not_completed() -> None:
    assert found_object('First {"score": 0}, then {"score": 1}.') == {"score": 1}
    with pytest.raises(ValueError, match="no whole JSON object"):
        found_object('{"rationale": "x", "score": 1')


@given(st.text() | st.text(alphabet='{}[]":, \\n01ab'))
def test_any_text_gives_an_object_or_a_sentence(text: str) -> None:
    try:
        found: Any = found_object(text)
    except ValueError as e:
        found = {"sentence": str(e)}
    assert isinstance(found, dict)


def test_what_a_thought_drafted_does_not_count() -> None:
    assert found_objects('<think>{"score": 0}</think>So: {"score": 1}') == [{"score": 1}]
    assert found_object('{"score": 0}</think> nothing more') == {"score": 0}, "where nothing stands behind the thought"
    quoted = '{"rationale": "it says </think> {x} to me", "score": 1}'
    assert found_object(quoted)["score"] == 1, "a quotation ends no thought"


def test_a_check_refuses_and_every_answer_is_heard(play: Any) -> None:
    chat, server = play(answer(GOOD), answer('{"rationale": "again", "score": 0}'))
    heard: list[str] = []

    def check(verdict: Verdict, raw: str) -> None:
        if verdict.score:
            raise ValueError("too kind")

    found, raw = loop.run(chat.object(Ask((user("Now."),)), Verdict, check=check, heard=heard))
    assert (found.score, heard) == (0, [GOOD, raw])
    assert "too kind" in json.loads(server.requests[1][3])["messages"][2]["content"]
    heard.clear()
    chat, _ = play(answer(GOOD))
    with pytest.raises(CallError, match="too kind"):
        loop.run(chat.object(Ask((user("Now."),)), Verdict, check=check, heard=heard, tries=2))
    assert heard == [GOOD, GOOD]


@pytest.mark.parametrize("content", ["{", None])
def test_an_answer_cut_at_its_most_tokens_is_heard_kept_and_not_paid_again(play: Any, content: Any) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 500}
    chat, server = play(answer(content, "length", usage=usage))
    for _ in range(2):  # the second is another command: it finds the answer in the file
        heard: list[str] = []
        with pytest.raises(CallError, match="cut at its most tokens"):
            loop.run(chat.object(Ask((user("Now."),)), Verdict, family="judge", heard=heard))
        assert heard == [content or ""]
    assert len(server.requests) == 1
    assert round(chat.client.cache.spent("judge").cost, 6) == 0.002
    with pytest.raises(CallError, match="cut at its most tokens"):
        loop.run(chat.text(Ask((user("Now."),))))


@pytest.mark.parametrize(
    ("text", "images", "least"),
    [
        ("abc" * 100, [], 100),
        ("画一只猫" * 100, [], 400),
        ("дом" * 100, [], 300),
        ("🐈" * 300, [], 400),
        ("\ud800", [], 1),
        ("", [picture()], 1600),
        ("", [picture(size=(1400, 1400))], 2500),
        ("", [picture("WEBP", size=(1401, 1400)), picture("JPEG", size=(1400, 1401))], 5100),
        ("", [picture(size=(5000, 5000))], 16384),
        ("", [b"\x89PNG\r\n\x1a\n" + b"\xff" * 50], 16384),
    ],
)
def test_what_is_reserved_is_the_most_that_texts_and_pictures_may_take(
    play: Any, text: str, images: list[bytes], least: int
) -> None:
    chat, _ = play(answer("yes"))  # it says no usage: what was reserved counts
    loop.run(chat.text(Ask((user(text, [("", i) for i in images]),), max_tokens=50)))
    assert chat.client.cache.spent().tokens == 50 + 8 + least


def test_a_field_of_the_body_can_be_taken_out(play: Any) -> None:
    chat, server = play(answer("yes"))
    ask = Ask((user("Now."),), extra={"max_tokens": None, "max_completion_tokens": 50, "seed": 1})
    loop.run(chat.text(ask))
    body = json.loads(server.requests[0][3])
    assert ("max_tokens" in body, body["max_completion_tokens"], body["seed"]) == (False, 50, 1)
