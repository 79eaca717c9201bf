"""The generator behind `POST /generate`: our renderer server (`server.py`), or one of the releases' (method.md, section 1).

Several servers take turns; one that does not answer is passed over for a minute, and the program goes to the next.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve.errors import SettingsError
from genevolve.render.base import RenderJob, noise_seed
from genevolve.render.diffusers import NEGATIVE
from genevolve.render.pictures import Sent, output_size
from genevolve.render.remote import Body, Kept, picture_of
from genevolve.services.client import BadAnswer, CallError, Client, Paid
from genevolve.services.endpoint import Endpoint
from genevolve.services.patience import Patience

NAME = "render"
URL = "GENEVOLVE_RENDER_URL"
"""One URL, or several with commas between them; GENEVOLVE_RENDER_KEY is the bearer token of all of them."""
PATIENCE = Patience(attempts=8, attempt=900, total=3600, first_wait=1, longest_wait=60)
"""A picture takes a minute and may wait for others; a server that starts anew loads its model for some minutes."""
REST = 60.0
"""Seconds for which a server that did not answer is passed over while another one is there."""


def endpoints(environment: Mapping[str, str] | None = None) -> list[Endpoint]:
    """Return the servers the environment names; raise SettingsError, one sentence, for what is missing or wrong."""
    values = dict(os.environ if environment is None else environment)
    urls = [part.strip() for part in values.get(URL, "").split(",") if part.strip()]
    if not urls:
        raise SettingsError(
            f"{URL} is not set: render.backend 'service' needs the address of a renderer server, "
            "e.g. http://127.0.0.1:8001 (several with commas between them); `genevolve serve-renderer` is one."
        )
    return [Endpoint.from_environment(NAME, environment={**values, URL: url}) for url in urls]


class Service:
    """A Renderer for all threads of a process."""

    def __init__(
        self,
        clients: Sequence[Client],
        folder: Path,
        *,
        model: str = "",
        size: int = 1024,
        steps: int = 40,
        true_cfg: float = 4.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`folder` keeps the pictures; `model` tells them apart where servers draw with another model than before."""
        self.clients, self.size, self.steps, self.true_cfg = list(clients), size, steps, true_cfg
        self._beside = {"model": model}
        self._kept = Kept(folder, NAME, self._body, self._ask, self.clients[0].cache)
        self._clock = clock
        self._next = 0
        self._resting = [0.0] * len(self.clients)
        """until when; times of `clock`"""

    def render(self, jobs: Sequence[RenderJob]) -> list[bytes | None]:
        """Return one PNG per job, None where no server drew it; raise ServiceError for a key or an address that is wrong."""
        return self._kept.render(jobs, self._beside)

    def _body(self, job: RenderJob, references: Sequence[Sent]) -> Body:
        width, height = output_size(references[0].size if references else None, self.size)
        uris = [f"data:{r.kind};base64,{base64.b64encode(r.data).decode()}" for r in references]
        return {
            "prompt": job.gen_prompt,
            "image_urls": uris,
            "seed": noise_seed(job),
            "num_inference_steps": self.steps,
            "true_cfg_scale": self.true_cfg,
            "negative_prompt": NEGATIVE,
            "num_images_per_prompt": 1,
            "width": width,
            "height": height,
            # For our own server: what `seed` was made of, as the compositor guesses from the two.
            "request_id": job.request_id,
            "run_seed": job.seed,
        }

    async def _ask(self, body: Body) -> bytes | None:
        order = self._order()
        for position, i in enumerate(order):
            try:
                return await self.clients[i].ask("/generate", body, _read)  # type: ignore[no-any-return]
            except CallError as e:
                if "does not answer" not in e.reason:
                    raise  # a refusal of this program: another server would say the same
                self._resting[i] = self._clock() + REST
                if position + 1 == len(order):
                    raise
        return None

    def _order(self) -> list[int]:
        """Return the servers, the next one in turn first, those that rest last."""
        count, now = len(self.clients), self._clock()
        self._next = (self._next + 1) % count
        turn = [(self._next + i) % count for i in range(count)]
        return sorted(turn, key=lambda i: self._resting[i] > now)


def _read(answer: Any) -> Paid:
    if not isinstance(answer, dict) or not isinstance(answer.get("success"), bool):
        raise BadAnswer("wrong form")
    if not answer["success"]:  # this program cannot be drawn: asking again would cost the same picture
        return Paid(None)
    return Paid(picture_of(answer.get("image", answer.get("image_base64"))))
