"""`genevolve serve-renderer`: a profile's generator behind HTTP, one process per GPU."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from genevolve.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from genevolve.settings import Settings

KEY = "GENEVOLVE_RENDER_KEY"
"""The bearer token; client and server read the same variable."""


def run(settings: Settings, *, host: str, port: int, gpus: int | None, queue: int, say: Callable[[str], None]) -> None:
    """Load the generator once per GPU (`gpus` of them; None: all), then serve until SIGINT or SIGTERM.

    Raises SettingsError for a generator that is a service itself, RenderError for one that does not load.
    """
    from genevolve.render.ready import check_renderer
    from genevolve.render.server import Limits, make_app, server, start_all
    from genevolve.render.worker import Worker
    from genevolve.services.endpoint import key_of
    from genevolve.stages.backends import make_renderer

    backend = settings.render.backend
    if backend not in ("compositor", "diffusers"):
        raise SettingsError(
            f"render.backend '{backend}' draws elsewhere and cannot be served: set it to diffusers, or to compositor."
        )
    check_renderer(settings, processes=1)
    token = key_of(os.environ, KEY)
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        say(f"warning: whoever reaches {host}:{port} can use this generator; set {KEY} to ask for a bearer token")
    devices = _devices(backend, gpus)
    workers = [Worker(partial(make_renderer, settings, device)) for device in devices]
    say(f"loading {backend} {settings.render.model} for {', '.join(devices)} ...")
    start_all(workers)
    limits = Limits(queue=queue)
    app = make_app(workers, model=settings.render.model or backend, token=token, limits=limits)
    with suppress(KeyboardInterrupt):
        server(app, host, port, limits, lambda bound: say(f"ready: http://{host}:{bound}/generate")).run()


def _devices(backend: str, gpus: int | None) -> list[str]:
    """Return where to draw: the first `gpus` GPUs, or so many processes on the CPU for what needs no GPU."""
    if backend != "diffusers":
        return ["cpu"] * (gpus or 1)
    import torch

    found = torch.cuda.device_count()
    if gpus is not None and gpus > max(found, 1):
        raise SettingsError(f"--gpus {gpus}: this machine has {found}.")
    return [f"cuda:{i}" for i in range(gpus or found)] if found else ["cpu"]
