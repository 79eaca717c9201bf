"""Whether the machine has the GPUs and the disk that a profile takes: estimates of docs/gpu.md."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genevolve.doctor.finding import Finding
from genevolve.doctor.profile import in_cache
from genevolve.errors import GenEvolveError
from genevolve.profiles import load
from genevolve.settings import Settings

NEEDED_GB = 3.0
"""Free disk (1e9 bytes) a cycle of the embedded profile may take: stage folders, DVC's cache of them, MLflow's artifacts."""
PICTURES_OF_SEARCH, FOUND_GB, DRAWN_GB = 10, 200e-6, 1.5e-3
"""Estimates of docs/gpu.md: pictures of the web a trajectory keeps, the size of one, the size of one drawn at 1,024 pixels."""
MODEL_GB = {
    "Qwen/Qwen3-VL-8B-Instruct": 17.5,
    "Qwen/Qwen-Image-Edit-2511": 58.0,
    "Qwen/Qwen-Image": 58.0,
    "Qwen/Qwen3-Embedding-0.6B": 1.2,
}
"""What the models that `paper` names take on the disk, two bytes a weight (estimates of docs/gpu.md)."""


def look(profile: str | None, overrides: Sequence[str]) -> Iterator[Finding]:
    """Look at GPUs, where the profile samples or trains on them, and at the disks."""
    try:
        settings = load(profile, overrides=overrides)
    except GenEvolveError:  # said before
        yield _disk("disk", Path(), NEEDED_GB, "a cycle may need")
        return
    from genevolve.training.checkpoint import base_folder
    from genevolve.training.needs import weights_gb

    weights = weights_gb(base_folder(settings.policy.base))
    if "cuda" in (settings.cold_start.device, settings.distill.device):
        yield _training_gpus(settings, weights)
    if settings.policy.backend == "local" and settings.policy.device != "cpu":
        yield _sampling_gpu(settings, weights)
    yield from _disks(settings, weights)


def _training_needs(parts: Sequence[Any], weights: float) -> float:
    """Return the gigabytes that the largest of these trainings takes of a GPU, of those on GPUs (an estimate); 0: none."""
    from genevolve.training.needs import gpu_gb, split

    needs = [
        gpu_gb(
            weights,
            lora=part.lora_rank is not None,
            shares=part.processes if split(part.processes, part.accelerate) else 1,
        )
        for part in parts
        if part.device == "cuda"
    ]
    return max(needs, default=0.0)


def _training_gpus(settings: Settings, weights: float) -> Finding:
    """Say whether there are as many GPUs as training has processes, and whether the fullest has room (an estimate)."""
    from genevolve.render.ready import gpus

    parts = (settings.cold_start, settings.distill)
    wanted = max(part.processes for part in parts if part.device == "cuda")
    what, blocks = (
        "training GPUs",
        "cold start and distillation: set their device, processes or lora_rank (docs/gpu.md)",
    )
    found, names, free = gpus()
    said = f"{found} x {names}, {free:.0f} GB free on the fullest" if found else "none"
    asked = f"; the profile trains on {wanted}"
    if not weights:
        return Finding(what, found >= wanted, f"{said}{asked}; how full they get is told once the base is here", blocks)
    needed, embedder = _training_needs(parts, weights), _embedder_gb(settings)
    asked += f", about {needed:.0f} GB on each (an estimate)"
    if embedder:
        asked += f" and {embedder:.1f} GB of the embedder on the first"
    return Finding(what, found >= wanted and free >= needed + embedder, said + asked, blocks)


def _embedder_gb(settings: Settings) -> float:
    """Return the gigabytes of the embedder, which stays on the first GPU while a cycle trains; 0 where it is not here.

    It is held in float32; the published files are of two bytes a weight.
    """
    from genevolve.training.checkpoint import base_folder
    from genevolve.training.needs import weights_gb

    if settings.experience.embedder != "qwen3":
        return 0.0
    return 2 * weights_gb(base_folder(settings.experience.embedder_model))


def _sampling_gpu(settings: Settings, weights: float) -> Finding:
    """Say whether the GPU of a policy that samples in this process has room beside what else stays there (an estimate).

    A distillation of one process keeps its weights and moments; the activations it is reckoned with are the room that keys
    and values have. One of several processes ends before the policy is loaded again.
    """
    from genevolve.render.ready import gpus

    found, names, free = gpus()
    one = settings.distill.processes == 1 and settings.distill.device == "cuda"
    beside = _training_needs([settings.distill], weights) if one else 0.0
    embedder = _embedder_gb(settings)
    said = f"{found} x {names}, {free:.0f} GB free on the fullest" if found else "none"
    said += f"; {settings.policy.device} takes {weights:.1f} GB of the policy, keys and values not counted"
    said += f", beside {beside:.0f} GB of distillation (an estimate)" if beside else ""
    said += f", {embedder:.1f} GB of the embedder" if embedder else ""
    mend = "an emptier GPU (CUDA_VISIBLE_DEVICES), distill.lora_rank, or policy.backend openai"
    blocks = f"sampling, so generate, bench and evolve: {mend} (docs/gpu.md)"
    return Finding("policy GPU", bool(found) and free >= weights + beside + embedder, said, blocks)


def _disks(settings: Settings, weights: float) -> Iterator[Finding]:
    """Look for room where a cycle, the pictures it keeps and the models that are not here yet go; what shares a disk is
    added up."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from genevolve.services.cache import store
    from genevolve.training.needs import disk_gb

    lora = bool(settings.distill.lora_rank and settings.cold_start.lora_rank)
    large = weights > 1
    of = f" of a base of {weights:.1f} GB" if large else ""
    cycle = NEEDED_GB + (disk_gb(weights, lora=lora) if large else 0)
    missing = _models_missing(settings)
    places = [
        ("disk", Path(), cycle, f"a cycle{of} may need"),
        ("disk, pictures", store(), _pictures_gb(settings), f"pictures in {store()}: those of one cycle may need"),
        (
            "disk, models",
            Path(HF_HUB_CACHE),
            sum(MODEL_GB[m] for m in missing),
            f"the download of {', '.join(missing)}: it needs",
        ),
    ]
    before: dict[int, float] = {}
    for what, folder, needed, blocks in places:
        if not needed:
            continue
        device = _existing(folder).stat().st_dev
        shared = before.get(device, 0.0)
        before[device] = shared + needed
        yield _disk(what, folder, needed, blocks, shared)


def _disk(what: str, folder: Path, needed: float, blocks: str, shared: float = 0.0) -> Finding:
    """`shared`: gigabytes that the things looked at before take of the same disk."""
    free = shutil.disk_usage(_existing(folder)).free / 1e9
    beside = f" beside {shared:.0f} GB of the above on the same disk" if shared else ""
    return Finding(what, free >= needed + shared, f"{free:.1f} GB free", f"{blocks} {needed:.0f} GB{beside}: make room")


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _pictures_gb(settings: Settings) -> float:
    """Return the gigabytes of pictures from the web, and of drawn ones that are kept, of a cycle's trajectories at most."""
    c = settings.cycle
    looks = 1 + -(-c.steps // c.validate_every)
    played = c.steps * c.requests_per_step * settings.sampling.k
    played += looks * settings.dataset.validation * c.validation_k + 2 * settings.dataset.bench * settings.bench.draws
    found = PICTURES_OF_SEARCH * FOUND_GB if settings.world.image_search == "serper" else 0.0
    kept = settings.render.backend in ("service", "gemini")
    return played * (found + (DRAWN_GB * (settings.render.size / 1024) ** 2 if kept else 0.0))


def _models_missing(settings: Settings) -> list[str]:
    """Return the models of MODEL_GB that the profile names and this machine does not hold."""
    from genevolve.training.checkpoint import base_folder

    r, e, base = settings.render, settings.experience, settings.policy.base
    here = {base: any(base_folder(base).glob("*.safetensors"))}
    if r.backend == "diffusers":
        here |= {m: in_cache(m, "model_index.json") for m in (r.model, r.text_model)}
    if e.embedder == "qwen3":
        here[e.embedder_model] = in_cache(e.embedder_model, "config.json")
    return [model for model in MODEL_GB if not here.get(model, True)]
