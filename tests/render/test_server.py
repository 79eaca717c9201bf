"""The renderer server as its callers meet it: a real uvicorn on loopback over real worker processes."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from pydantic import SecretStr

from genevolve.render.base import RenderError, RenderJob, noise_seed
from genevolve.render.compositor import Compositor
from genevolve.render.server import Limits, make_app, server, start_all
from genevolve.render.worker import Worker
from tests.render.tiny import Scripted, broken, build, dead, opened, picture, tiny_diffusers

PNG = picture("red", (300, 200))
PROMPT = "The first reference image, whole and unaltered, exactly two copies."


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass
class Running:
    url: str
    port: int
    server: uvicorn.Server
    thread: threading.Thread
    folder: Path
    http: httpx.Client

    def post(self, value: Any = None, *, content: bytes | None = None, **headers: str) -> httpx.Response:
        sent = json.dumps(value).encode() if content is None else content
        return self.http.post(f"{self.url}/generate", content=sent, headers=headers)

    def health(self) -> dict[str, Any]:
        return self.http.get(f"{self.url}/health").json()  # type: ignore[no-any-return]

    def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the server's health is as wanted, half a minute at most."""
        for _ in range(3000):
            state = self.health()
            if true(state):
                return state
            time.sleep(0.01)
        raise AssertionError(f"it never came: {state}")

    @property
    def seen(self) -> list[str]:
        return (self.folder / "seen").read_text(encoding="utf-8").split("\n")[:-1]


@contextmanager
def serving(folder: Path, makes: Sequence[Callable[[], Any]] = (), **how: Any) -> Iterator[Running]:
    workers = [Worker(make) for make in (makes or [partial(Scripted, folder)])]
    start_all(workers)
    ready = threading.Event()
    ports: list[int] = []

    def on_ready(port: int) -> None:
        ports.append(port)
        ready.set()

    limits = how.setdefault("limits", Limits())
    made = server(make_app(workers, model="tiny", **how), "127.0.0.1", 0, limits, on_ready)
    thread = threading.Thread(target=made.run)
    thread.start()
    assert ready.wait(30)
    try:
        with httpx.Client(timeout=60, trust_env=False) as http:
            yield Running(f"http://127.0.0.1:{ports[0]}", ports[0], made, thread, folder, http)
    finally:
        (folder / "go").touch()
        made.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
    assert not any(w._process for w in workers), "no worker outlives its server"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("plain")
    with serving(folder, [partial(Scripted, folder)] * 2, limits=Limits(body=200_000, images=2)) as running:
        yield running


def test_what_the_releases_client_sends_brings_a_png(plain: Running) -> None:
    asked = {
        "image_urls": [uri(PNG, "image/jpeg")],  # it calls every file a JPEG
        "prompt": PROMPT,
        "seed": 5,
        "true_cfg_scale": 4.0,
        "negative_prompt": " ",
        "num_inference_steps": 40,
        "guidance_scale": 1.0,
        "num_images_per_prompt": 1,
        "width": 1024,
        "height": 688,
    }
    answer = plain.post(asked)
    assert answer.status_code == 200
    assert set(answer.json()) == {"success", "image"}
    assert answer.json()["success"] is True
    drawn = base64.b64decode(answer.json()["image"], validate=True)
    assert [drawn] == Compositor().render([RenderJob("", PROMPT, (PNG,), 5)])


def test_a_request_id_and_the_run_seed_give_the_picture_of_a_run_in_one_process(plain: Running) -> None:
    job = RenderJob("bench-0007", "The first reference image.", (PNG,), 3)
    asked = {"prompt": job.gen_prompt, "image_urls": [uri(PNG)], "seed": noise_seed(job)}
    answer = plain.post({**asked, "request_id": job.request_id, "run_seed": job.seed}).json()
    assert [base64.b64decode(answer["image"])] == Compositor().render([job])


def test_health_says_how_many_draw_and_wait(plain: Running) -> None:
    state = plain.health()
    assert (state["status"], state["num_gpus"], state["disabled_gpus"]) == ("healthy", 2, [])
    assert (state["model"], state["busy"], state["waiting"]) == ("tiny", 0, 0)


WRONG = {
    "no JSON": (b"<html>", 400, "The request is not JSON."),
    "cut JSON": (b'{"prompt": "a', 400, "The request is not JSON."),
    "a list": (b"[]", 422, "the request: "),
    "no prompt": ({}, 422, "prompt: Field required."),
    "empty prompt": ({"prompt": ""}, 422, "prompt: String should have at least 1 character."),
    "long prompt": ({"prompt": "a" * 8001}, 422, "prompt: String should have at most 8000 characters."),
    "many steps": ({"prompt": "a", "num_inference_steps": 100_000}, 422, "num_inference_steps: "),
    "huge": ({"prompt": "a", "width": 100_000}, 422, "width: "),
    "many pictures": ({"prompt": "a", "num_images_per_prompt": 4}, 422, "num_images_per_prompt: "),
    "seed": ({"prompt": "a", "seed": -1}, 422, "seed: "),
    "id": ({"prompt": "a", "request_id": "../x", "run_seed": 1}, 422, "request_id: "),
    "references": ({"prompt": "a", "image_urls": [uri(PNG)] * 3}, 422, "image_urls: at most 2 pictures, not 3."),
    "an address": ({"prompt": "a", "image_urls": ["http://127.0.0.1/x.png"]}, 422, "no address is followed."),
    "a file": ({"prompt": "a", "image_urls": ["file:///etc/passwd"]}, 422, "no address is followed."),
    "no base64": ({"prompt": "a", "image_urls": ["data:image/png;base64,@@@"]}, 422, "picture 1 is not base64."),
    "a page": ({"prompt": "a", "image_urls": [uri(b"hello")]}, 422, "picture 1 is refused (not a picture)."),
    "a drawing": ({"prompt": "a", "image_urls": [uri(PNG), uri(b"<svg/>")]}, 422, "picture 2 is refused (not a p"),
    "cut": ({"prompt": "a", "image_urls": [uri(PNG[:100])]}, 422, "picture 1 is refused (broken picture)."),
    "a bomb": ({"prompt": "a", "image_urls": [uri(picture("red", (7000, 6000)))]}, 422, "refused (pixels)."),
    "large": (b" " * 200_001, 413, "The request is larger than 200000 bytes."),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_drawn_is_told_in_a_sentence_and_costs_no_worker(plain: Running, name: str) -> None:
    value, status, message = WRONG[name]
    answer = plain.post(content=value) if isinstance(value, bytes) else plain.post(value)
    assert answer.status_code == status
    said = answer.json()
    assert said["success"] is False
    assert message in said["message"]
    assert plain.health()["busy"] == 0


def test_only_the_holder_of_the_token_is_served_and_health_is_open(tmp_path: Path) -> None:
    with serving(tmp_path, token=SecretStr("s3cret-token")) as running:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret-token"}):
            answer = running.post({"prompt": PROMPT}, **headers)
            assert (answer.status_code, answer.json()["message"]) == (401, "The bearer token is missing or wrong.")
        assert running.post({"prompt": PROMPT}, authorization="Bearer s3cret-token").json()["success"] is True
        assert running.health()["status"] == "healthy"
        assert running.seen == [PROMPT]


def test_a_full_queue_sends_callers_away_and_forgets_nobody(tmp_path: Path) -> None:
    answers: dict[str, httpx.Response] = {}
    with serving(tmp_path, limits=Limits(queue=2)) as running:

        def ask(prompt: str) -> threading.Thread:
            thread = threading.Thread(target=lambda: answers.update({prompt: running.post({"prompt": prompt})}))
            thread.start()
            return thread

        threads = [ask("wait 1")]
        running.until(lambda s: s["busy"] == 1)
        threads += [ask("wait 2"), ask("wait 3")]
        running.until(lambda s: s["waiting"] == 2)
        full = running.post({"prompt": "wait 4"})
        assert full.status_code == 503
        assert 1 <= int(full.headers["retry-after"]) <= 60
        assert full.json() == {"success": False, "message": "The queue of 2 programs is full."}
        (tmp_path / "go").touch()
        for thread in threads:
            thread.join(30)
        assert [answers[f"wait {i}"].json()["success"] for i in (1, 2, 3)] == [True] * 3
        assert sorted(running.seen) == ["wait 1", "wait 2", "wait 3"]


def test_nobody_draws_for_a_caller_that_has_gone(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        first = threading.Thread(target=running.post, args=({"prompt": "wait 1"},))
        first.start()
        running.until(lambda s: s["busy"] == 1)
        with pytest.raises(httpx.ReadTimeout):
            running.http.post(f"{running.url}/generate", json={"prompt": "gone"}, timeout=0.3)
        running.until(lambda s: s["waiting"] == 0)
        assert running.health()["busy"] == 1
        (tmp_path / "go").touch()
        first.join(30)
        assert running.post({"prompt": "after"}).json()["success"] is True
        assert running.seen == ["wait 1", "after"]


@pytest.mark.parametrize("prompt", ["die", "break", "hang"])
def test_a_lost_worker_costs_one_answer_and_is_replaced(tmp_path: Path, prompt: str) -> None:
    with serving(tmp_path, limits=Limits(job_seconds=1.5)) as running:
        lost = running.post({"prompt": prompt})
        assert lost.status_code == 500, "the same program may be sent again, to another worker"
        assert lost.json()["message"].startswith("The generator's process was lost")
        running.until(lambda s: s["disabled_gpus"] == [])
        assert running.post({"prompt": "nothing"}).status_code == 200, "and the next one is served"
        assert running.seen == [prompt, "nothing"]


def test_a_program_that_cannot_be_drawn_is_no_reason_to_ask_again(plain: Running) -> None:
    answer = plain.post({"prompt": "nothing"})
    assert answer.status_code == 200
    assert answer.json() == {"success": False, "message": "The generator drew nothing for this program."}


def test_a_body_that_drips_is_given_up(tmp_path: Path) -> None:
    with (
        serving(tmp_path, limits=Limits(body_seconds=0.3)) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=30) as wire,
    ):
        wire.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert wire.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_picture_that_is_being_drawn_at_the_end_still_arrives(tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    with serving(tmp_path) as running:
        caller = threading.Thread(target=lambda: answers.append(running.post({"prompt": "wait 1"})))
        caller.start()
        running.until(lambda s: s["busy"] == 1)
        running.server.should_exit = True
        (tmp_path / "go").touch()
        caller.join(30)
        running.thread.join(30)
    assert answers[0].json()["success"] is True


@pytest.mark.parametrize(
    ("make", "said"), [(broken, "There is no such model."), (dead, "the process that loads it died")]
)
def test_a_generator_that_does_not_load_is_one_sentence_and_no_process(
    tmp_path: Path, make: Callable[[], Any], said: str
) -> None:
    workers = [Worker(partial(Scripted, tmp_path)), Worker(make)]
    before = set(psutil.Process().children())
    with pytest.raises(RenderError, match=said):
        start_all(workers)
    assert {p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())} <= before


def test_a_worker_with_the_papers_pipelines_draws_what_this_process_draws(tmp_path: Path) -> None:
    edit, text = build(tmp_path / "models")
    jobs = [
        RenderJob("a", "A red flag.", (picture("red"),), 1),
        RenderJob("b", "A flag.", (), 1),
    ]
    answers: dict[str, bytes] = {}
    with serving(tmp_path, [partial(tiny_diffusers, edit, text)]) as running:

        def ask(job: RenderJob) -> None:
            body = {"prompt": job.gen_prompt, "image_urls": [uri(r) for r in job.references], "run_seed": job.seed}
            found = running.post({**body, "request_id": job.request_id, "num_inference_steps": 2}).json()
            answers[job.request_id] = base64.b64decode(found["image"])

        threads = [threading.Thread(target=ask, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    alone = tiny_diffusers(edit, text).render(jobs)
    assert [opened(answers[j.request_id]).size for j in jobs] == [(64, 48), (64, 64)]
    assert [answers[j.request_id] for j in jobs] == alone
