"""Whether a profile's generator can draw, said before anything is loaded, paid or started (ours)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from genevolve.errors import SettingsError
from genevolve.settings import Settings


def check_renderer(settings: Settings, processes: int | None = None) -> None:
    """Raise SettingsError, one sentence, for a generator that cannot draw as it is set; nothing is loaded or called.

    `processes`: how many will load it; None: those that play requests.
    """
    r, loaders = settings.render, settings.sampling.workers if processes is None else processes
    if r.backend == "compositor":
        from genevolve.render.style import CANVAS

        if r.size != CANVAS:
            raise SettingsError(
                f"The compositor draws {CANVAS} pixels a side, not {r.size}; set render.size to {CANVAS}."
            )
    elif r.backend == "diffusers":
        if importlib.util.find_spec("diffusers") is None:
            raise SettingsError("render.backend 'diffusers' needs the package diffusers: install '.[gpu]'.")
        if loaders > 1:
            raise SettingsError(
                f"render.backend 'diffusers' would be loaded by each of {loaders} processes: set "
                "sampling.workers to 1, or start `genevolve serve-renderer` and set render.backend to service."
            )
        for name in ("model", "text_model"):
            if not getattr(r, name):
                raise SettingsError(
                    f"render.{name} is empty: render.backend 'diffusers' needs a model's name or folder."
                )
    elif r.backend == "service":
        from genevolve.render import service

        service.endpoints()
    else:
        from genevolve.render import gemini

        gemini.model_name(r.model)
        if gemini.endpoint(os.environ).usd_call > settings.world.budget_usd:
            raise SettingsError(
                f"world.budget_usd is {settings.world.budget_usd:g}, less than one picture of render.backend 'gemini' "
                "costs: set it to what a command may spend."
            )


def look(settings: Settings) -> Iterator[tuple[str, bool, str, str]]:
    """Yield (what, there, a line about it, what to do) for `genevolve doctor`: settings, weights, GPU, servers.

    Servers are asked for their health, never for a picture; nothing is loaded.
    """
    backend = settings.render.backend
    try:
        check_renderer(settings)
    except SettingsError as e:
        yield "generator", False, str(e), "every picture"
        return
    yield "generator", True, f"{backend} {settings.render.model}".strip(), ""
    if backend == "diffusers":
        for model in (settings.render.model, settings.render.text_model):
            where = _weights(model)
            yield (
                "generator model",
                bool(where),
                f"{model}: {where or 'not on this machine'}",
                "pictures, until it is downloaded",
            )
        yield "generator GPU", *_gpu()
    elif backend == "service":
        from genevolve.render import service

        for endpoint in service.endpoints():
            yield "renderer", *_health(endpoint.url)


def _weights(model: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    if Path(model).is_dir():
        return "a folder" if (Path(model) / "model_index.json").is_file() else ""
    return "in the Hugging Face cache" if isinstance(try_to_load_from_cache(model, "model_index.json"), str) else ""


def _gpu() -> tuple[bool, str, str]:
    import torch

    if not torch.cuda.is_available():
        return False, "none", "pictures in minutes: on the CPU one takes hours"
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    free = min(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())) / 2**30
    return True, f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, {free:.0f} GB free on the fullest", ""


def _health(url: str) -> tuple[bool, str, str]:
    """Return whether a renderer server says that it is well."""
    import httpx

    try:
        state = httpx.get(f"{url}/health", timeout=5.0, trust_env=False).json()
        well, gpus = state["status"] == "healthy", int(state["num_gpus"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False, f"{url}/health does not answer", "pictures: start `genevolve serve-renderer` there"
    return well, f"{url}: {gpus} workers, {state.get('model') or 'model not said'}", "pictures: look at its log"
