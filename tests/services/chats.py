"""A chat model on loopback: a real server that speaks /chat/completions, and a client of it that does not sleep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from genevolve.services.cache import CallCache
from genevolve.services.chat import Chat
from genevolve.services.client import Client
from genevolve.services.endpoint import Endpoint
from genevolve.services.patience import Patience
from tests.tools.web import Reply, Server, said

PATH = "/v1/chat/completions"


def completion(content: Any, finish: str = "stop", **more: Any) -> Reply:
    """Answer with a chat completion; what is no string is written as JSON."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    return said({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}], **more})


def thinking(answer: Callable[[list[dict[str, Any]]], Any]) -> Reply:
    """Answer each request with what `answer` makes of its messages: a Reply, or the content of a completion."""

    def reply(h: BaseHTTPRequestHandler) -> None:
        found = answer(json.loads(h.body)["messages"])  # type: ignore[attr-defined]
        (found if callable(found) else completion(found))(h)

    return reply


def text_of(message: dict[str, Any]) -> str:
    """Return the text parts of a message."""
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(p["text"] for p in content if p["type"] == "text")


def bodies(server: Server) -> list[Any]:
    """Return the JSON bodies of all requests so far."""
    return [json.loads(r[3]) for r in server.requests]


async def at_once(seconds: float) -> None:
    pass


@contextmanager
def chat_model(folder: Path, *replies: Reply, attempts: int = 2, **fields: Any) -> Iterator[tuple[Chat, Server]]:
    """Run a server that plays `replies`; give a chat with it and the server. `fields` are the endpoint's."""
    server = Server({PATH: list(replies)})
    with server.running():
        patience = Patience(attempts=attempts, attempt=fields.pop("attempt", 20.0))
        endpoint = Endpoint("judge", f"{server.url}/v1", **{"rate": 1e6, **fields})
        cache = CallCache(folder / "calls.sqlite")
        client = Client(endpoint, cache, budget=100.0, account="t", patience=patience, sleep=at_once)
        yield Chat(client, "some-model"), server
        client.write_free()
