"""`genevolve import` and `export`: the public release's files in and out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve.errors import SettingsError
from genevolve.services.cache import store
from genevolve.stages.backends import reference_bytes

if TYPE_CHECKING:
    from genevolve.dataset.release.pictures import Picture


def bring_in(source: Path, out: Path, dataset: Path | None, validation: int | None) -> Iterator[str]:
    """Import a folder as a dataset, or a results file as a bench run of `dataset`; yield the lines of the summary."""
    if source.is_file():
        from genevolve.bench.results_in import import_results

        if dataset is None:
            raise SettingsError(f"{source} is a file of results: say with --dataset which dataset's bench it answers.")
        yield from import_results(source, dataset, out, _kept)
        return
    from genevolve.dataset.release.importing import import_dataset

    yield from import_dataset(source, out, validation).lines()
    yield f"dataset: {out}"


def _kept(picture: Picture) -> str:
    """Keep a reference picture as image_search keeps those of the web; return its name."""
    from genevolve.dataset.release.pictures import PictureError
    from genevolve.tools.picture import Refused, keep, redraw
    from genevolve.tools.serper import WEB

    try:
        return WEB + keep(*redraw(picture.data), store() / "images")
    except Refused as e:
        raise PictureError(e.reason) from None


def hand_out(source: Path, out: Path, dataset: Path) -> Iterator[str]:
    """Export a dataset folder, or a bench folder with its dataset; yield what was written."""
    if (source / "blocks").is_dir():
        from genevolve.bench.results_out import export_results
        from genevolve.dataset.release.exporting import drawn

        def reference(file: str) -> tuple[bytes, str]:
            data = reference_bytes(dataset, file)
            return (drawn(data.decode()), ".png") if file.endswith(".svg") else (data, Path(file).suffix)

        written = export_results(source, dataset, out, reference)
    else:
        from genevolve.dataset.release.exporting import export_dataset

        written = export_dataset(source, out)
    yield from (f"{out / name}: {n}" if "." in name else f"{name}: {n}" for name, n in written.items())
