"""Stage `build`: GenEvolve-Data of a profile, a function of the data seed -> out/ (format: dataset.public)."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.errors import SettingsError
from genevolve.settings import Settings
from genevolve.stages.backends import WORLD

if TYPE_CHECKING:
    from genevolve.dataset.build import Built


def run(settings: Settings, *, out: Path) -> dict[str, Any]:
    """Build the dataset into `out`; return its report. Started again, it begins anew: it takes a minute or two."""
    from genevolve.dataset.report import check_dataset, make_report, write_json
    from genevolve.tools.world import World, build_world

    _refuse_services(settings)
    for left_over in out.iterdir() if out.is_dir() else ():
        shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
    out.mkdir(parents=True, exist_ok=True)
    build_world(out / WORLD)
    world = World.open(out / WORLD)
    built = make_dataset(settings, out / WORLD, out)
    check_dataset(built, settings.dataset, out)
    report = make_report(built, world, out)
    write_json(out / "report.json", report)
    pictures = [r.gt_image for r in built.requests if r.gt_image][:8]
    return {**report, "images": pictures, "traces": {"teacher": built.trajectories["sft"][:4]}}


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
    write_dataset(built, world, out)
    return built


def _refuse_services(settings: Settings) -> None:
    """Raise SettingsError for what this stage cannot build with yet."""
    here = {
        "dataset.teacher": (settings.dataset.teacher, "scripted"),
        "world.search": (settings.world.search, "embedded"),
        "world.image_search": (settings.world.image_search, "embedded"),
    }
    for name, (value, embedded) in here.items():
        if value != embedded:
            raise SettingsError(f"{name}: {value} cannot build a dataset yet; this version builds with {embedded}.")


def _renderer(settings: Settings) -> Any:
    from genevolve.stages.backends import make_renderer

    return make_renderer(settings)


def _judge(settings: Settings, out: Path) -> Any:
    from genevolve.stages.backends import make_judges

    return make_judges(settings, out)[0]
