"""Text of strangers inside a prompt: it can neither end its fence nor be read as a chat token (ours)."""

from __future__ import annotations

import json
from typing import Any


def fenced(tag: str, value: Any) -> str:
    """Return a JSON value between <tag> and </tag>, for a reader who is told that what stands there is data."""
    return f"<{tag}>\n{literal(value)}\n</{tag}>"


def literal(value: Any) -> str:
    """Return JSON that holds no angle bracket and nothing unprintable but line ends of its own layout.

    `<` and `>` are written as escapes, and so no tag, no `<|im_end|>` and no `</s>` can be part of a text; lettering
    is kept letter by letter, since JSON gives the escapes back.
    """
    text = json.dumps(value, ensure_ascii=False, indent=1 if isinstance(value, (dict, list)) else None)
    return "".join(c if c == "\n" or (c.isprintable() and c not in "<>") else _escape(c) for c in text)


def _escape(c: str) -> str:
    n = ord(c)
    if n < 0x10000:
        return f"\\u{n:04x}"
    return f"\\u{0xD800 + (n - 0x10000 >> 10):04x}\\u{0xDC00 + (n - 0x10000 & 0x3FF):04x}"
