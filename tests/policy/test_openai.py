"""A policy behind a server: exact token records, limits, seeds, faults. Real servers on loopback with a real tiny model."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import SecretStr

from genevolve.agent.rollout import rollouts
from genevolve.policy.base import Job, PolicyError, Sampled, Sampling
from genevolve.policy.openai import FAILURES, ServedPolicy
from genevolve.policy.pictures import Eyes
from genevolve.records import Trajectory
from genevolve.services.cache import BudgetError, CallCache
from genevolve.services.client import Client
from genevolve.services.endpoint import Endpoint, ServiceError
from genevolve.services.patience import Patience
from tests.agent.parts import make_tools, requests
from tests.policy.servers import ModelServer, tiny, tiny_folder, tiny_policy
from tests.tools.web import Reply, endless, reset, said, send, status

SAMPLING = Sampling(temperature=0.7, top_p=1.0, max_turn_tokens=24, max_context=150, batch=8)
WIDE = replace(SAMPLING, max_context=600)
FEW = replace(SAMPLING, max_turn_tokens=10)
SYSTEM = "You are an image agent."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(str(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def serve(folder: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[ServedPolicy, ModelServer]]]:
    """Give a function that starts a server and connects to it."""
    with ExitStack() as stack:

        def start(
            flavour: str = "vllm",
            logprobs: str = "processed_logprobs",
            *,
            base: str | None = None,
            patience: Patience | None = None,
            prepare: Callable[[ModelServer], None] | None = None,
            key: str = "",
            sent: str | None = None,
            eyes: Eyes | None = None,
            **fields: Any,
        ) -> tuple[ServedPolicy, ModelServer]:
            server = ModelServer(tiny_policy(), flavour, logprobs, key=key)
            stack.enter_context(server.running())
            if prepare is not None:
                prepare(server)
            secret = SecretStr(sent or key) if sent or key else None
            endpoint = Endpoint("policy", server.url, secret, **({"concurrency": 16, "rate": 0.0} | fields))
            cache = CallCache(tmp_path / "calls.sqlite")
            quick = patience or Patience(attempts=3, attempt=60.0, total=200.0, first_wait=0.01)
            client = Client(endpoint, cache, budget=1.0, account="t", patience=quick, draw=lambda: 1.0)
            stack.callback(client.write_free)
            return ServedPolicy.connect(client, str(folder) if base is None else base, eyes=eyes), server

        yield start


def answering(turns: int) -> Callable[[str], str | None]:
    count = 0

    def step(text: str) -> str | None:
        nonlocal count
        count += 1
        return None if count == turns else "<tool_response>\n" + " giraffe" * (3 * count) + "\n</tool_response>"

    return step


def jobs(n: int, turns: int = 3, start: int = 0) -> list[Job]:
    return [Job(f"r{i}/0", SYSTEM, f"Draw {i // 2}.", answering(turns)) for i in range(start, start + n)]


def true_logprobs(s: Sampled, temperature: float) -> torch.Tensor:
    """Log p of the completion by an ordinary forward of the whole sequence: the slow truth."""
    ids = torch.tensor([[*s.prompt_ids, *s.completion_ids]])
    with torch.no_grad():
        logp = torch.log_softmax(tiny()[0](input_ids=ids).logits[0, :-1] / temperature, -1)
    return logp.gather(1, ids[0, 1:, None])[len(s.prompt_ids) - 1 :, 0]


def check_exact(played: list[Sampled], temperature: float) -> None:
    for s in played:
        mask = torch.tensor(s.assistant_mask).bool()
        found = torch.tensor(s.logprobs)
        assert torch.allclose(found[mask], true_logprobs(s, temperature)[mask], atol=2e-4)
        assert not found[~mask].any()


@pytest.mark.parametrize(
    ("flavour", "logprobs", "temperature", "top_p"),
    [
        ("vllm", "processed_logprobs", 0.7, 1.0),
        ("vllm", "raw_logprobs", 1.0, 0.9),
        ("sglang", "", 0.7, 0.95),
    ],
)
def test_records_are_exact_where_the_server_gives_what_training_needs(
    serve: Any, flavour: str, logprobs: str, temperature: float, top_p: float
) -> None:
    policy, server = serve(flavour, logprobs)
    sampling = replace(SAMPLING, temperature=temperature, top_p=top_p)
    assert policy.unfit(sampling) == ""
    played = policy.sample(jobs(12), sampling, seed=5)
    check_exact(played, temperature)
    assert any(not s.overlong for s in played)
    assert any(s.overlong for s in played)
    for s, job in zip(played, jobs(12), strict=True):
        assert s.prompt_ids == policy.words.prompt(job.system, job.question)
        turns = [
            list(g) for key, g in groupby(zip(s.assistant_mask, s.completion_ids, strict=True), lambda p: p[0]) if key
        ]
        assert all(turn[-1][1] == policy.words.end for turn in turns[:-1])
        assert all(len(turn) <= sampling.max_turn_tokens for turn in turns)
        assert len(s.prompt_ids) + len(s.completion_ids) <= sampling.max_context
    assert policy.about()["mode"] == f"tokens ({flavour})"
    path = "/v1/completions" if flavour == "vllm" else "/generate"
    bodies = [b for p, b in server.asked if p == path]
    longest = max((b.get("prompt") or b.get("input_ids") for b in bodies), key=len)
    assert any(longest == [*s.prompt_ids, *s.completion_ids][: len(longest)] for s in played), "sent as it was sampled"


@pytest.mark.parametrize(
    ("flavour", "logprobs", "scaled", "truncated"),
    [("vllm", "raw_logprobs", False, False), ("vllm", "processed_logprobs", True, True), ("sglang", "", True, False)],
)
def test_the_probe_tells_which_distribution_the_log_probs_are_of(
    serve: Any, flavour: str, logprobs: str, scaled: bool, truncated: bool
) -> None:
    policy, _ = serve(flavour, logprobs)
    assert (policy.ability.scaled, policy.ability.truncated) == (scaled, truncated)
    says = policy.unfit(replace(SAMPLING, temperature=0.7, top_p=0.95))
    expected = {
        "raw_logprobs": "--logprobs-mode processed_logprobs",
        "processed_logprobs": "sampling.top_p to 1",
        "": "",
    }
    assert expected[logprobs] in says
    assert bool(says) == bool(expected[logprobs])
    if says:  # such log-probs are in no record, so that no training takes them for its own
        played = policy.sample(jobs(2), replace(SAMPLING, top_p=0.95), seed=1)
        assert all(s.prompt_ids == s.completion_ids == s.logprobs == () for s in played)


@pytest.mark.parametrize("limits", [(24, 150), (12, 150), (24, 60), (24, 5)])
def test_a_greedy_server_plays_what_the_local_policy_plays(serve: Any, limits: tuple[int, int]) -> None:
    sampling = replace(SAMPLING, temperature=0.0, max_turn_tokens=limits[0], max_context=limits[1])
    served, _ = serve()
    ours, theirs = tiny_policy().sample(jobs(8), sampling, 1), served.sample(jobs(8), sampling, 1)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.prompt_ids, a.completion_ids, a.assistant_mask, a.overlong) == (
            b.prompt_ids, b.completion_ids, b.assistant_mask, b.overlong,
        )  # fmt: skip
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=2e-4)


def test_a_conversation_draws_its_own_numbers_in_whatever_company(serve: Any) -> None:
    policy, server = serve(concurrency=4)
    together = policy.sample(jobs(8), SAMPLING, seed=3)
    assert 1 < server.most_at_once <= 4
    assert policy.sample(jobs(3, start=5), SAMPLING, seed=3) == together[5:]
    assert together[0] != together[1], "two rollouts of one prompt"
    assert policy.sample(jobs(8), SAMPLING, seed=4) != together
    seeds = [b["seed"] for p, b in server.asked if p == "/v1/completions" and len(b["prompt"]) > 20]
    assert all(0 <= s < 2**31 for s in seeds)


def test_a_chat_server_is_played_at_message_level_and_refused_for_training(serve: Any) -> None:
    from genevolve.training.batch import TrainingDataError, build_rows

    policy, server = serve("chat")
    assert policy.about()["mode"] == "message level"
    assert "message level (it gives no token ids with log-probs: HTTP 404" in policy.unfit(SAMPLING)
    played = rollouts(policy, requests(3), 2, make_tools(), WIDE, 1, system=SYSTEM)
    assert [t.rollout for t in played] == [0, 1] * 3
    assert any(len(t.messages) > 4 for t in played)
    assert all(t.completion_ids == () for t in played)
    assert {t.termination for t in played} <= {"length", "rounds", "protocol"}
    with pytest.raises(TrainingDataError, match="no prompt tokens"):
        build_rows(
            [played[0]],
            policy_hash=policy.policy_hash,
            tokenizer_hash=policy.tokenizer_hash,
            temperature=SAMPLING.temperature,
        )
    bodies = [b for p, b in server.asked if p == "/v1/chat/completions"]
    assert max(len(b["messages"]) for b in bodies) > 2
    assert all(b["messages"][0] == {"role": "system", "content": SYSTEM} for b in bodies)


def test_pictures_of_an_observation_are_shown_behind_it_and_training_is_refused(serve: Any) -> None:
    drawn = io.BytesIO()
    Image.new("RGB", (600, 300), (200, 40, 40)).save(drawn, "PNG")
    files = {"web/a.png": drawn.getvalue(), "web/broken.png": b"no picture"}
    policy, server = serve("vllm", eyes=Eyes(files.__getitem__, pixels=128 * 64))
    assert policy.about()["mode"] == "message level"
    assert "set sampling.show_images to 0" in policy.unfit(SAMPLING)
    wanted = [("IMG_001", "web/a.png"), ("IMG_002", "web/broken.png")]
    job = Job("a", SYSTEM, "Draw.", answering(3), lambda: wanted)
    (played,) = policy.sample([job], replace(WIDE, max_turn_tokens=200, max_context=1200), 1)
    assert (played.completion_ids, played.failed) == ((), "")
    bodies = [b for p, b in server.asked if p == "/v1/chat/completions"]
    assert len(bodies) == 3
    assert isinstance(bodies[0]["messages"][-1]["content"], str), "nothing has been searched yet"
    text, label, picture = bodies[-1]["messages"][-1]["content"]
    assert text["text"].startswith("<tool_response>")
    assert label == {"type": "text", "text": "IMG_001:"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.size == (128, 64)
    assert bodies[-1]["messages"][3] == bodies[1]["messages"][3], "each turn tells all that was shown before it"


def test_without_a_tokenizer_it_is_message_level_and_the_sentence_says_how_to_get_one(serve: Any) -> None:
    policy, _ = serve("vllm", base="org/unknown")
    assert "hf download org/unknown tokenizer.json" in policy.unfit(SAMPLING)
    assert policy.model == "tiny", "the only one that is served"
    played = policy.sample(jobs(3), SAMPLING, 1)
    assert len(played) == 3


def test_a_reasoning_parser_is_undone(serve: Any) -> None:
    said_ = {"message": {"content": "<answer>{}</answer>", "reasoning_content": "hm"}, "finish_reason": "stop"}
    policy, server = serve("chat")
    server.faults["/v1/chat/completions"] = [said({"choices": [said_]})]
    heard: list[str] = []
    policy.sample([Job("a", SYSTEM, "Draw.", lambda text: heard.append(text))], SAMPLING, 1)  # type: ignore[func-returns-value]
    assert heard == ["<think>hm</think><answer>{}</answer>"]


def one_token(server: ModelServer, logprob: float | None, finish: str) -> Reply:
    """An answer in the flavour's form."""
    if server.flavour == "sglang":
        about = {"output_token_logprobs": [[logprob, 5, None]], "finish_reason": {"type": finish}}
        return said({"text": "", "output_ids": [5], "meta_info": about})
    if server.flavour == "chat":
        return said(
            {"choices": [{"message": {"content": None if logprob is None else "The"}, "finish_reason": finish}]}
        )
    logprobs = {"tokens": ["token_id:5"], "token_logprobs": [logprob]}
    return said({"choices": [{"logprobs": logprobs, "finish_reason": finish}]})


def bodies(server: ModelServer) -> dict[str, Reply]:
    return {
        "429": status(429, Retry_After="0"),
        "500": status(500),
        "hang": server.hang(),
        "truncated": send(b'{"choices": [{"logpr', length=20),
        "wrong form": said({"choices": [{"text": "hello", "finish_reason": "stop"}]}),
        "no numbers": one_token(server, None, "stop"),
        "abort": one_token(server, -1.0, "abort"),
        "html": send(b"<html>Bad Gateway</html>", Content_Type="text/html"),
        "drip": endless(b"HTTP/1.1 200 OK\r\n\r\n{"),
        "reset": reset,
    }


SILENT = ("hang", "drip")
PATHS = {"vllm": "/v1/completions", "sglang": "/generate", "chat": "/v1/chat/completions"}
KINDS = ("429", "500", "hang", "truncated", "wrong form", "no numbers", "abort", "html", "drip", "reset")


@pytest.mark.faults
@pytest.mark.parametrize("flavour", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_passing_fault_changes_nothing(serve: Any, kind: str, flavour: str) -> None:
    patience = Patience(attempts=5, attempt=3.0 if kind in SILENT else 60.0, total=200.0, first_wait=0.01)
    policy, server = serve(flavour, patience=patience, concurrency=3)
    expected = policy.sample(jobs(4, turns=2), FEW, seed=2)
    path = PATHS[flavour]
    server.faults[path] = [None, None, bodies(server)[kind], bodies(server)[kind]]
    assert policy.sample(jobs(4, turns=2), FEW, seed=2) == expected
    assert not server.faults[path]


@pytest.mark.faults
@pytest.mark.parametrize("flavour", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_lasting_fault_costs_its_own_conversation_and_says_why(serve: Any, kind: str, flavour: str) -> None:
    patience = Patience(attempts=2, attempt=3.0 if kind in SILENT else 60.0, total=200.0, first_wait=0.01)
    policy, server = serve(flavour, patience=patience, concurrency=1)
    server.faults[PATHS[flavour]] = [None, None, *[bodies(server)[kind]] * 2]  # in the middle of a conversation
    played: list[Trajectory] = rollouts(policy, requests(2), 2, make_tools(), WIDE, 2, system=SYSTEM)
    broken = [t for t in played if t.termination == "error"]
    assert len(broken) == 1
    assert broken[0].failure.startswith("The policy's server failed: the policy service does not answer (")
    assert len(played) == 4, "no record is lost"
    assert len(broken[0].logprobs) == len(broken[0].completion_ids)


@pytest.mark.faults
def test_a_refused_key_ends_the_command_and_shows_no_key(serve: Any) -> None:
    with pytest.raises(ServiceError, match="refused the key") as error:
        serve(key="sk-right-0123456789", sent="sk-wrong-0123456789")
    assert "0123456789" not in str(error.value)
    policy, server = serve(key="sk-right-0123456789")
    server.faults["/v1/completions"] = [None] * 5 + [status(401)]
    told: list[int] = []
    with pytest.raises(ServiceError, match="refused the key"):
        policy.sample(jobs(40), SAMPLING, 1, lambda i, _: told.append(i))


@pytest.mark.faults
def test_a_server_that_is_down_ends_the_command_and_keeps_what_was_played(serve: Any) -> None:
    policy, server = serve(patience=Patience(attempts=1, attempt=60, total=60), concurrency=4)
    server.faults["/v1/completions"] = [None] * 12 + [status(503)] * 1000
    told: list[Sampled] = []
    with pytest.raises(PolicyError, match=f"{FAILURES} conversations in a row have failed") as error:
        policy.sample(jobs(200, turns=1), FEW, 1, lambda _, s: told.append(s))
    assert "HTTP 503" in str(error.value)
    assert sum(not s.failed for s in told) == 12


@pytest.mark.faults
def test_a_server_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    client = Client(
        Endpoint("policy", "http://127.0.0.1:9/v1"),
        CallCache(tmp_path / "c"),
        budget=0,
        account="",
        patience=Patience(attempts=1),
    )
    with pytest.raises(PolicyError, match=r"does not answer.*GENEVOLVE_POLICY_URL"):
        ServedPolicy.connect(client, "tiny")


def test_the_servers_own_limit_is_kept_and_one_it_only_shows_in_an_error_is_too_long_not_a_failure(serve: Any) -> None:
    policy, _ = serve(prepare=lambda server: server.shorten(100))
    assert policy.longest == 100
    wide = replace(SAMPLING, max_context=100_000, max_turn_tokens=4000)
    played = policy.sample(jobs(3, turns=50), wide, 1)
    assert all(
        len(s.prompt_ids) + len(s.completion_ids) <= 100 and "The trajectory has 100" in s.overlong for s in played
    )
    policy.longest = None
    assert all("longer than the server allows" in s.overlong and not s.failed for s in policy.sample(jobs(2), wide, 1))


def test_steps_that_wait_hold_up_nobody(serve: Any) -> None:
    policy, _ = serve(concurrency=8)
    together = threading.Barrier(8, timeout=20)  # broken, and so an error, unless eight steps wait at the same time

    def step(_: str) -> None:
        together.wait()

    many = [Job(str(i), SYSTEM, "Draw.", lambda _: None) for i in range(24)]
    short = [j for j, s in zip(many, policy.sample(many, SAMPLING, 1), strict=True) if not s.overlong]
    assert len(short) >= 8
    policy.sample([replace(j, step=step) for j in short[:8]], SAMPLING, 1)
    assert not together.broken


def test_an_error_for_the_user_leaves_a_step_and_ends_the_command(serve: Any) -> None:
    policy, _ = serve()

    def step(_: str) -> str:
        raise BudgetError("used up")

    with pytest.raises(BudgetError, match="used up"):
        policy.sample([Job(str(i), SYSTEM, "Draw.", step) for i in range(6)], WIDE, 1)


def test_free_calls_are_counted_and_paid_ones_stop_at_the_budget(serve: Any) -> None:
    policy, server = serve()
    policy.sample(jobs(4), SAMPLING, 1)
    spent = policy.client.cache.spent("policy")
    asked = server.count("/v1/completions") - 3  # the probe's
    assert (spent.calls, spent.cost) == (asked, 0)
    assert spent.tokens > 100
    policy, _ = serve(usd_out=25_000.0)  # 24 tokens a turn are .6 dollars
    with pytest.raises(BudgetError):
        policy.sample(jobs(4), SAMPLING, 1)
    assert policy.client.cache.spent("policy").cost <= 1.0


@pytest.mark.parametrize(("question", "sent"), [("ab" * 300, True), ("画" * 600, False)])
def test_at_message_level_a_question_in_chinese_reserves_a_token_for_each_character(
    serve: Any, question: str, sent: bool
) -> None:
    policy, server = serve("chat", usd_in=2000.0)  # a dollar is 500 tokens in
    before = server.count("/v1/chat/completions")
    job = Job("r0/0", "Draw.", question, answering(1))
    if sent:
        policy.sample([job], SAMPLING, 1)
    else:
        with pytest.raises(BudgetError):
            policy.sample([job], SAMPLING, 1)
    assert (server.count("/v1/chat/completions") > before) == sent
