"""The client of renderer servers: against ours, several of them, and one that goes wrong in every way."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from genevolve.errors import SettingsError
from genevolve.render.base import RenderJob, noise_seed
from genevolve.render.compositor import Compositor
from genevolve.render.service import Service, endpoints
from genevolve.services.cache import CallCache
from genevolve.services.client import Client
from genevolve.services.endpoint import Endpoint, ServiceError
from genevolve.services.patience import Patience
from tests.render.faults import faults
from tests.render.test_server import serving
from tests.render.tiny import Scripted, opened, picture
from tests.tools.web import Reply, Server, said, status

PNG, JPEG = picture("red", (300, 200)), picture("blue", (200, 300), "JPEG")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><rect width="60" height="40" fill="#00f"/></svg>'
DRAWN = picture("green", (64, 48))
KEY = SecretStr("s3cret-token")
JOB = RenderJob("r1", "The first reference image.", (PNG,), 3)


def answer(image: Any) -> Any:
    return {"success": True, "image": image}


GOOD = said(answer(base64.b64encode(DRAWN).decode()))
FAULTS = faults(answer)


class Bench:
    """Starts servers and makes services over them; sleeps are noted, not slept."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.slept, self.time = folder, list[float](), 0.0
        self.cache = CallCache(folder / "calls.sqlite")
        self.stack = ExitStack()

    def server(self, script: Reply | list[Reply]) -> Server:
        return self.stack.enter_context(Server({"/generate": script}).running())

    def service(self, *urls: str, attempts: int = 2, seconds: float = 20.0, **how: Any) -> Service:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        patience = Patience(attempts=attempts, attempt=seconds, total=60)
        clients = [
            Client(
                Endpoint("render", url, how.pop("key", KEY), rate=1e6),
                self.cache,
                budget=1.0,
                account="t",
                patience=patience,
                sleep=sleep,
                draw=lambda: 1.0,
                now=lambda: 1000.0 + sum(self.slept),
            )
            for url in urls
        ]
        return Service(clients, self.folder / "renders", clock=lambda: self.time, **how)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    with made.stack:
        yield made


def test_our_server_draws_through_the_client_what_the_compositor_draws_here(bench: Bench, tmp_path: Path) -> None:
    jobs = [
        RenderJob(f"r{i}", "The first reference image, whole and unaltered.", (r,), i) for i, r in ((1, PNG), (2, JPEG))
    ]
    jobs += [RenderJob("r3", "Only lettering: the exact text 'HI'.", (), 3), RenderJob("r4", "nothing to see", (), 4)]
    with serving(tmp_path, [partial(Scripted, tmp_path)] * 2, token=KEY) as running:
        pictures = bench.service(running.url).render(jobs)
        assert pictures == [*Compositor().render(jobs[:3]), None]
        seen = len(running.seen)
        assert seen == 4
    # The server is gone: what was drawn is kept, what was not is missing.
    again = bench.service(running.url, attempts=1).render(jobs)
    assert again == pictures


def test_what_is_sent_is_the_public_contract(bench: Bench) -> None:
    server = bench.server(GOOD)
    service = bench.service(server.url, size=1024, steps=40, true_cfg=4.0)
    (drawn,) = service.render([RenderJob("r1", "It.", (PNG, SVG), 3)])
    assert opened(drawn).convert("RGB").getpixel((0, 0)) == (0, 128, 0)
    method, path, headers, body = server.requests[0]
    sent = json.loads(body)
    urls = sent.pop("image_urls")
    assert (method, path, headers["authorization"]) == ("POST", "/generate", "Bearer s3cret-token")
    assert sent == {
        "prompt": "It.",
        "seed": noise_seed(RenderJob("r1", "", seed=3)),
        "num_inference_steps": 40,
        "true_cfg_scale": 4.0,
        "negative_prompt": " ",
        "num_images_per_prompt": 1,
        "width": 1024,
        "height": 688,
        "request_id": "r1",
        "run_seed": 3,
    }
    assert urls[0] == f"data:image/png;base64,{base64.b64encode(PNG).decode()}", "as it is, not encoded again"
    assert urls[1].startswith("data:image/png;base64,"), "a drawing goes as a PNG, which every server reads"


def test_a_picture_is_asked_for_once_whoever_asks_and_another_run_asks_anew(bench: Bench) -> None:
    server = bench.server(GOOD)
    service = bench.service(server.url)
    assert len(set(service.render([JOB] * 3))) == 1
    other = [RenderJob("r2", JOB.gen_prompt, (PNG,), 3), RenderJob("r1", JOB.gen_prompt, (PNG,), 4)]
    service.render([*other, JOB])
    assert len(server.requests) == 3
    bench.service(server.url, model="another").render([JOB])
    assert len(server.requests) == 4
    assert len(list((bench.folder / "renders").iterdir())) == 4
    spent = bench.cache.spent("render")
    assert (spent.calls - spent.cached, spent.cached >= 1) == (4, True), "a kept picture is a call that was saved"


def test_a_killed_writer_leaves_no_half_picture(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    server = bench.server(GOOD)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        bench.service(server.url).render([JOB])
    assert list((bench.folder / "renders").iterdir()) == []


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_the_program_is_sent_again(bench: Bench, name: str) -> None:
    server = Server({"/generate": GOOD})
    server.script["/generate"] = [FAULTS[name](server), GOOD]
    bench.stack.enter_context(server.running())
    (drawn,) = bench.service(server.url, seconds=1.0 if name in ("hang", "slow drip") else 20.0).render([JOB])
    assert opened(drawn).size == (64, 48)
    assert len(server.requests) == 2
    assert bench.slept == [{"429": 7.0, "503": 9.0}.get(name, 0.5)]


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_makes_the_program_missing_and_only_that_one(bench: Bench, name: str) -> None:
    server = Server({"/generate": GOOD})
    fault = FAULTS[name](server)

    def reply(h: Any) -> None:
        (fault if b'"r1"' in server.requests[-1][3] else GOOD)(h)

    server.script["/generate"] = [reply]
    bench.stack.enter_context(server.running())
    service = bench.service(server.url, seconds=0.5 if name in ("hang", "slow drip") else 20.0)
    assert service.render([JOB]) == [None]
    (good,) = service.render([RenderJob("r2", "It.", (PNG,), 3)])
    assert opened(good).size == (64, 48)
    assert len(server.requests) == 3


def test_a_reference_that_is_no_picture_is_never_sent(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    server = bench.server(GOOD)
    assert bench.service(server.url).render([RenderJob("r1", "It.", (PNG[:60],), 1)]) == [None]
    assert server.requests == []
    assert "request r1: a reference is of no use (broken picture)" in caplog.text


def test_a_program_that_the_server_cannot_draw_is_asked_for_once(bench: Bench) -> None:
    refused = said({"success": False, "message": "no"})
    for script in (refused, status(422, b'{"success": false, "message": "prompt: too long."}')):
        server, spare = bench.server(script), bench.server(GOOD)
        service = bench.service(server.url, spare.url)
        service._next = 1  # the one that refuses is next
        assert service.render([JOB]) == [None]
        assert (len(server.requests), len(spare.requests)) == (1, 0)


@pytest.mark.parametrize(
    ("code", "said"),
    [(401, "refused the key .HTTP 401.: check GENEVOLVE_RENDER_KEY"), (404, "check GENEVOLVE_RENDER_URL")],
)
def test_a_wrong_key_or_address_ends_the_command_with_a_sentence(bench: Bench, code: int, said: str) -> None:
    server = bench.server(status(code, b'{"success": false, "message": "not with s3cret-token"}'))
    with pytest.raises(ServiceError, match=said) as raised:
        bench.service(server.url).render([JOB, RenderJob("r2", "It.")])
    assert "s3cret" not in str(raised.value)


def test_servers_take_turns_and_one_that_is_down_is_passed_over_for_a_minute(bench: Bench) -> None:
    left, right = bench.server(GOOD), bench.server(GOOD)
    service = bench.service(left.url, right.url)
    for i in range(4):
        service.render([RenderJob(f"r{i}", "It.")])
    assert (len(left.requests), len(right.requests)) == (2, 2)
    left.script["/generate"] = [status(500)]
    drawn = [service.render([RenderJob(f"s{i}", "It.")])[0] for i in range(4)]
    assert None not in drawn
    assert len(left.requests) == 4, "two attempts for the first program, then none"
    left.script["/generate"] = [GOOD]
    bench.time = 61.0
    for i in range(2):
        service.render([RenderJob(f"t{i}", "It.")])
    assert len(left.requests) == 5


def test_no_more_programs_than_allowed_are_under_way(bench: Bench) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def reply(h: Any) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        both.wait(10)
        with lock:
            now -= 1
        GOOD(h)

    both = threading.Barrier(3)
    server = bench.server(reply)
    service = bench.service(server.url)
    endpoint = Endpoint("render", server.url, rate=1e6, concurrency=3)
    service.clients = [Client(endpoint, bench.cache, budget=0, account="t")]
    assert None not in service.render([RenderJob(f"r{i}", "It.") for i in range(9)])
    assert most == 3


def test_the_environment_names_one_server_or_several() -> None:
    found = endpoints(
        {"GENEVOLVE_RENDER_URL": "http://10.0.0.5:8001/, http://10.0.0.6:8001", "GENEVOLVE_RENDER_KEY": "k"}
    )
    assert [e.url for e in found] == ["http://10.0.0.5:8001", "http://10.0.0.6:8001"]
    assert found[0].headers() == {"authorization": "Bearer k"}
    with pytest.raises(SettingsError, match="GENEVOLVE_RENDER_URL is not set"):
        endpoints({})
    with pytest.raises(SettingsError, match="GENEVOLVE_RENDER_URL must begin with https://"):
        endpoints({"GENEVOLVE_RENDER_URL": "http://example.org", "GENEVOLVE_RENDER_KEY": "k"})
