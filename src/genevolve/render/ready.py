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
        largest = 0.0
        for model in (settings.render.model, settings.render.text_model):
            where, weights = _weights(model)
            largest = max(largest, weights)
            said = f"{model}: {where}, {weights:.1f} GB" if where else f"{model}: not on this machine"
            yield "generator model", bool(where), said, f"pictures, until it is downloaded: `hf download {model}`"
        yield "generator GPU", *_gpu(largest)
    elif backend == "service":
        from genevolve.render import service

        for endpoint in service.endpoints():
            yield "renderer", *_health(endpoint.url)


def _weights(model: str) -> tuple[str, float]:
    """Return where a pipeline's files are, empty where they are not, and the gigabytes (1e9) of their weights."""
    from huggingface_hub import try_to_load_from_cache

    folder, where = Path(model), "a folder"
    if not folder.is_dir():
        index = try_to_load_from_cache(model, "model_index.json")
        folder, where = Path(index).parent if isinstance(index, str) else Path(), "in the Hugging Face cache"
    if folder == Path() or not (folder / "model_index.json").is_file():
        return "", 0.0
    return where, sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e9


def gpus() -> tuple[int, str, float]:
    """Return how many GPUs PyTorch sees, their names, and the gigabytes (1e9) that are free on the fullest one."""
    import torch

    if not torch.cuda.is_available():
        return 0, "", 0.0
    places = range(torch.cuda.device_count())
    names = {torch.cuda.get_device_name(i) for i in places}
    return len(places), ", ".join(sorted(names)), min(torch.cuda.mem_get_info(i)[0] for i in places) / 1e9


def _gpu(weights: float) -> tuple[bool, str, str]:
    found, names, free = gpus()
    if not found:
        return False, "none", "pictures in minutes: on the CPU one takes hours"
    said = f"{found} x {names}, {free:.0f} GB free on the fullest; one pipeline takes {weights:.0f} and room to draw"
    return (
        free > weights,
        said,
        "pictures: show it an emptier GPU (CUDA_VISIBLE_DEVICES), or set render.backend to service",
    )


def _health(url: str) -> tuple[bool, str, str]:
    """Return whether a renderer server says that it is well."""
    import httpx

    try:
        state = httpx.get(f"{url}/health", timeout=5.0, trust_env=False).json()
        well, gpus = state["status"] == "healthy", int(state["num_gpus"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False, f"{url}/health does not answer", "pictures: start `genevolve serve-renderer` there"
    return well, f"{url}: {gpus} workers, {state.get('model') or 'model not said'}", "pictures: look at its log"
