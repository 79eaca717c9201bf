"""Whose weights a server serves: names, reloads, cards, and what training makes of them. Real servers on loopback."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from genevolve.errors import SettingsError
from genevolve.policy.base import Job, PolicyError, Sampling
from genevolve.policy.openai import ServedPolicy
from genevolve.policy.server import RELOAD, START, load, look_once, read_card, served_name, serving, write_card
from genevolve.services import loop
from genevolve.services.cache import CallCache
from genevolve.services.client import Client
from genevolve.services.endpoint import Endpoint
from genevolve.services.patience import Patience
from genevolve.training.checkpoint import policy_hash, tokenizer_hash
from tests.policy.servers import ModelServer, tiny_folder, tiny_policy
from tests.tools.web import Reply, endless, reset, said, send, status

SAMPLING = Sampling(temperature=0.7, top_p=1.0, max_turn_tokens=12, max_context=80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(str(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def trained(folder: Path, tmp_path: Path) -> Path:
    """The same policy after some training."""
    out = tmp_path / "trained"
    out.mkdir()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            save_file({k: v * 1.01 for k, v in load_file(path).items()}, out / path.name)
        else:
            (out / path.name).write_bytes(path.read_bytes())
    return out


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Client, ModelServer]]]:
    monkeypatch.delenv(RELOAD, raising=False)
    monkeypatch.setenv(START, "20")
    with ExitStack() as stack:

        def begin(flavour: str = "vllm", **fields: Any) -> tuple[Client, ModelServer]:
            server = ModelServer(tiny_policy(), flavour, **fields)
            stack.enter_context(server.running())
            endpoint = Endpoint("policy", server.url, concurrency=4, rate=0)
            patience = Patience(attempts=2, attempt=60, total=100, first_wait=0.01)
            client = Client(endpoint, CallCache(tmp_path / "c"), budget=0, account="", patience=patience)
            stack.callback(client.write_free)
            return client, server

        yield begin


def played(policy: ServedPolicy) -> Any:
    return policy.sample([Job("a", "You are an agent.", "Draw.", lambda _: None)], SAMPLING, 1)[0]


def test_a_name_is_proof_and_any_other_model_is_not_the_folders(start: Any, folder: Path, tmp_path: Path) -> None:
    client, server = start()
    with pytest.raises(
        PolicyError, match=f"serves tiny, not the weights of .*--served-model-name {served_name(folder)}"
    ):
        ServedPolicy.connect(client, "tiny", folder)
    client, server = start(model=served_name(folder))
    policy = ServedPolicy.connect(client, "tiny", folder)
    assert (policy.policy_hash, policy.tokenizer_hash) == (policy_hash(folder), tokenizer_hash(folder))
    assert played(policy).completion_ids
    assert server.asked[-1][1]["model"] == served_name(folder)


def test_training_takes_what_the_server_sampled_from_its_own_weights_and_nothing_else(
    start: Any, folder: Path, trained: Path
) -> None:
    from genevolve.agent.rollout import rollouts
    from genevolve.records import Reward
    from genevolve.training.batch import HashMismatchError, build_rows
    from tests.agent.parts import make_tools, requests

    client, _ = start(model=served_name(folder))
    policy = ServedPolicy.connect(client, "tiny", folder)
    sampled = rollouts(policy, requests(1), 2, make_tools(), SAMPLING, 1, system="You are an agent.")
    sampled = [t.model_copy(update={"reward": Reward(total=0.5)}) for t in sampled]
    how = {"tokenizer_hash": tokenizer_hash(folder), "temperature": 0.7}
    assert len(build_rows(sampled, policy_hash=policy_hash(folder), **how).rows) == 2
    with pytest.raises(HashMismatchError, match="sampled with policy"):
        build_rows(sampled, policy_hash=policy_hash(trained), **how)
    other = ServedPolicy.connect(start()[0], str(folder))  # the very same weights, but only the server says so
    sampled = rollouts(other, requests(1), 1, make_tools(), SAMPLING, 1, system="You are an agent.")
    with pytest.raises(HashMismatchError, match="served-"):
        build_rows(sampled, policy_hash=policy_hash(folder), **how)


def test_sglang_loads_new_weights_and_says_which_it_has(
    start: Any, folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = start("sglang")
    with pytest.raises(PolicyError, match=f"set {RELOAD}"):
        ServedPolicy.connect(client, "tiny", folder)
    monkeypatch.setenv(RELOAD, "sglang")
    before = played(ServedPolicy.connect(client, "tiny", folder))
    assert server.weight_version == served_name(folder)
    after = ServedPolicy.connect(client, "tiny", trained)
    assert after.policy_hash == policy_hash(trained)
    assert played(after).logprobs != before.logprobs
    asked = server.count("/update_weights_from_disk")
    ServedPolicy.connect(client, "tiny", trained)
    assert server.count("/update_weights_from_disk") == asked, "what is there is not loaded again"
    (trained / "config.json").write_text("{")
    save_file({"a": next(iter(load_file(next(folder.glob("*.safetensors"))).values()))}, trained / "model.safetensors")
    says = r"did not load the weights \(/update_weights_from_disk: HTTP 400\). Failed to get"
    with pytest.raises(PolicyError, match=says):
        ServedPolicy.connect(client, "tiny", trained)


def test_vllm_loads_an_adapter_and_lets_the_last_one_go(
    start: Any, folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = start()
    monkeypatch.setenv(RELOAD, "lora")
    with pytest.raises(PolicyError, match="holds no LoRA adapter"):
        ServedPolicy.connect(client, "tiny", folder)
    first = shutil.copytree(folder, tmp_path / "first")
    for path in (first, trained):
        (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
        (path / "tokenizer.json").unlink()  # an adapter's tokenizer may be its base's
        policy = ServedPolicy.connect(client, "tiny", path)
        assert set(server.cards) == {"tiny", served_name(path)}
        assert (policy.model, policy.policy_hash) == (served_name(path), policy_hash(path))
        assert policy.tokenizer_hash == tokenizer_hash(folder)
    body = next(b for p, b in server.asked if p == "/v1/load_lora_adapter")
    assert body == {"lora_name": served_name(first), "lora_path": str(first)}
    server.faults["/v1/load_lora_adapter"] = [status(404, b'{"detail": "Not Found"}')]  # runtime loading is off
    server.cards.pop(served_name(trained))
    with pytest.raises(PolicyError, match=r"did not load the weights \(/load_lora_adapter: HTTP 404\)"):
        ServedPolicy.connect(client, "tiny", trained)


@pytest.mark.parametrize("how", ["sglang", "lora"])
def test_a_load_may_take_longer_than_other_calls_and_is_sent_once(
    start: Any, folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    client, server = start("sglang" if how == "sglang" else "vllm")
    client.patience = Patience(attempts=6, attempt=0.5, total=100, first_wait=0.01)
    monkeypatch.setenv(RELOAD, how)
    if how == "lora":
        (trained / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    path = "/update_weights_from_disk" if how == "sglang" else "/v1/load_lora_adapter"

    def slowly(handler: Any) -> None:
        server.over.wait(0.8)
        server._reply(handler, server.asked[-1][1])(handler)

    server.faults[path] = [status(503), slowly]
    now = loop.run(load(client, trained, loop.run(serving(client))))
    assert now.model_of(served_name(trained))
    assert server.count(path) == 2, "a server that is busy is asked again, one at work is not"
    monkeypatch.setenv(START, "0.6")
    server.weight_version = "another"
    server.cards.pop(served_name(trained), None)
    server.faults[path] = [server.hang()]
    with pytest.raises(
        PolicyError, match=r"did not load the weights \(.*: the policy service does not answer \(time\)"
    ):
        loop.run(load(client, trained, now))
    assert server.count(path) == 3


@pytest.mark.parametrize("how", ["sglang", "lora"])
def test_a_load_whose_answer_is_lost_is_seen_in_what_the_server_says(
    start: Any, folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    client, server = start("sglang" if how == "sglang" else "vllm")
    monkeypatch.setenv(RELOAD, how)
    monkeypatch.setattr("genevolve.policy.server.LOOK_AGAIN", 0.05)
    if how == "lora":
        (trained / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    path = "/update_weights_from_disk" if how == "sglang" else "/v1/load_lora_adapter"

    def loads_and_resets(handler: Any) -> None:
        server._reply(handler, server.asked[-1][1])
        reset(handler)

    server.faults[path] = [loads_and_resets]
    now = loop.run(load(client, trained, loop.run(serving(client))))
    assert now.model_of(served_name(trained))
    assert server.count(path) == 1


def test_a_command_restarts_the_server_and_is_waited_for(
    start: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command tells a server that starts late; meanwhile nobody answers."""
    client, server = start()
    note = tmp_path / "note"
    code = "import os, sys; open(sys.argv[1], 'w').write(os.environ['GENEVOLVE_POLICY_NAME'] + ' ' + os.environ['GENEVOLVE_POLICY_FOLDER'])"
    monkeypatch.setenv(RELOAD, f'{sys.executable} -c "{code}" {note}')
    monkeypatch.setattr("genevolve.policy.server.LOOK_AGAIN", 0.05)
    looks = 0

    def starting(handler: Any) -> None:
        nonlocal looks
        looks += 1
        if looks == 4:
            name = note.read_text().split()[0]
            server.cards = {name: server._card(name)}
        status(503)(handler)

    server.faults["/v1/models"] = [None, *[starting] * 4]
    policy = ServedPolicy.connect(client, "tiny", folder)
    assert policy.policy_hash == policy_hash(folder)
    assert note.read_text().split() == [served_name(folder), str(folder)]
    server.cards = {"tiny": server._card("tiny")}
    monkeypatch.setenv(START, "3")
    monkeypatch.setenv(RELOAD, "true")
    with pytest.raises(PolicyError, match=f"does not serve {served_name(folder)}.*it says: tiny"):
        ServedPolicy.connect(client, "tiny", folder)
    monkeypatch.setenv(START, "20")
    monkeypatch.setenv(RELOAD, "exit 3")
    with pytest.raises(PolicyError, match="ended with 3"):
        ServedPolicy.connect(client, "tiny", folder)
    monkeypatch.setenv(START, "soon")
    with pytest.raises(SettingsError, match=f"{START} must be a number"):
        ServedPolicy.connect(client, "tiny", folder)


def test_a_card_names_a_model_that_only_its_server_knows(start: Any, folder: Path, tmp_path: Path) -> None:
    client, server = start()
    card = write_card(client, "tiny", tmp_path)
    assert write_card(client, "tiny", tmp_path) == card, (
        "the same server, the same folder: stages that were done stay done"
    )
    assert read_card(card) == {"model": "tiny", "root": "/models/tiny", "owned_by": "vllm", "max_model_len": 1280}
    policy = ServedPolicy.connect(client, str(folder), card)
    assert policy.policy_hash.startswith("served-")
    server.cards["tiny"]["root"] = "/models/other"
    assert write_card(client, "tiny", tmp_path) != card
    with pytest.raises(PolicyError, match=r"now reports .*other"):
        ServedPolicy.connect(client, str(folder), card)
    (card / "served.json").write_text("{")
    with pytest.raises(SettingsError, match="is damaged"):
        read_card(card)


def test_of_several_models_one_must_be_named(start: Any) -> None:
    client, server = start()
    server.cards["other"] = server._card("other")
    with pytest.raises(PolicyError, match=r"serves tiny, other: set policy\.base"):
        ServedPolicy.connect(client, "org/model")
    assert ServedPolicy.connect(client, "other").model == "other"
    assert look_once(client.endpoint) == ["tiny", "other"]


def test_another_tokenizer_is_refused(start: Any, folder: Path, project: Path) -> None:
    client, _ = start()
    with pytest.raises(PolicyError, match="reads text as other tokens"):
        ServedPolicy.connect(client, str(project / "assets" / "base-policy"))


def answers(server: ModelServer) -> dict[str, Reply]:
    return {
        "hang": server.hang(),
        "500": status(500),
        "429": status(429, Retry_After="0"),
        "HTML": send(b"<!doctype html><p>Sign in</p>", Content_Type="text/html"),
        "wrong schema": said({"result": "something else"}),
        "truncated": send(b'{"data": [{"id": "', Content_Type="application/json"),
        "reset": reset,
        "drip": endless(b"HTTP/1.1 200 OK\r\n\r\n{"),
    }


FAULTS = ("hang", "500", "429", "HTML", "wrong schema", "truncated", "reset", "drip")
UNREAD = ("HTML", "wrong schema")
"""An answer that is none of a model server's: asking again would not help."""


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_list_of_models_passes_or_is_a_sentence(start: Any, fault: str) -> None:
    client, server = start()
    client.patience = replace(client.patience, attempt=1.0 if fault in ("hang", "drip") else 60.0)
    bad = answers(server)[fault]
    if fault not in UNREAD:
        server.faults["/v1/models"] = [bad]
        assert ServedPolicy.connect(client, "tiny").model == "tiny"
    server.faults["/v1/models"] = [bad] * 2
    says = (
        r"lists no model: GENEVOLVE_POLICY_URL must be" if fault in UNREAD else r"does not answer.*GENEVOLVE_POLICY_URL"
    )
    with pytest.raises(PolicyError, match=says):
        ServedPolicy.connect(client, "tiny")


RELOADS = {"sglang": "/update_weights_from_disk", "lora": "/v1/load_lora_adapter"}


@pytest.mark.faults
@pytest.mark.parametrize("how", RELOADS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_while_weights_are_loaded_passes_or_is_a_sentence_and_no_other_weights_are_sampled(
    start: Any, folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, how: str, fault: str
) -> None:
    client, server = start("sglang" if how == "sglang" else "vllm")
    monkeypatch.setenv(RELOAD, how)
    monkeypatch.setenv(START, "0")
    (trained / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    client.patience = replace(client.patience, attempt=1.0 if fault in ("hang", "drip") else 60.0)
    bad = answers(server)[fault]
    server.faults[RELOADS[how]] = [bad] * 2
    says = f"did not load the weights .{RELOADS[how].removeprefix('/v1')}: the policy service does not answer"
    if fault in UNREAD:  # 200, and yet it has not done it: what it says it serves decides
        says = f"does not serve {served_name(trained)}, the weights of"
    with pytest.raises(PolicyError, match=says):
        ServedPolicy.connect(client, "tiny", trained)
    server.faults[RELOADS[how]] = [] if fault in UNREAD else [bad]
    policy = ServedPolicy.connect(client, "tiny", trained)
    assert policy.policy_hash == policy_hash(trained)
    assert not server.faults[RELOADS[how]]


@pytest.mark.faults
@pytest.mark.parametrize("answer", [said([]), said({"data": [{"no": "id"}]}), status(404), status(200, b"<html>")])
def test_what_is_no_model_server_is_told_in_a_sentence(start: Any, answer: Any) -> None:
    client, server = start()
    server.faults["/v1/models"] = [answer]
    with pytest.raises(PolicyError, match="lists no model: GENEVOLVE_POLICY_URL must be the base URL"):
        ServedPolicy.connect(client, "tiny")
