"""Stage `build`: GenEvolve-Data of a profile, a function of the data seed -> out/ (format: dataset.public)."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.errors import SettingsError
from genevolve.settings import Settings
from genevolve.stages.backends import WORLD, check_sizes

if TYPE_CHECKING:
    from genevolve.dataset.build import Built

JOURNAL = "taught.jsonl"
"""The trajectories of a build with models as they come; gone when the dataset is written."""


def run(settings: Settings, *, out: Path, imported: Path | None = None) -> dict[str, Any]:
    """Build the dataset into `out`, or take an imported one; return its report.

    Started again it begins anew; with models, everything that was paid for is found again.
    """
    from genevolve.dataset.report import check_dataset, make_report, write_json
    from genevolve.tools.world import World, build_world

    models = settings.dataset.teacher == "openai"
    if imported is None and models:
        from genevolve.stages.data_models import check_data_models

        check_data_models(settings)
    elif imported is None:
        _refuse_services(settings)
    for left_over in out.iterdir() if out.is_dir() else ():
        if models and imported is None and left_over.name == JOURNAL:
            continue  # what a killed build had played
        shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
    out.mkdir(parents=True, exist_ok=True)
    if imported is not None:
        return _take(imported, out)
    if models:
        from genevolve.stages.build_models import build_with_models

        return build_with_models(settings, out)
    build_world(out / WORLD)
    world = World.open(out / WORLD)
    built = make_dataset(settings, out / WORLD, out)
    check_dataset(built, settings.dataset, out)
    report = make_report(built, world, out)
    write_json(out / "report.json", report)
    pictures = [r.gt_image for r in built.requests if r.gt_image][:8]
    return {**report, "images": pictures, "traces": {"teacher": built.trajectories["sft"][:4]}}


def _take(imported: Path, out: Path) -> dict[str, Any]:
    """Put an imported dataset in `out` (hard links where the disk allows: it may hold gigabytes); return its report."""
    from genevolve.dataset.public import REQUESTS

    if not (imported / REQUESTS).is_file():
        raise SettingsError(f"dataset.imported: {imported} holds no {REQUESTS}; make it with `genevolve import`.")
    shutil.copytree(imported, out, copy_function=_link, dirs_exist_ok=True)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {"splits": report["splits"], "digest": report["digest"]}


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def make_dataset(settings: Settings, world_folder: Path, out: Path) -> Built:
    """Make the dataset of a world that is there, and write it to `out`; tables are not checked yet."""
    from genevolve.dataset.build import build
    from genevolve.dataset.recipe_pool import Drawer, make_pools
    from genevolve.dataset.report import write_dataset
    from genevolve.dataset.workers import Work, Workshop
    from genevolve.tools.world import World

    world, seed = World.open(world_folder), settings.seeds.data_seed
    judge = partial(_judge, settings, world_folder.parent)
    work = Work(world_folder, seed, settings.world.top_k, partial(_renderer, settings), judge)
    with Workshop(work, settings.sampling.workers) as workshop:
        built = build(settings.dataset, Drawer(make_pools(world, seed), seed), workshop, out / "gt")
    write_dataset(built, lambda file: world.image(file).encode(), out)
    return built


def _refuse_services(settings: Settings) -> None:
    """Raise SettingsError for a web that the scripted teacher does not know, and for pictures that its judge does not."""
    check_sizes(settings)
    for name in ("search", "image_search"):
        if (value := getattr(settings.world, name)) != "embedded":
            raise SettingsError(
                f"world.{name}: {value} is no world for the scripted teacher: set dataset.teacher to openai, or "
                f"world.{name} to embedded."
            )


def _renderer(settings: Settings) -> Any:
    from genevolve.stages.backends import make_renderer

    return make_renderer(settings)


def _judge(settings: Settings, out: Path) -> Any:
    from genevolve.stages.backends import make_image_judge

    return make_image_judge(settings.judge.image, settings, out)
