"""The paper's strong generator: a Gemini image model over its REST API, `POST {url}/models/{model}:generateContent`.

The prompt and the references go in as the parts of one user turn (`text`, `inline_data`), the picture comes back as the first
part with inline data. The key travels in a header, never in an address. The API offers no seed for pictures: the run seed only
tells kept pictures apart.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve.errors import SettingsError
from genevolve.render.base import RenderJob
from genevolve.render.pictures import Sent
from genevolve.render.remote import Body, Kept, picture_of
from genevolve.services.client import BadAnswer, CallError, Client, Paid
from genevolve.services.endpoint import Endpoint, ServiceError
from genevolve.services.patience import Patience

NAME = "gemini"
MODEL = "gemini-3-pro-image-preview"
"""The model of the release's strong setting. [R]"""
BASE = "https://generativelanguage.googleapis.com/v1beta"
KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
"""The vendor's own variables, read in this order where GENEVOLVE_GEMINI_KEY is not set."""
USD_CALL = 0.134
"""Dollars a picture of 1K or 2K by that model, as its price list said in late 2025; GENEVOLVE_GEMINI_USD_CALL sets another."""
PATIENCE = Patience(attempts=6, attempt=300, total=1200, first_wait=2, longest_wait=60)
REFUSED = frozenset({"SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "RECITATION", "SPII", "NO_IMAGE"})
"""Reasons (also with IMAGE_ before them) for which the same program is refused again."""


def endpoint(environment: Mapping[str, str]) -> Endpoint:
    """Return where the API is; raise SettingsError, one sentence, without a key."""
    key = next((name for name in KEYS if environment.get(name, "").strip()), KEYS[0])
    found = Endpoint.from_environment(
        NAME, url=BASE, key=key, header="x-goog-api-key", usd_call=USD_CALL, environment=environment
    )
    if found.key is None:
        raise SettingsError(
            f"{KEYS[0]} is not set: render.backend 'gemini' needs the key of the Gemini API ({KEYS[1]} is read, too)."
        )
    return found


def model_name(model: str) -> str:
    """Return the model to ask for, the default for ''; raise SettingsError for what is no name of this API."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,80}", model or MODEL):
        raise SettingsError(f"render.model '{model}' is no Gemini model: set render.model to {MODEL}, or to ''.")
    return model or MODEL


class Gemini:
    """A Renderer for all threads of a process."""

    def __init__(self, client: Client, folder: Path, *, model: str = "") -> None:
        """`folder` keeps the pictures that were paid for."""
        self.client, self.model = client, model_name(model)
        self._kept = Kept(folder, NAME, _body, self._ask, client.cache)

    def render(self, jobs: Sequence[RenderJob]) -> list[bytes | None]:
        """Return one PNG per job, None where it was refused or failed; raise ServiceError and BudgetError."""
        return self._kept.render(jobs, {"model": self.model})

    async def _ask(self, body: Body) -> bytes | None:
        try:
            return await self.client.ask(f"/models/{self.model}:generateContent", body, _read)  # type: ignore[no-any-return]
        except CallError as e:
            if "HTTP 400" in e.reason and re.search(r"api key", e.reason, re.IGNORECASE):  # so this API refuses a key
                raise ServiceError(f"The gemini service refused the key: check {KEYS[0]}. ({e.reason})") from None
            raise


def _body(job: RenderJob, references: Sequence[Sent]) -> Body:
    parts: list[Body] = [{"text": job.gen_prompt}]
    parts += [{"inline_data": {"mime_type": r.kind, "data": base64.b64encode(r.data).decode()}} for r in references]
    return {
        "contents": [{"role": "user", "parts": parts}],
        "generationConfig": {"responseModalities": ["TEXT", "IMAGE"]},
    }


def _read(answer: Any) -> Paid:
    """Return the first picture of an answer as a PNG, or None where the model refused; raise BadAnswer."""
    if not isinstance(answer, dict):
        raise BadAnswer("wrong form")
    usage = answer.get("usageMetadata")
    tokens = usage.get("totalTokenCount", 0) if isinstance(usage, dict) else 0
    count = tokens if isinstance(tokens, int) and 0 <= tokens < 10**9 else 0
    feedback = answer.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        return Paid(None, tokens=count, cost=0.0)
    candidates = answer.get("candidates")
    if not isinstance(candidates, list):
        raise BadAnswer("wrong form")
    for candidate in filter(lambda c: isinstance(c, dict), candidates):
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in filter(lambda p: isinstance(p, dict), parts if isinstance(parts, list) else []):
            inline = part.get("inlineData", part.get("inline_data"))
            if isinstance(inline, dict) and not part.get("thought"):
                return Paid(picture_of(inline.get("data")), tokens=count)
        if str(candidate.get("finishReason", "")).removeprefix("IMAGE_") in REFUSED:
            return Paid(None, tokens=count, cost=0.0)
    raise BadAnswer("no picture")
