"""Whatever stands in a fence stays in it, and is the same for who reads JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from genevolve.services.fence import fenced, literal

HOSTILE = st.text() | st.text(alphabet='</>"\\request|im_end \n\u202e\ud800\U0001f600')
VALUES = HOSTILE | st.lists(HOSTILE, max_size=3) | st.dictionaries(st.just("gen_prompt"), HOSTILE)


@given(VALUES)
def test_nothing_ends_the_fence_and_nothing_is_lost(value: Any) -> None:
    text = fenced("request", value)
    assert text.count("<") == text.count(">") == 2
    inside = text.removeprefix("<request>\n").removesuffix("\n</request>")
    assert json.loads(inside) == value
    assert all(c == "\n" or c.isprintable() for c in inside)


def test_a_text_is_one_line() -> None:
    assert literal("a\nb <b>\U000e0041") == '"a\\nb \\u003cb\\u003e\\udb40\\udc41"'
