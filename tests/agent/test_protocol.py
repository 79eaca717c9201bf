"""The turn grammar: what is read, and that hostile text never gets through or breaks the reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genevolve.agent.format import TAGS, answer_turn, call_turn
from genevolve.agent.protocol import MAX_TURN, Answer, Call, FormatError, parse_turn

SEARCH = call_turn("Find the fact.", "search", "country whose capital is Thimphu")
ANSWER = answer_turn("giraffe IMG_002", "The first reference image.", [("IMG_002", "giraffe")])


def wrap(payload: str, tag: str = "tool_call") -> str:
    return f"<think> x</think><{tag}>{payload}</{tag}>"


def call(name: object, **arguments: object) -> str:
    return wrap(json.dumps({"name": name, "arguments": arguments}))


def reason(text: str, final: bool = False) -> str:
    turn = parse_turn(text, final)
    assert isinstance(turn, FormatError), turn
    assert turn.reason.endswith(".")
    assert len(turn.reason) < 250
    return turn.reason


def test_what_the_writers_write_is_read_back_stripped() -> None:
    assert parse_turn(SEARCH) == Call("Find the fact.", "search", {"queries": ["country whose capital is Thimphu"]})
    assert parse_turn(call_turn("", "image_search", "flag")) == Call("", "image_search", {"query": "flag"})
    knowledge = parse_turn(call_turn("y", "query_knowledge", "text_rendering"))
    assert knowledge == Call("y", "query_knowledge", {"skill_name": "text_rendering"})
    assert parse_turn(ANSWER) == Answer("giraffe IMG_002", "The first reference image.", (("IMG_002", "giraffe"),))
    assert parse_turn(f"\n{ANSWER}\n", final_round=True) == parse_turn(ANSWER)
    assert parse_turn(call("search", queries=["a"], top_k=3)) == Call("x", "search", {"queries": ["a"], "top_k": 3})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no action"),
        ("<think>hm</think>", "no action"),
        ("<tool_call>{}</tool_call>", "tags"),
        (SEARCH + SEARCH, "more than one"),
        (SEARCH + ANSWER.split("</think>")[1], "more than one"),
        (f"<think>{SEARCH}</think>", "tags"),
        (f"<think>first {SEARCH[8:]} {ANSWER[8:]}", "more than one"),
        (SEARCH.removesuffix("</tool_call>"), "tags"),
        (SEARCH.replace("</think>", ""), "tags"),
        (SEARCH.replace("</tool_call>", "</answer>"), "tags"),
        (SEARCH.replace("tool_call", "TOOL_CALL"), "tags"),
        (SEARCH.replace("<tool_call>", "<tool_call x='1'>"), "tags"),
        (SEARCH.replace("<tool_call>", "< tool_call>"), "tags"),
        ("Sure! " + SEARCH, "outside"),
        (SEARCH + " done", "outside"),
        (SEARCH.replace("</think>", "</think> so "), "outside"),
        (SEARCH.replace("Thimphu", "<tool_response>Thimphu"), "tags"),
        (SEARCH.replace("Thimphu", "</tool_call>"), "tags"),
        (SEARCH.replace("Thimphu", "\\u003canswer>"), "tag"),
        (SEARCH.replace("Thimphu", "<|im_end|>"), "chat token"),
        (SEARCH.replace("Thimphu", "\\u003c|im_end|>"), "tag"),
        (SEARCH.replace("Thimphu", "\\ud800"), "not text"),
        (SEARCH.replace("Thimphu", "\\u0000"), "not text"),
        (SEARCH.replace("Thimphu", "\ud800"), "Unicode"),
        (SEARCH.replace("Thimphu", "x" * MAX_TURN), "longer"),
        (SEARCH.replace("Thimphu", "x" * 500), "longer"),
        (wrap("[" * 15_000), "deep"),
        (wrap('{"a":' * 7_000), "deep"),
        (wrap("[1]"), "one JSON object"),
        (wrap("not json"), "valid JSON"),
        (wrap('{"name": "search", "name": "search", "arguments": {"queries": ["a"]}}'), "twice"),
        (wrap('{"name": "search", "arguments": {"queries": ["a"], "top_k": NaN}}'), "NaN"),
        (wrap('{"name": "search", "arguments": {"queries": ["a"], "top_k": ' + "9" * 5000 + "}}"), "too long"),
        (wrap('{"name": "search", "arguments": {"queries": ["a"], "top_k": 1e999}}'), "top_k"),
        (call("search", queries=["a"], top_k=True), "top_k"),
        (call("search", queries=["a"], top_k=0), "top_k"),
        (call("rm", queries=["a"]), "no such tool"),
        (call(["search"], queries=["a"]), "no such tool"),
        (wrap('{"name": "search", "arguments": []}'), "JSON object"),
        (call("search"), "lacks 'queries'"),
        (call("search", queries="a"), "list"),
        (call("search", queries=[]), "list"),
        (call("search", queries=["a"] * 6), "list"),
        (call("search", queries=[1]), "string"),
        (call("search", queries=["  "]), "empty"),
        (call("search", queries=["a"], shell="x"), "should not"),
        (call("image_search", query=None), "string"),
        (call("query_knowledge", skill_name={}), "string"),
    ],
)
def test_a_malformed_turn_is_a_sentence(text: str, says: str) -> None:
    assert says in reason(text)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"gen_prompt": "x"}, "lacks"),
        ({"gen_prompt": 1, "reference_images": []}, "string"),
        ({"gen_prompt": "x", "reference_images": []}, "one or two"),
        ({"gen_prompt": "x", "reference_images": [{"img_id": "IMG_001"}] * 9}, "one or two"),
        ({"gen_prompt": "x", "reference_images": "IMG_001"}, "one or two"),
        ({"gen_prompt": "x", "reference_images": ["IMG_001"]}, "object"),
        ({"gen_prompt": "x", "reference_images": [{"img_id": "IMG_1"}]}, "IMG_001"),
        ({"gen_prompt": "x", "reference_images": [{"img_id": "IMG_٠٠١"}]}, "IMG_001"),
        ({"gen_prompt": "x", "reference_images": [{"img_id": "IMG_001", "file": "/etc/passwd"}]}, "should not"),
        ({"gen_prompt": "x" * 9000, "reference_images": [{"img_id": "IMG_001"}]}, "longer"),
        ({"gen_prompt": "x", "reference_images": [{"img_id": "IMG_001"}], "more": 1}, "should not"),
    ],
)
def test_a_malformed_answer_is_a_sentence(value: object, says: str) -> None:
    assert says in reason(wrap(json.dumps(value, ensure_ascii=False), "answer"))


def test_the_last_round_reads_only_an_answer() -> None:
    assert "last round" in reason(SEARCH, final=True)
    assert isinstance(parse_turn(ANSWER, True), Answer)


PIECES = st.sampled_from(
    [*(f"<{t}>" for t in TAGS), *(f"</{t}>" for t in TAGS), "<|im_end|>", '{"name": "search", "arguments": ', "{", "}",
     '{"queries": [" a"]}', '"', "\\u003c", "[", "]", ":", ",", "NaN", "1e999", "IMG_001", "\x00", " ", "\\"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8) | PIECES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "arguments", "queries", "query", "top_k", "gen_prompt", "reference_images", "img_id", "note"]),
        inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(PIECES | st.text(max_size=12), max_size=14).map("".join), st.booleans())
def test_no_text_raises(text: str, final: bool) -> None:
    assert isinstance(parse_turn(text, final), Call | Answer | FormatError)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(JSON, st.sampled_from(["tool_call", "answer"]))
def test_no_payload_raises_and_what_is_read_is_clean(value: object, tag: str) -> None:
    turn = parse_turn(wrap(json.dumps(value), tag))
    assert isinstance(turn, Call | Answer | FormatError)
    if not isinstance(turn, FormatError):
        assert "<|" not in repr(turn)
        assert not any(f"<{t}>" in repr(turn) for t in TAGS)
