"""Chat completions of an OpenAI-compatible server: a text, or one JSON object of a promised form (ours).

POST {url}/chat/completions with `model`, `messages`, `temperature`, `max_tokens`; pictures as data URLs. The shape is the
common core of OpenAI, vLLM, SGLang and Gemini's compatible end point.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from genevolve.services.client import BadAnswer, CallError, Client, DataUrl, Paid

M = TypeVar("M", bound=BaseModel)
PATCH = 28
"""Side in pixels of what counts as one token of a picture: Qwen-VL's patches; Qwen3-VL's and Gemini's are larger."""
LEAST_IMAGE, MOST_IMAGE = 1600, 16384
"""Tokens reserved for a picture at least, as some vendors count small ones as large, and at most (Qwen-VL's own limit)."""
CUT = "cut"
"""The one field of what is kept of a cut answer; of a whole one only its text is kept."""
RAW = 100_000
"""Most characters of an answer that are read."""


class CutError(CallError):
    """The answer ended at its most tokens. It was paid and is kept: asked again, it would be cut again, for money."""

    def __init__(self, text: str) -> None:
        super().__init__("the answer was cut at its most tokens")
        self.text = text


@dataclass(frozen=True)
class Ask:
    """One question: what is said, in order, and how the answer is drawn."""

    messages: tuple[dict[str, Any], ...]
    temperature: float = 0.0
    max_tokens: int = 4096
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the body (`seed`, `response_format`, `reasoning_effort`); None takes one out."""


def user(text: str, images: Sequence[tuple[str, bytes]] = ()) -> dict[str, Any]:
    """Return a user message; each picture (PNG, JPEG or WebP bytes) stands behind its caption, before the text."""
    if not images:
        return {"role": "user", "content": text}
    parts: list[dict[str, Any]] = []
    for caption, data in images:
        url = DataUrl(data, _media_type(data))
        parts += [{"type": "text", "text": caption}, {"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


class Chat:
    """One model of a server."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model

    async def text(self, ask: Ask, *, family: str = "") -> str:
        """Return the answer's text; the same question of a `family` is paid once. Raises CutError, and as `Client.ask`."""
        body = {"model": self.model, "messages": list(ask.messages), "temperature": ask.temperature}
        body |= {"max_tokens": ask.max_tokens, **ask.extra}
        body = {k: v for k, v in body.items() if v is not None}
        size = sum(message_size(m["content"]) for m in ask.messages)

        def read(value: Any) -> Paid:
            tokens_in, tokens_out = _usage(value, size, ask.max_tokens)
            return Paid(_answer(value), tokens_in + tokens_out, self.client.endpoint.cost(tokens_in, tokens_out))

        how: dict[str, Any] = {"family": family, "tokens_in": size, "tokens_out": ask.max_tokens}
        found = await self.client.ask("/chat/completions", body, read, **how)
        if isinstance(found, dict):
            raise CutError(found[CUT])
        return str(found)

    async def object(
        self,
        ask: Ask,
        form: type[M],
        *,
        family: str = "",
        tries: int = 3,
        check: Callable[[M, str], None] | None = None,
        heard: list[str] | None = None,
    ) -> tuple[M, str]:
        """Return (the JSON object in the answer as a `form`, the raw answer).

        An answer that is no such object, repaired where only its JSON is broken, or that `check` (of the object and the raw
        answer) refuses with a ValueError, is sent back with what was wrong, `tries` questions in all. Every raw answer is
        put into `heard`, also of a question that fails. Raises CallError when none can be used, and as `Client.ask`.
        """
        said: list[dict[str, Any]] = []
        wrong = ""
        for _ in range(tries):
            asked = Ask((*ask.messages, *said), ask.temperature, ask.max_tokens, ask.extra)
            try:
                raw = await self.text(asked, family=family)
            except CutError as e:
                if heard is not None:
                    heard.append(e.text)
                raise
            if heard is not None:
                heard.append(raw)
            try:
                found = form.model_validate(found_object(raw))
                if check is not None:
                    check(found, raw)
                return found, raw
            except (ValueError, ValidationError) as e:
                wrong = _what_is_wrong(e)
            said = [
                {"role": "assistant", "content": raw[:2000]},
                {"role": "user", "content": f"This cannot be used: {wrong}. Answer again with the JSON object alone."},
            ]
        raise CallError(f"no usable JSON in {tries} answers ({wrong})")


THOUGHT_ENDS = "</think>"
"""What some served models write before it is not their answer."""


def found_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text: alone, in a code fence or between other words; slips of the pen are repaired.

    Raises ValueError where there is none. Of several objects the last counts: models think before they answer.
    """
    from json_repair import repair_json

    found = found_objects(text)
    if found:
        return found[-1]
    text = text[-RAW:]
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError("there is no whole JSON object")  # a cut one is not completed: its rest would be invented
    value = repair_json(text[start : end + 1], return_objects=True)
    if not isinstance(value, dict) or not value:
        raise ValueError("there is no JSON object")
    return value


def found_objects(text: str) -> list[dict[str, Any]]:
    """Return the whole JSON objects that stand in a text one after the other; where a thought has ended with objects
    behind it, only those."""
    text = text[-RAW:]
    behind = text.rpartition(THOUGHT_ENDS)[2]
    return _objects(behind) or _objects(text)


def _objects(text: str) -> list[dict[str, Any]]:
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1) if found else -1
            continue
        found.append(value)
        at = text.find("{", end)
    return found


def _what_is_wrong(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"field '{'.'.join(map(str, first['loc']))}': {first['msg']}"
    return str(error)


def _answer(value: Any) -> str | dict[str, str]:
    """Return the text of a completion, {CUT: text} for one that is cut; raise BadAnswer for another form or an empty one."""
    try:
        choice = value["choices"][0]
        content = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise BadAnswer("wrong form") from None
    if isinstance(content, list):  # some servers answer in parts
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    text = content if isinstance(content, str) else ""
    if choice.get("finish_reason") == "length":  # before the next: a model may spend all its tokens on thoughts
        return {CUT: text}
    if not text.strip():
        raise BadAnswer("empty answer")
    return text


def _usage(value: Any, size: int, most: int) -> tuple[int, int]:
    """Return (prompt, answer) tokens as the server counted them; what was reserved where it did not."""
    usage = value.get("usage") if isinstance(value, dict) else None
    counts = [usage.get(k) if isinstance(usage, dict) else None for k in ("prompt_tokens", "completion_tokens")]
    first, second = (c if isinstance(c, int) and 0 <= c < 10**9 else None for c in counts)
    return size if first is None else first, most if second is None else second


def message_size(content: str | list[dict[str, Any]]) -> int:
    """Return a high guess of a message's tokens, which is reserved in budget and token rate."""
    if isinstance(content, str):
        return _text_size(content) + 8
    parts = (_text_size(p["text"]) if p["type"] == "text" else _image_size(p["image_url"]["url"].data) for p in content)
    return sum(parts) + 8


def _text_size(text: str) -> int:
    """Return a token for three ASCII characters and one for every other character, or for three bytes of UTF-8 if that is more."""
    if text.isascii():
        return -(-len(text) // 3)
    ascii_size = len(text.encode("ascii", "ignore"))
    return max(-(-ascii_size // 3) + len(text) - ascii_size, -(-len(text.encode("utf-8", "surrogatepass")) // 3))


def _image_size(data: bytes) -> int:
    """Return a token for each PATCH x PATCH pixels, within LEAST_IMAGE and MOST_IMAGE; MOST_IMAGE for what is no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:  # its header alone is read
            width, height = image.size
    except Exception:  # a decoder fed with hostile bytes may raise anything
        return MOST_IMAGE
    return min(MOST_IMAGE, max(LEAST_IMAGE, -(-width // PATCH) * -(-height // PATCH)))


def _media_type(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "image/png"
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise CallError("a picture that is no PNG, JPEG or WebP")
