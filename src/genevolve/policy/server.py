"""Which model a policy's server serves, whether these are a folder's weights, and how to make it load them (ours).

Identity. A folder's weights are served when the server itself says their name, `genevolve-` and the beginning of the
folder's policy hash: as a served model (vLLM --served-model-name, or a LoRA adapter of that name), or as SGLang's
weight_version. A path proves nothing, for a folder's content may have changed since the server read it. Any other model
has a hash of what the server reports, which no folder ever has, so that training refuses its trajectories.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genevolve.errors import SettingsError
from genevolve.files import write_whole
from genevolve.policy.base import PolicyError
from genevolve.services import loop
from genevolve.services.cache import CallCache
from genevolve.services.client import CallError, Client
from genevolve.services.endpoint import Endpoint, number
from genevolve.services.patience import Patience
from genevolve.training.checkpoint import policy_hash

RELOAD, START = "GENEVOLVE_POLICY_RELOAD", "GENEVOLVE_POLICY_START"
"""Variables: how weights reach the server (`lora`, `sglang` or a shell command); seconds it may take to serve them."""
PREFIX = "genevolve-"
CARDS, CARD = Path("build/served"), "served.json"
"""Where policy folders without weights lie, and the file in one that says which model of a server is meant."""
LOOK_AGAIN = 2.0
"""Seconds between two looks at a server that is starting."""
AFTER_LOST = 60.0
"""Seconds for which a server is looked at whose answer to a load was lost: it may have loaded the weights all the same."""


class _LostError(PolicyError):
    """No answer to a load came whole."""


@dataclass(frozen=True)
class Serving:
    """What a server says it serves."""

    cards: Mapping[str, Mapping[str, Any]]
    """/v1/models, by id"""
    native: Mapping[str, Any] = field(default_factory=dict)
    """/get_model_info of SGLang; empty for others"""

    def model_of(self, name: str) -> str | None:
        """Return the model to ask for the weights of this name; None where they are not served."""
        if name in self.cards:
            return name
        if self.native.get("weight_version") == name and self.cards:
            return next(iter(self.cards))
        return None

    def choose(self, wanted: str) -> str:
        """Return the model that is wanted, or the only one there is; raises PolicyError."""
        if wanted in self.cards:
            return wanted
        bases = [i for i, card in self.cards.items() if not card.get("parent")]
        if len(bases) == 1:
            return bases[0]
        names = ", ".join(list(self.cards)[:8])
        raise PolicyError(f"The policy's server serves {names}: set policy.base to one of them (it is '{wanted}').")

    def longest(self, model: str) -> int | None:
        """Return the tokens a conversation with a model may have, where the server says it (vLLM: max_model_len)."""
        found = self.cards.get(model, {}).get("max_model_len")
        return found if type(found) is int and found > 0 else None

    def identity(self, model: str) -> dict[str, Any]:
        """Return what names a model's weights as far as the server tells: the same answer, the same weights, we assume."""
        card = self.cards.get(model, {})
        reported = {k: card.get(k) for k in ("root", "parent", "owned_by", "max_model_len")}
        reported |= {k: self.native.get(k) for k in ("model_path", "weight_version")}
        return {"model": model, **{k: v for k, v in reported.items() if v is not None}}


async def serving(client: Client) -> Serving:
    """Ask a server what it serves. Raises PolicyError when it is no OpenAI-compatible server, CallError when it does not
    answer, ServiceError for a refused key."""
    status, value = await client.look("/models")
    rows = value.get("data") if isinstance(value, dict) else None
    cards = {r["id"]: r for r in rows if isinstance(r, dict) and isinstance(r.get("id"), str)} if rows else {}
    if status != 200 or not cards:
        where = client.endpoint.variable("URL")
        raise PolicyError(
            f"{client.endpoint.url}/models (HTTP {status}) lists no model: {where} must be the base URL of an "
            "OpenAI-compatible server, such as http://127.0.0.1:8000/v1."
        )
    owners = {c.get("owned_by") for c in cards.values()}
    if owners & {"vllm", "openai"}:
        return Serving(cards)
    status, info = await client.look("/get_model_info", root=True)
    return Serving(cards, info if status == 200 and isinstance(info, dict) and "model_path" in info else {})


def look_once(endpoint: Endpoint) -> list[str]:
    """Return the models that a server lists, asked once, for a few seconds; raises PolicyError or ServiceError."""
    with tempfile.TemporaryDirectory() as folder:
        cache = CallCache(Path(folder) / "calls.sqlite")
        client = Client(endpoint, cache, budget=0, account="", patience=Patience(attempts=1, attempt=5, total=5))
        try:
            return list(loop.run(serving(client)).cards)
        except CallError as e:
            raise unanswered(client, e) from None
        finally:
            client.write_free()
            cache.close()


def served_name(folder: Path) -> str:
    """Return the name under which a server says that it serves a folder's weights."""
    return PREFIX + policy_hash(folder)[:16]


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Return the policy hash of a model that only its server knows."""
    return "served-" + hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


async def load(client: Client, folder: Path, now: Serving) -> Serving:
    """Make the server serve a folder's weights, in the way that GENEVOLVE_POLICY_RELOAD says, and wait until it says so.

    Raises PolicyError, one sentence, where that fails or no way is given.
    """
    name, how = served_name(folder), os.environ.get(RELOAD, "").strip()
    if not how:
        raise PolicyError(
            f"The policy's server serves {', '.join(list(now.cards)[:4])}, not the weights of {folder}: start it on them under "
            f"the name {name} (vLLM: --served-model-name {name}), or set {RELOAD}."
        )
    try:
        if how == "lora":
            await _load_adapter(client, folder, name, now)
        elif how == "sglang":
            body = {"model_path": str(folder.resolve()), "weight_version": name}
            await _post(client, "/update_weights_from_disk", body, root=True)
        else:
            await asyncio.get_running_loop().run_in_executor(None, _run, how, folder, name)
    except _LostError as lost:
        try:
            return await _wait(client, folder, name, min(AFTER_LOST, _patience()))
        except PolicyError:
            raise lost from None
    return await _wait(client, folder, name, _patience())


async def _load_adapter(client: Client, folder: Path, name: str, now: Serving) -> None:
    """vLLM's /v1/load_lora_adapter; adapters of ours that were loaded before make room."""
    if not (folder / "adapter_config.json").is_file():
        raise PolicyError(f"{RELOAD} is 'lora', but {folder} holds no LoRA adapter (adapter_config.json).")
    for old in (i for i in now.cards if i.startswith(PREFIX) and now.cards[i].get("parent")):
        await client.look("/unload_lora_adapter", {"lora_name": old})
    await _post(client, "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})


async def _post(client: Client, path: str, body: Mapping[str, Any], *, root: bool = False) -> None:
    try:
        status, value = await client.look(path, body, root=root, seconds=_patience())
    except CallError as e:
        raise _LostError(f"The policy's server did not load the weights ({path}: {e.reason}).") from None
    if status != 200 or (isinstance(value, dict) and value.get("success") is False):
        said = str(value.get("message") or value.get("error") or "")[:200] if isinstance(value, dict) else ""
        raise PolicyError(f"The policy's server did not load the weights ({path}: HTTP {status}). {said}".rstrip())


def _run(command: str, folder: Path, name: str) -> None:
    """Run the user's command; it may leave a server behind that goes on running."""
    variables = {"GENEVOLVE_POLICY_FOLDER": str(folder.resolve()), "GENEVOLVE_POLICY_NAME": name}
    try:
        done = subprocess.run(command, shell=True, env=os.environ | variables, timeout=_patience(), check=False)
    except subprocess.TimeoutExpired:
        raise PolicyError(f"The command of {RELOAD} did not end in {_patience():g} s ({START}).") from None
    if done.returncode:
        raise PolicyError(f"The command of {RELOAD} ended with {done.returncode}: the server has no new weights.")


async def _wait(client: Client, folder: Path, name: str, patience: float) -> Serving:
    """Look at the server for so many seconds until it says that it serves `name`: it may be starting."""
    deadline, said = time.monotonic() + patience, "nothing"
    while True:
        try:
            now = await serving(client)
            said = ", ".join(list(now.cards)[:4])
            if now.model_of(name):
                return now
        except (CallError, PolicyError) as e:
            said = str(e)
        if time.monotonic() >= deadline:
            raise PolicyError(
                f"The policy's server does not serve {name}, the weights of {folder}, after {patience:g} s ({START}); it "
                f"says: {said}."
            )
        await asyncio.sleep(min(LOOK_AGAIN, max(0.0, deadline - time.monotonic())))


def _patience() -> float:
    found = {k: v for k, v in os.environ.items() if v.strip()}
    return number(found, START, 0, 900.0)


def write_card(client: Client, base: str, root: Path) -> Path:
    """Write what the server says of the model `base`, or of the only one there is, as a policy folder below `root`.

    Raises PolicyError in one sentence where there is none, ServiceError for a refused key.
    """
    try:
        now = loop.run(serving(client))
    except CallError as e:
        raise unanswered(client, e) from None
    identity = now.identity(now.choose(base))
    folder = root / identity_hash(identity)[:24]
    write_whole(folder / CARD, json.dumps(identity, indent=1, sort_keys=True) + "\n")
    return folder


def unanswered(client: Client, error: CallError) -> PolicyError:
    """Return the sentence for a server that is not there."""
    where = client.endpoint.variable("URL")
    return PolicyError(
        f"The policy's server does not answer ({error.reason}): start it, or check {where}, {client.endpoint.url}."
    )


def read_card(folder: Path) -> dict[str, Any] | None:
    """Return what a policy folder's card says; None for a folder of weights."""
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("model"), str):
            return found
    except (OSError, ValueError):
        pass
    raise SettingsError(f"{path} is damaged; remove its folder, and name the policy `server` again.")
