"""The Gemini image API, as a loopback server that speaks its REST shape, and that goes wrong in every way."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from genevolve.errors import SettingsError
from genevolve.render.base import RenderJob
from genevolve.render.gemini import MODEL, Gemini, endpoint, model_name
from genevolve.services.cache import BudgetError, CallCache
from genevolve.services.client import Client
from genevolve.services.endpoint import Endpoint, ServiceError
from genevolve.services.patience import Patience
from tests.render.faults import faults
from tests.render.tiny import opened, picture
from tests.tools.web import Reply, Server, said, send, status

SECRET = "AIza-do-not-print-me"
PATH = f"/v1beta/models/{MODEL}:generateContent"
PNG, JPEG = picture("red", (300, 200)), picture("blue", (200, 300), "JPEG")
DRAWN = picture("green", (64, 48), "JPEG")
JOB = RenderJob("r1", "The first reference image beside the second reference image.", (PNG, JPEG), 3)


def answer(image: Any, **more: Any) -> Any:
    parts = [{"text": "Here it is."}, {"inlineData": {"mimeType": "image/png", "data": image}}]
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}
    return {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 500, "totalTokenCount": 1620}, **more}


GOOD = said(answer(base64.b64encode(DRAWN).decode()))
FAULTS = faults(answer)


class Api:
    """The loopback API and clients of it; sleeps are noted, not slept."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack, self.slept = folder, stack, list[float]()
        self.cache = CallCache(folder / "calls.sqlite")
        self.server = Server({PATH: GOOD})
        stack.enter_context(self.server.running())

    def plays(self, script: Reply | list[Reply]) -> None:
        self.server.script[PATH] = script if isinstance(script, list) else [script]

    def renderer(self, budget: float = 10.0, seconds: float = 20.0, attempts: int = 2) -> Gemini:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        patience = Patience(attempts=attempts, attempt=seconds, total=60)
        where = Endpoint(
            "gemini", f"{self.server.url}/v1beta", SecretStr(SECRET), "x-goog-api-key", rate=1e6, usd_call=0.134
        )
        how: dict[str, Any] = {"sleep": sleep, "draw": lambda: 1.0, "now": lambda: 1000.0 + sum(self.slept)}
        client = Client(where, self.cache, budget=budget, account="t", patience=patience, **how)
        return Gemini(client, self.folder / "renders")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with ExitStack() as stack:
        yield Api(tmp_path, stack)


def test_prompt_and_references_go_as_parts_and_the_key_in_a_header(api: Api) -> None:
    (drawn,) = api.renderer().render([JOB])
    assert opened(drawn).size == (64, 48), "a PNG of ours, though the API sent a JPEG and called it a PNG"
    method, path, headers, body = api.server.requests[0]
    assert (method, path) == ("POST", PATH)
    assert headers["x-goog-api-key"] == SECRET
    assert "authorization" not in headers
    (turn,) = json.loads(body)["contents"]
    assert turn["role"] == "user"
    assert turn["parts"] == [
        {"text": JOB.gen_prompt},
        {"inline_data": {"mime_type": "image/png", "data": base64.b64encode(PNG).decode()}},
        {"inline_data": {"mime_type": "image/jpeg", "data": base64.b64encode(JPEG).decode()}},
    ]
    assert json.loads(body)["generationConfig"] == {"responseModalities": ["TEXT", "IMAGE"]}


def test_a_picture_is_paid_once_and_counted(api: Api) -> None:
    first = api.renderer().render([JOB, JOB])
    assert api.renderer().render([JOB]) == first[:1] == first[1:]
    assert len(api.server.requests) == 1
    spent = api.cache.spent("gemini")
    assert (spent.calls - spent.cached, spent.tokens, spent.cost) == (1, 1620, 0.134)
    assert spent.cached >= 1, "a kept picture is a call that was saved"
    api.renderer().render([RenderJob("r1", JOB.gen_prompt, JOB.references, 4)])
    assert len(api.server.requests) == 2, "another run seed is another picture"


def test_the_budget_ends_the_command_before_it_is_passed_and_keeps_what_was_paid(api: Api) -> None:
    jobs = [RenderJob(f"r{i}", "It.") for i in range(5)]
    with pytest.raises(BudgetError, match=r"\$0\.3 \(world\.budget_usd\), is used up"):
        api.renderer(budget=0.3).render(jobs)
    assert len(api.server.requests) <= 2
    assert api.cache.spent("gemini").cost <= 0.3


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_the_program_is_sent_again(api: Api, name: str) -> None:
    api.plays([FAULTS[name](api.server), GOOD])
    (drawn,) = api.renderer(seconds=1.0 if name in ("hang", "slow drip") else 20.0).render([JOB])
    assert opened(drawn).size == (64, 48)
    assert api.slept == [{"429": 7.0, "503": 9.0}.get(name, 0.5)]
    refused = name in ("429", "500", "503")
    assert api.cache.spent("gemini").cost == pytest.approx(0.134 if refused else 0.268), (
        "what may be counted is counted"
    )


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_makes_the_program_missing_and_only_that_one(api: Api, name: str) -> None:
    fault = FAULTS[name](api.server)

    def reply(h: Any) -> None:
        (fault if b"first reference" in api.server.requests[-1][3] else GOOD)(h)

    api.plays(reply)
    renderer = api.renderer(seconds=0.5 if name in ("hang", "slow drip") else 20.0)
    assert renderer.render([JOB]) == [None]
    (good,) = renderer.render([RenderJob("r2", "It.")])
    assert opened(good).size == (64, 48)


def candidate(**fields: Any) -> Any:
    return said({"candidates": [fields], "usageMetadata": {"totalTokenCount": 12}})


@pytest.mark.parametrize(
    "refusal",
    [
        said({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"totalTokenCount": 9}}),
        candidate(finishReason="IMAGE_SAFETY", finishMessage="no"),
        candidate(finishReason="SAFETY", content={"role": "model"}),
        candidate(finishReason="NO_IMAGE", content={"parts": [{"text": "I would rather not."}]}),
    ],
    ids=["blocked prompt", "image safety", "safety", "no image"],
)
def test_a_refusal_is_a_missing_picture_asked_for_once(api: Api, refusal: Reply) -> None:
    api.plays(refusal)
    assert api.renderer().render([JOB]) == [None]
    assert len(api.server.requests) == 1
    assert api.cache.spent("gemini").cost == 0


def test_words_without_a_picture_are_tried_again_and_thoughts_are_no_pictures(api: Api) -> None:
    thought = {"thought": True, "inlineData": {"mimeType": "image/png", "data": base64.b64encode(PNG).decode()}}
    final = {"inline_data": {"mime_type": "image/jpeg", "data": base64.b64encode(DRAWN).decode()}}
    api.plays(
        [
            candidate(finishReason="STOP", content={"parts": [{"text": "A fine idea!"}]}),
            candidate(finishReason="STOP", content={"parts": [{"text": "hm"}, thought, final]}),
        ]
    )
    (drawn,) = api.renderer().render([JOB])
    assert opened(drawn).size == (64, 48)
    assert len(api.server.requests) == 2


ODD = [None, 5, "text", {}, {"candidates": {}}, {"candidates": [None, 5, {"content": 5}, {"content": {"parts": "x"}}]}]


@pytest.mark.parametrize("value", [*ODD, {"candidates": [{"content": {"parts": [None, {"inlineData": []}]}}]}])
def test_any_odd_answer_is_a_missing_picture(api: Api, value: Any) -> None:
    api.plays(said(value))
    assert api.renderer().render([JOB]) == [None]


INVALID = b'{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}}'


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (status(400, INVALID), "refused the key: check GEMINI_API_KEY"),
        (status(401), "refused the key .HTTP 401."),
        (status(403, b'{"error": {"message": "key AIza-do-not-print-me is blocked"}}'), "refused the key .HTTP 403."),
        (status(404, b'{"error": {"message": "models/x is not found"}}'), "models/x is not found"),
    ],
    ids=["400", "401", "403", "404"],
)
def test_a_refused_key_or_an_unknown_model_ends_the_command(api: Api, reply: Reply, words: str) -> None:
    api.plays(reply)
    with pytest.raises(ServiceError, match=words) as raised:
        api.renderer().render([JOB])
    assert SECRET not in str(raised.value)
    assert len(api.server.requests) == 1


def test_another_bad_request_is_only_this_programs(api: Api) -> None:
    api.plays([send(b'{"error": {"message": "Unable to process input image"}}', 400), GOOD])
    assert api.renderer().render([JOB]) == [None]
    assert api.renderer().render([RenderJob("r2", "It.")]) != [None]


def test_the_environment_holds_the_key_under_one_of_three_names() -> None:
    for name in ("GENEVOLVE_GEMINI_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        assert endpoint({name: SECRET}).headers() == {"x-goog-api-key": SECRET}
    assert endpoint({"GOOGLE_API_KEY": SECRET, "GENEVOLVE_GEMINI_USD_CALL": "0.04"}).usd_call == 0.04
    with pytest.raises(SettingsError, match="GEMINI_API_KEY is not set"):
        endpoint({})
    with pytest.raises(SettingsError, match=r"render\.model 'Qwen/Qwen-Image' is no Gemini model"):
        model_name("Qwen/Qwen-Image")
    assert model_name("") == MODEL
