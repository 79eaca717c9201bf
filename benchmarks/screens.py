"""Pictures of Prefect's and MLflow's pages after some nights, for the docs.

    python -m benchmarks.screens FOLDER [--out docs/pictures]

FOLDER is what `python -m benchmarks.nights --keep FOLDER` left. Its servers are started and stopped again; Debian's package
`chromium` looks at the pages, without a window. Each PNG is 1400 pixels wide and smaller than 300 kB.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from websockets.sync.client import connect

from benchmarks.clones import Clone
from benchmarks.nights import found
from genevolve.mlflow_view import page
from genevolve.operations.addresses import call

WIDTH, MOST = 1400, 300_000
SECONDS = 60.0
"""Most that a page may take until it shows what it should."""
QUIET = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
"""MLflow's assistant opens itself at a first visit, over a fourth of the page."""
TEXT = "document.body ? document.body.innerText : ''"
CLICK = """(() => {
  const leaves = [...document.querySelectorAll('body *')].filter((e) => !e.children.length && e.textContent.trim() === %s);
  if (leaves.length) leaves.at(-1).click();
  return leaves.length;
})()"""


@dataclass(frozen=True)
class Shot:
    """A page: where it is, how high, what is clicked on, and words that must stand there."""

    address: str
    height: int
    shows: tuple[str, ...]
    clicks: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    if not (args.folder / "clone").is_dir():
        sys.exit(f"{args.folder} holds no clone: `python -m benchmarks.nights --keep {args.folder}` makes one")
    args.out.mkdir(parents=True, exist_ok=True)
    clone = Clone(args.folder / "clone")
    try:
        clone.run("genevolve", "serve")
        with Browser() as browser:
            for name, shot in pages(clone).items():
                size = browser.shoot(shot, args.out / f"{name}.png")
                print(f"{args.out / name}.png  {size / 1000:.0f} kB")
    finally:
        clone.run("genevolve", "stop")


def pages(clone: Clone) -> dict[str, Shot]:
    """Return name -> page to show."""
    prefect, mlflow = clone.api.removesuffix("/api"), clone.pages
    nights = found(clone, ["COMPLETED"])
    if not nights:
        sys.exit("no night came to its end")
    last = nights[-1]
    made = clone.ask("artifacts/filter", {"flow_runs": {"id": {"any_": [last["id"]]}}})
    artifacts = {a["key"]: f"{prefect}/artifacts/artifact/{a['id']}" for a in made}
    night = f"{prefect}/runs/flow-run/{last['id']}"
    experiment, runs = cycles(mlflow)
    nights_page = mlflow + page(experiment)
    compare = f"runs={quote(json.dumps(list(runs)), safe='')}&experiments={quote(json.dumps([experiment]))}"
    names = tuple(runs.values())
    gallery = next(key for key in ("best-gains", "worst-losses") if key in artifacts)
    return {
        "prefect-runs": Shot(f"{prefect}/runs", 1200, ("Completed", last["name"]), ("Hide subflows",)),
        "prefect-night": Shot(night, 1000, ("nightly", "Task Runs"), ("Artifacts",)),
        "prefect-gate": Shot(artifacts["gate"], 900, ("On the", "report half")),
        "prefect-gallery": Shot(artifacts[gallery], 700, ("before on the left",)),
        "mlflow-runs": Shot(nights_page, 600, ("kscore/report", *names)),
        "mlflow-charts": Shot(f"{nights_page}&compareRunsMode=CHART", 1560, ("KScore by track", *names)),
        "mlflow-compare": Shot(f"{mlflow}/#/compare-runs?{compare}", 1400, ("kscore/all", *names)),
    }


def cycles(mlflow: str) -> tuple[str, dict[str, str]]:
    """Return the experiment's id, and run id -> name of the cold start and the nights, the oldest first."""
    api = f"{mlflow}/api/2.0/mlflow"
    experiment = call(f"{api}/experiments/get-by-name?experiment_name=genevolve")["experiment"]["experiment_id"]
    wanted = {"experiment_ids": [experiment], "filter": "tags.kind = 'cycle'", "max_results": 20}
    runs: list[dict[str, Any]] = call(f"{api}/runs/search", wanted)["runs"]
    rows = sorted((run["info"]["run_name"], run["info"]["run_id"]) for run in runs)
    return experiment, {run: name for name, run in rows}


class Browser:
    """Chromium without a window, told what to do over its debugging protocol; it keeps nothing."""

    def __enter__(self) -> Browser:
        program = shutil.which("chromium")
        if program is None:
            sys.exit("chromium is not on the path: apt-get install chromium")
        self._scratch = tempfile.TemporaryDirectory(prefix="screens-", ignore_cleanup_errors=True)
        options = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
        options += [f"--user-data-dir={self._scratch.name}", *(["--no-sandbox"] * (os.geteuid() == 0))]
        self._process = subprocess.Popen(
            [program, *options, "about:blank"],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": self._scratch.name},
        )
        port = Path(self._scratch.name) / "DevToolsActivePort"
        self._wait("chromium does not start", lambda: port.exists() and port.read_text().count("\n"))
        listing = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
        (page, *_) = [tab for tab in call(listing) if tab["type"] == "page"]
        self._socket = connect(page["webSocketDebuggerUrl"], max_size=None)
        self._number = 0
        self.tell("Page.enable")
        self.tell("Page.addScriptToEvaluateOnNewDocument", source=QUIET)
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait()
        self._scratch.cleanup()

    def tell(self, method: str, **parameters: Any) -> Any:
        """Give one order; return what came of it."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv(60))).get("id") != self._number:
            pass  # events, which nobody waits for
        if "error" in answer:
            sys.exit(f"chromium: {method}: {answer['error']}")
        return answer["result"]

    def shoot(self, shot: Shot, path: Path) -> int:
        """Write what a page looks like once it shows what it should; return the bytes. Fewer colours where they are too many."""
        from PIL import Image

        size = {"width": WIDTH, "height": shot.height, "deviceScaleFactor": 1, "mobile": False}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        self.tell("Page.navigate", url="about:blank")  # another anchor alone would load nothing
        self.tell("Page.navigate", url=shot.address)
        for click in shot.clicks:
            self._wait(
                f"{shot.address} has no '{click}'", lambda click=click: self._evaluate(CLICK % json.dumps(click))
            )
        for text in shot.shows:
            self._wait(f"{shot.address} does not show '{text}'", lambda text=text: text in self._evaluate(TEXT))
        time.sleep(3)  # pictures, plots, and what moves
        data = base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"])
        whole = Image.open(io.BytesIO(data)).convert("RGB")
        for colours in (256, 64, 16):
            out = io.BytesIO()
            whole.quantize(colours).save(out, "PNG", optimize=True)
            if out.tell() < MOST:
                break
        path.write_bytes(out.getvalue())
        return out.tell()

    def _evaluate(self, script: str) -> Any:
        return self.tell("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    @staticmethod
    def _wait(otherwise: str, true: Callable[[], Any]) -> None:
        end = time.monotonic() + SECONDS
        while not true():
            if time.monotonic() > end:
                sys.exit(otherwise)
            time.sleep(0.3)


if __name__ == "__main__":
    main()
