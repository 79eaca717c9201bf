"""The stages with a policy behind a server: the same records as the local one, all at once, and resumed where they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from genevolve.agent.chat import prompt_text
from genevolve.agent.format import answer_turn, call_turn
from genevolve.agent.system import system_prompt
from genevolve.cli.using import policy_of
from genevolve.dataset.public import load_requests
from genevolve.errors import TRY_LATER, GenEvolveError, SettingsError, StageError, TryLaterError
from genevolve.policy.base import PolicyError
from genevolve.policy.local import LocalPolicy
from genevolve.policy.server import RELOAD, served_name
from genevolve.profiles import load
from genevolve.records import Trajectory, read_jsonl, write_jsonl
from genevolve.services.endpoint import ServiceError
from genevolve.services.patience import Patience
from genevolve.settings import Settings
from genevolve.stages import backends, bench, evolve, generate
from genevolve.stages.journal import NAME, Journal
from genevolve.training.checkpoint import policy_hash
from tests.policy.servers import ModelServer
from tests.tools.web import Server, said, status

OVER = ("sampling.workers=1", "sampling.max_turn_tokens=64", "sampling.max_context=700", "sampling.bench_temperature=0")


def of_server(*more: str) -> Settings:
    return load("tiny", overrides=[*OVER, "policy.backend=openai", *more])


@pytest.fixture
def start(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModelServer]]:
    """Give a function that serves the embedded base and points the environment to it."""
    base = project / "assets" / "base-policy"
    for name in ("GENEVOLVE_POLICY_URL", "GENEVOLVE_POLICY_KEY", "OPENAI_API_KEY", RELOAD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GENEVOLVE_WEB", str(tmp_path / "web"))
    monkeypatch.setenv("GENEVOLVE_POLICY_CONCURRENCY", "4")
    with ExitStack() as stack:

        def begin(flavour: str = "vllm", name: str = "", **fields: Any) -> ModelServer:
            server = ModelServer(LocalPolicy.load(base), flavour, model=name or served_name(base), **fields)
            stack.enter_context(server.running())
            monkeypatch.setenv("GENEVOLVE_POLICY_URL", server.url)
            backends.policy_client.cache_clear()
            # the served prompt is long, and the embedded base has never seen it
            monkeypatch.setattr("genevolve.stages.served.system_text", lambda _: backends.load_embedded())
            monkeypatch.setattr("genevolve.stages.generate.system_text", lambda _: backends.load_embedded())
            return server

        monkeypatch.setattr(backends, "load_embedded", _embedded, raising=False)
        yield begin
        backends.policy_client.cache_clear()


def _embedded() -> str:
    from genevolve.agent.system import load_system

    return load_system("system_embedded")


@pytest.fixture
def base(project: Path) -> Path:
    return project / "assets" / "base-policy"


def test_the_served_bench_has_the_local_ones_records_and_pictures(
    start: Any, dataset: Path, base: Path, tmp_path: Path
) -> None:
    start()
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    ours = bench.run(load("tiny", overrides=OVER), dataset=dataset, policy=base, out=here)
    theirs = bench.run(of_server(), dataset=dataset, policy=base, out=there)
    assert theirs["summary"] == ours["summary"]
    assert theirs["sampling"]["reward"] == ours["sampling"]["reward"]
    assert (there / "scores.json").read_bytes() == (here / "scores.json").read_bytes()
    assert {p.name: p.read_bytes() for p in (there / "images").iterdir()} == {
        p.name: p.read_bytes() for p in (here / "images").iterdir()
    }
    a, b = ([*read_jsonl(p / "blocks" / "00000.jsonl", Trajectory)] for p in (here, there))
    told = {"prompt_ids", "completion_ids", "assistant_mask", "logprobs"}  # greedy at top-p .9: not what training needs
    assert [t.model_dump(exclude=told) for t in a] == [t.model_dump(exclude=told) for t in b]
    assert not (there / NAME).exists()
    about = json.loads((there / "policy_server.json").read_text())
    assert (about["mode"], about["policy_hash"]) == ("tokens (vllm)", policy_hash(base))


@pytest.mark.faults
def test_a_bench_that_was_cut_off_asks_only_for_what_is_missing(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENEVOLVE_POLICY_CONCURRENCY", "1")  # one after the other: the first are done when it ends
    server = start()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = bench.run(of_server(), dataset=dataset, policy=base, out=whole)
    asked = server.count("/v1/completions")
    server.asked.clear()
    server.faults["/v1/completions"] = [None] * (asked // 2) + [status(401)] * 20
    with pytest.raises(ServiceError):
        bench.run(of_server(), dataset=dataset, policy=base, out=broken)
    kept = [json.loads(line)["id"] for line in (broken / NAME).read_text().splitlines()[1:]]
    assert 0 < len(set(kept)) < len(load_requests(dataset, "bench"))
    with (broken / NAME).open("a") as stream:
        stream.write('{"id": "torn')  # the line that the kill cut
    server.faults.clear()
    server.asked.clear()
    assert bench.run(of_server(), dataset=dataset, policy=base, out=broken)["summary"] == expected["summary"]
    assert server.count("/v1/completions") < asked, "what was on disk is not played again"
    requests = load_requests(dataset, "bench")
    assert begun(server, [r.question for r in requests if f"{r.id}-0" in kept]) == 0
    assert begun(server, [r.question for r in requests if f"{r.id}-0" not in kept]) == len(requests) - len(set(kept))


def begun(server: ModelServer, questions: list[str]) -> int:
    """How many of these were asked from their beginning."""
    first = [server.policy.encode(prompt_text(system_prompt(_embedded()), q)) for q in questions]
    asked = [b["prompt"] for p, b in server.asked if p == "/v1/completions"]
    return sum(f in asked for f in first)


@pytest.mark.faults
def test_a_kill_loses_at_most_what_is_in_flight(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers until five conversations have begun. Then both of its callers wait, and nothing moves any more: all
    that had ended must be on disk."""
    server, in_flight = start(), 2
    monkeypatch.setenv("GENEVOLVE_POLICY_CONCURRENCY", str(in_flight))
    requests = load_requests(dataset, "bench")
    questions = [r.question for r in requests]
    answer, killed = server._completions, threading.Event()
    waiting: list[Any] = []

    def held(body: Any) -> tuple[int, Any]:
        if begun(server, questions) < 5 or killed.is_set():
            return answer(body)
        waiting.append(body)
        killed.wait(200)
        return 503, {}

    monkeypatch.setattr(server, "_completions", held)
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import sys; from pathlib import Path; from tests.stages import test_served as t; from genevolve.stages import bench, served;"
        "served.system_text = lambda _: t._embedded();"
        "bench.run(t.of_server(), dataset=Path(sys.argv[1]), policy=Path(sys.argv[2]), out=Path(sys.argv[3]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(dataset), str(base), str(out)], start_new_session=True)

    def ids() -> set[str]:
        lines = (out / NAME).read_bytes().split(b"\n")[1:-1] if (out / NAME).exists() else []
        return {json.loads(line)["id"] for line in lines}

    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and child.poll() is None:
        if len(waiting) == in_flight and begun(server, questions) - len(ids()) <= in_flight:
            break
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    kept = ids()
    assert len(waiting) == in_flight
    assert begun(server, questions) - len(kept) <= in_flight
    killed.set()
    server.asked.clear()
    bench.run(of_server(), dataset=dataset, policy=base, out=out)
    assert begun(server, [r.question for r in requests if f"{r.id}-0" in kept]) == 0
    assert begun(server, [r.question for r in requests if f"{r.id}-0" not in kept]) == len(requests) - len(kept)
    assert len(list(read_jsonl(out / "blocks" / "00000.jsonl", Trajectory))) == len(load_requests(dataset, "bench"))


@pytest.mark.faults
def test_a_search_that_is_down_ends_the_command_and_the_same_command_goes_on(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genevolve.tools import serper

    server = start("chat")

    def turn(body: Any) -> tuple[int, Any]:
        question, number = body["messages"][1]["content"], len(body["messages"]) // 2 - 1
        if number < 3:
            text = call_turn("", "search", f"{question} {number}")
        elif number == 3:
            text = call_turn("", "image_search", "giraffe")
        else:
            text = answer_turn("so", "The first reference image, alone and large.", [("IMG_001", "a giraffe")])
        return 200, {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}

    monkeypatch.setattr(server, "_chat", turn)
    monkeypatch.setenv("GENEVOLVE_POLICY_CONCURRENCY", "1")  # one after the other: the first are done when it ends
    monkeypatch.setattr(serper, "Patience", lambda: Patience(attempts=1))
    backends.serper.cache_clear()
    found = said({"organic": [{"title": "A", "link": "https://e.example/", "snippet": "b"}]})
    service = Server({"/search": [found] * 5 + [status(503)]})
    monkeypatch.setenv("SERPER_API_KEY", "a-key")
    monkeypatch.setenv("GENEVOLVE_SERPER_URL", service.url)
    settings, out = of_server("world.search=serper", "world.budget_usd=1"), tmp_path / "out"
    out.mkdir()
    with service.running():
        with pytest.raises(TryLaterError, match=r"The search stops: .*HTTP 503.*the same command goes on") as error:
            bench.run(settings, dataset=dataset, policy=base, out=out)
        assert error.value.exit_code == TRY_LATER
        kept = {json.loads(line)["id"] for line in (out / NAME).read_text().splitlines()[1:]}
        answered = {body for *_, body in service.requests[:5]}
        server.asked.clear()
        service.requests.clear()
        service.script["/search"] = [found]
        bench.run(settings, dataset=dataset, policy=base, out=out)
    requests = load_requests(dataset, "bench")
    opened = [
        b["messages"][1]["content"]
        for p, b in server.asked
        if p.endswith("chat/completions") and len(b["messages"]) == 2
    ]
    assert kept
    assert sorted(opened) == sorted(r.question for r in requests if f"{r.id}-0" not in kept)
    again = [body for *_, body in service.requests]
    assert again
    assert not answered & set(again), "an answered query is not paid again"
    rows = list(read_jsonl(out / "blocks" / "00000.jsonl", Trajectory))
    assert len(rows) == len(requests)
    assert all(t.reward and t.reward.total for t in rows)


def test_an_evolution_gives_the_server_each_rounds_weights(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start("sglang", name="tiny")
    monkeypatch.setenv(RELOAD, "sglang")
    small = ("sampling.k=2", "cycle.steps=2", "cycle.requests_per_step=2", "cycle.validate_every=2")
    metrics = evolve.run(of_server(*small), dataset=dataset, parent=base, out=tmp_path)
    loaded = [b["weight_version"] for p, b in server.asked if p == "/update_weights_from_disk"]
    assert loaded[0] == served_name(base)
    assert len(loaded) == len(set(loaded)) == 3, "the parent, after round one, and after round two for validation"
    assert len(metrics["curve"]) == 2
    for step in ("001", "002"):
        rows = list(read_jsonl(tmp_path / "rounds" / step / "trajectories.jsonl", Trajectory))
        assert len(rows) == 4
        assert all(t.logprobs and t.policy_hash for t in rows)
        assert served_prefix(rows[0].policy_hash) == loaded[int(step) - 1]
        assert not (tmp_path / "rounds" / step / NAME).exists()


def test_a_model_of_the_hugging_face_cache_is_what_the_server_is_given_whatever_it_serves(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "hub" / "models--Some--Base" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for path in base.iterdir():
        (snapshot / path.name).symlink_to(path)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv(RELOAD, "sglang")
    server = start("sglang", name="evolved")
    folder = policy_of("Some/Base", of_server())
    found = bench.run(of_server("bench.requests=2"), dataset=dataset, policy=folder, out=tmp_path)
    (given,) = [b for p, b in server.asked if p == "/update_weights_from_disk"]
    assert (given["model_path"], given["weight_version"]) == (str(snapshot), served_name(base))
    rows = list(read_jsonl(tmp_path / "blocks" / "00000.jsonl", Trajectory))
    assert {t.policy_hash for t in rows} == {policy_hash(base)}
    assert found["summary"]["all"]["n"] == 2


def served_prefix(digest: str) -> str:
    return "genevolve-" + digest[:16]


def test_an_evolution_is_refused_before_anything_is_played_where_training_could_not_use_it(
    start: Any, dataset: Path, base: Path, tmp_path: Path
) -> None:
    server = start(logprobs="raw_logprobs")
    with pytest.raises(PolicyError, match="--logprobs-mode processed_logprobs"):
        evolve.run(of_server(), dataset=dataset, parent=base, out=tmp_path)
    assert server.count("/v1/completions") == 3, "the probe's"
    start("chat")
    with pytest.raises(PolicyError, match="message level"):
        evolve.run(of_server(), dataset=dataset, parent=base, out=tmp_path)
    with pytest.raises(SettingsError, match=r"set sampling\.show_images to 0"):
        evolve.run(of_server("sampling.show_images=2"), dataset=dataset, parent=base, out=tmp_path)


def test_a_served_policy_is_shown_the_pictures_of_the_tools(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    settings = of_server("sampling.show_images=2", "sampling.image_pixels=4096", "sampling.max_context=1200")
    searches = call_turn("I look.", "image_search", "giraffe")
    said = (*server.policy.encode(searches), server.policy.end)
    monkeypatch.setattr(server, "_draw", lambda *_: (list(said), [], [], server.policy.end))
    with suppress(StageError):  # it never comes to an answer
        list(generate.run(settings, question="Draw.", policy=base, out=tmp_path / "g.png", dataset=dataset))
    second = [b for p, b in server.asked if p == "/v1/chat/completions"][1]
    parts = second["messages"][-1]["content"]
    assert [p["type"] for p in parts] == ["text", "text", "image_url", "text", "image_url"]
    assert [p["text"] for p in parts[1::2]] == ["IMG_001:", "IMG_002:"]
    assert parts[2]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")


def test_a_conversation_that_the_server_failed_is_missing_and_not_nought(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENEVOLVE_POLICY_CONCURRENCY", "1")
    server = start()
    server.faults["/v1/completions"] = [None] * 4 + [status(422, b'{"error": {"message": "no"}}')]
    found = bench.run(of_server(), dataset=dataset, policy=base, out=tmp_path)
    rows = list(read_jsonl(tmp_path / "blocks" / "00000.jsonl", Trajectory))
    broken = [t for t in rows if t.termination == "error"]
    assert [t.failure for t in broken] == [
        "The policy's server failed: the policy service refused the call (HTTP 422) It says: no."
    ]
    assert broken[0].reward is not None
    assert broken[0].reward.total is None
    assert json.loads((tmp_path / "scores.json").read_text())["all"][broken[0].request_id] is None
    assert found["sampling"]["missing_rewards"] == 1


def test_generate_and_the_command_line_take_what_is_served(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    from genevolve.cli import app

    start("chat", name="their-model")
    card = backends.server_card(of_server())
    lines = []
    try:
        lines += generate.run(
            of_server(), question="Draw a giraffe.", policy=card, out=tmp_path / "g.png", dataset=dataset
        )
    except Exception as e:
        lines.append(str(e))
    assert lines
    played = json.loads((tmp_path / "g.trajectory.json").read_text())
    assert played["policy_hash"].startswith("served-")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    asked = ["generate", "Draw a giraffe.", "--policy", "server", "--profile", "tiny", "--dataset", str(dataset)]
    done = CliRunner().invoke(app, [*asked, "--set", "policy.backend=openai", "--out", str(tmp_path / "h.png")])
    assert (tmp_path / "h.trajectory.json").exists(), done.output
    assert len(list((tmp_path / "build" / "served").iterdir())) == 1


@pytest.mark.parametrize("flavour", ["vllm", "chat"])
def test_another_checkpoint_is_asked_with_its_own_prompt_file_word_for_word(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    from genevolve.stages.backends import system_text

    server = start(flavour)
    for stage in ("served", "generate"):
        monkeypatch.setattr(f"genevolve.stages.{stage}.system_text", system_text)
    text = 'You are the released agent.\n\n# Tools\n<tools>\n{"name": "search"}\n</tools>\nAnswer in <answer>.'
    (tmp_path / "system_prompt.md").write_text(f"{text}\n")
    settings = of_server(f"policy.system={tmp_path / 'system_prompt.md'}")
    with suppress(GenEvolveError):  # the tiny policy writes no program
        list(generate.run(settings, question="Draw a giraffe.", policy=base, out=tmp_path / "g.png", dataset=dataset))
    bodies = [body for path, body in server.asked if path.endswith("completions")]
    if flavour == "chat":
        assert bodies[-1]["messages"][0] == {"role": "system", "content": text}
    else:
        prompts = [server.policy.tokenizer.decode(b["prompt"], skip_special_tokens=False) for b in bodies]
        assert prompts[-1].startswith(f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nDraw a giraffe."), (
            prompts
        )


@pytest.mark.parametrize("dialogue", ["release", "ours"])
def test_a_policy_that_plays_by_the_releases_rules_is_understood_in_its_dialogue_alone(
    start: Any, dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialogue: str
) -> None:
    server = start("chat")

    def turn(body: Any) -> tuple[int, Any]:
        number = sum(m["role"] == "assistant" for m in body["messages"])
        looked = {"name": "image_search", "arguments": {"query": "giraffe", "top_k": 2}}
        answer = {
            "gen_prompt": "The first reference image, alone and large.",
            "reference_images": [{"img_id": "IMG_001", "note": "its shape " * 50}],
        }
        text = (
            'I begin.\n<tool_call>\n{"name": "search", "arguments": {"queries": "giraffe"}}\n</tool_call>',
            f"<think>look</think>\n<tool_call>\n{json.dumps(looked)}\n</tool_call>",
            f"<answer>\n{json.dumps(answer)}\n</answer>",
        )[number]
        return 200, {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}

    monkeypatch.setattr(server, "_chat", turn)
    limits = ("sampling.rounds=3", "sampling.tool_calls=2", "sampling.max_context=4096", "bench.requests=2")
    bench.run(of_server(f"policy.dialogue={dialogue}", *limits), dataset=dataset, policy=base, out=tmp_path)
    rows = list(read_jsonl(tmp_path / "blocks" / "00000.jsonl", Trajectory))
    assert len(rows) == 2
    for t in rows:
        assert t.reward is not None
        if dialogue == "ours":
            assert (t.program, t.reward.total, t.termination) == (None, 0, "protocol")
            continue
        assert t.program is not None
        assert len(t.program.files) == 1
        assert t.reward.total is not None
        assert (t.termination, t.format_errors) == ("answer", 0)
        asked = [m.content for m in t.messages if m.role == "user"]
        assert asked[1].startswith("<tool_response>\n--- search result for [giraffe] ---\n1. title: ")
        assert asked[2].startswith("<tool_response>\n--- image search result for [giraffe] ---\nIMG_001: title: ")
        assert "</tool_response>\n=== FINAL STEP ===\n" in asked[2]


def test_a_server_that_is_not_named_is_told_before_anything_starts(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GENEVOLVE_POLICY_URL", raising=False)
    backends.policy_client.cache_clear()
    with pytest.raises(SettingsError, match="GENEVOLVE_POLICY_URL is not set"):
        bench.run(of_server(), dataset=dataset, policy=base, out=tmp_path)


def test_a_journal_is_read_back_and_belongs_to_one_question(tmp_path: Path) -> None:
    def record(n: int, **more: Any) -> Trajectory:
        return Trajectory(id=f"r-{n}", request_id="r", rollout=n, question="q", messages=(), **more)

    path = tmp_path / "deep" / NAME
    first = Journal(path, {"seed": 1})
    for n in range(3):
        first.add(record(n))
    first.add(record(1, failure="later"))
    first.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "r-3", "requ')
    again = Journal(path, {"seed": 1})
    assert {i: t.failure for i, t in again.known.items()} == {"r-0": "", "r-1": "later", "r-2": ""}
    again.add(record(4))
    again.close()
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 6
    assert Journal(path, {"seed": 2}).known == {}
    write_jsonl(path, [record(0)])
    assert Journal(path, {"seed": 2}).known == {}, "a file of another kind"


def test_doctor_says_whether_the_policys_server_is_there(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from genevolve.doctor.profile import _policy_server

    missing = _policy_server(of_server())
    assert (missing.ok, missing.said) == (False, "GENEVOLVE_POLICY_URL is not set")
    start(name="their-model", key="sk-secret-0123456789")
    refused = _policy_server(of_server())
    assert not refused.ok
    assert "without a key" in refused.said
    assert "refused the key" in refused.said
    monkeypatch.setenv("GENEVOLVE_POLICY_KEY", "sk-secret-0123456789")
    found = _policy_server(of_server())
    assert found.ok, found.said
    assert found.said.endswith("with a key; serves their-model")
    assert "0123456789" not in found.line() + refused.line()
    monkeypatch.setenv("GENEVOLVE_POLICY_URL", "http://127.0.0.1:9/v1")
    assert "does not answer (no connection)" in _policy_server(of_server()).said


def test_doctor_says_whether_new_weights_have_a_way_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from genevolve.doctor.examine import examine

    line = lambda name: {f.what: f for f in examine(name)}.get("policy reload")  # noqa: E731
    monkeypatch.delenv("GENEVOLVE_POLICY_RELOAD", raising=False)
    missing = line("paper")
    assert missing is not None
    assert missing.line().startswith("MISSING  policy reload    GENEVOLVE_POLICY_RELOAD is not set; blocks evolve")
    for how, shown in (("sglang", "sglang"), ("lora", "lora"), ("restart --token s3cret", "a command")):
        monkeypatch.setenv("GENEVOLVE_POLICY_RELOAD", how)
        found = line("paper")
        assert found is not None
        assert (found.ok, found.said) == (True, shown)
    assert line("embedded") is None, "it is sampled in this process"
