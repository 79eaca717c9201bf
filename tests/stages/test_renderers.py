"""Generators by name: what a profile builds, what is refused before anything starts, and the server's own command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from genevolve.doctor.examine import examine
from genevolve.errors import SettingsError
from genevolve.profiles import load
from genevolve.render.base import RenderJob
from genevolve.render.compositor import Compositor
from genevolve.render.gemini import MODEL
from genevolve.render.ready import check_renderer, look
from genevolve.settings import Render, Settings
from genevolve.stages.backends import make_renderer
from genevolve.stages.serve_renderer import _devices, run
from tests.render.tiny import picture

PARAMS = Path(__file__).parents[2] / "params.yaml"
JOB = RenderJob("r1", "The first reference image.", (picture("red", (300, 200)),), 3)


def profile(*overrides: str, name: str = "tiny") -> Settings:
    return load(name, overrides=overrides, path=PARAMS)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RENDER_URL", "RENDER_KEY", "GEMINI_KEY"):
        monkeypatch.delenv(f"GENEVOLVE_{name}", raising=False)
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GENEVOLVE_WEB", str(tmp_path / "web"))


def test_settings_that_came_later_stand_in_no_old_recipe() -> None:
    for name in ("embedded", "tiny"):
        assert profile(name=name).section_values("render")["render"] == {
            "backend": "compositor",
            "model": "",
            "size": 320,
        }
    assert profile("render.steps=20").section_values("render")["render"]["steps"] == 20


def test_paper_has_the_releases_values() -> None:
    assert profile(name="paper").render == Render(
        backend="diffusers",
        model="Qwen/Qwen-Image-Edit-2511",
        text_model="Qwen/Qwen-Image",
        size=1024,
        steps=40,
        true_cfg=4.0,
    )
    check_renderer(profile(name="paper"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["render.size=512"], "The compositor draws 320 pixels a side, not 512"),
        (["render.backend=diffusers"], "render.model is empty"),
        (["render.backend=diffusers", "render.model=x", "sampling.workers=2"], "loaded by each of 2 processes"),
        (["render.backend=service"], "GENEVOLVE_RENDER_URL is not set"),
        (["render.backend=gemini"], "GEMINI_API_KEY is not set"),
        (["render.backend=gemini", "render.model=Qwen/Qwen-Image"], "is no Gemini model: set render.model to gemini-3"),
    ],
)
def test_a_generator_that_cannot_draw_is_one_sentence_before_anything_starts(overrides: list[str], said: str) -> None:
    settings = profile(*overrides)
    with pytest.raises(SettingsError, match=re.escape(said)):
        check_renderer(settings)
    assert [(what, there) for what, there, *_ in look(settings)] == [("generator", False)]


def test_a_budget_too_small_for_one_picture_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-do-not-print-me")
    with pytest.raises(SettingsError, match=r"world\.budget_usd is 0, less than one picture"):
        check_renderer(profile("render.backend=gemini"))
    enough = profile("render.backend=gemini", "world.budget_usd=1")
    check_renderer(enough)
    assert type(make_renderer(enough)).__name__ == "Gemini"
    assert "AIza" not in repr(list(look(enough)))
    (line,) = [
        f.line() for f in examine("paper", ["render.backend=gemini", f"render.model={MODEL}"]) if f.what == "generator"
    ]
    assert line == f"ok       generator        gemini {MODEL}; the key is set, not asked"


def test_doctor_says_which_weights_are_missing_and_whether_servers_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "edit").mkdir()
    (tmp_path / "edit" / "model_index.json").write_text("{}", encoding="utf-8")
    settings = profile("render.backend=diffusers", f"render.model={tmp_path / 'edit'}", "render.text_model=nobody/none")
    found = {line.rpartition(": ")[2] if ": " in line else line: there for _, there, line, _ in look(settings)}
    assert found["a folder, 0.0 GB"] is True
    assert found["not on this machine"] is False
    monkeypatch.setenv("GENEVOLVE_RENDER_URL", "http://127.0.0.1:9")
    down = [f for f in look(profile("render.backend=service")) if f[0] == "renderer"]
    assert down == [("renderer", False, "http://127.0.0.1:9/health does not answer", down[0][3])]


def test_a_generator_in_this_process_leaves_its_gpu_before_training(
    settings: Settings, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genevolve.render.diffusers import Diffusers
    from genevolve.stages.crew import Crew, Player

    rested: list[str] = []
    monkeypatch.setattr(Diffusers, "rest", lambda self: rested.append(self.model))
    player = Player.__new__(Player)
    player.renderer = Diffusers("edit", "text")
    crew = Crew(settings, dataset)
    crew._player = player
    crew.release()
    assert rested == ["edit"]


def test_what_draws_elsewhere_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENEVOLVE_RENDER_URL", "http://127.0.0.1:9")
    with pytest.raises(SettingsError, match="'service' draws elsewhere and cannot be served"):
        run(profile("render.backend=service"), host="127.0.0.1", port=0, gpus=None, queue=1, say=print)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start `genevolve serve-renderer` with two processes of the compositor; its address and process."""
    command = [sys.executable, "-m", "genevolve", "serve-renderer", "--port", "0", "--gpus", "2", "--profile", "tiny"]
    environment = {**os.environ, "GENEVOLVE_RENDER_KEY": "s3cret-token"}
    process = subprocess.Popen(command, cwd=PARAMS.parent, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        if found := re.match(r"ready: (http://127\.0\.0\.1:\d+)/generate$", line):
            url = found[1]
            break
    assert url, "it ended before it was ready"
    yield url, process
    process.kill()
    process.wait()


def test_a_profile_draws_through_the_commands_server_as_in_its_own_process(
    served: tuple[str, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GENEVOLVE_RENDER_URL", served[0])
    monkeypatch.setenv("GENEVOLVE_RENDER_KEY", "s3cret-token")
    settings = profile("render.backend=service")
    check_renderer(settings)
    assert make_renderer(settings).render([JOB]) == Compositor().render([JOB])
    assert len(list((tmp_path / "web" / "renders").glob("*.png"))) == 1
    (renderer,) = [f for f in look(settings) if f[0] == "renderer"]
    assert renderer[:3] == ("renderer", True, f"{served[0]}: 2 workers, compositor")
    assert {f.what for f in examine("tiny")} >= {"generator"}


def test_the_server_ends_on_sigterm_with_all_its_processes(served: tuple[str, subprocess.Popen[str]]) -> None:
    _, process = served
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


@pytest.mark.parametrize(
    ("found", "gpus", "devices"),
    [
        (8, None, [f"cuda:{n}" for n in range(8)]),
        (8, 2, ["cuda:0", "cuda:1"]),
        (1, None, ["cuda:0"]),
        (0, None, ["cpu"]),
        (0, 1, ["cpu"]),
    ],
)
def test_the_server_has_a_worker_on_each_gpu(
    monkeypatch: pytest.MonkeyPatch, found: int, gpus: int | None, devices: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    assert _devices("diffusers", gpus) == devices
    loaded: list[str] = []
    monkeypatch.setattr("genevolve.render.ready.check_renderer", lambda *_, **__: None)
    monkeypatch.setattr("genevolve.stages.backends.make_renderer", lambda _, device: loaded.append(device))

    class Ended(Exception):
        """Instead of serving."""

    def start(workers: Any) -> None:
        for worker in workers:
            worker._make()
        raise Ended

    monkeypatch.setattr("genevolve.render.server.start_all", start)
    said: list[str] = []
    with pytest.raises(Ended):
        run(profile("render.backend=diffusers"), host="127.0.0.1", port=0, gpus=gpus, queue=1, say=said.append)
    assert loaded == devices
    assert said[-1].endswith(f"for {', '.join(devices)} ...")


def test_more_gpus_than_there_are_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(SettingsError, match=r"--gpus 3: this machine has 2\."):
        _devices("diffusers", 3)
