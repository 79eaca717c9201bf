"""A policy's server on loopback that speaks the documented protocols of vLLM, SGLang and plain chat completions.

A tiny real model stands behind it (our own engine), so that log-probs can be checked to the last digits. `flavour` says
which protocol; `logprobs` which distribution vLLM reports: raw_logprobs (its default) or processed_logprobs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch

from genevolve.agent.chat import prompt_text
from genevolve.policy.base import Job, Sampling
from genevolve.policy.draw import draw, uniforms
from genevolve.policy.engine import Engine
from genevolve.policy.local import LocalPolicy
from tests.tools.web import LoopbackHTTPServer, Reply, send

CAPACITY = 1280


@lru_cache(1)
def tiny() -> tuple[Any, Any]:
    """A random Qwen3 that is far from flat and ends a turn every eight tokens or so, and its tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from genevolve.training.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["You are an image agent. Draw the giraffe number 3, please. The picture"] * 20, 420)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 3, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=2048,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4) if p.dim() > 1 else p.add_(torch.randn_like(p) * 0.3)
        model.lm_head.weight.mul_(4)  # far from flat
        model.lm_head.weight[len(tokenizer) :] = 0
        end, sampling = tokenizer.convert_tokens_to_ids("<|im_end|>"), Sampling(1.0, 1.0, 40, 600, 8)
        jobs = [Job(str(i), "You are an agent.", f"Draw {i}.", lambda _: None) for i in range(4)]
        said = torch.bincount(
            torch.tensor(
                [t for row in LocalPolicy.of(model, tokenizer).sample(jobs, sampling, 0) for t in row.completion_ids]
            )
        )
        often = int((said / said.sum() - 1 / 8).abs().argmin())  # a token it says about that often
        model.lm_head.weight[end] = model.lm_head.weight[often]
    return model, tokenizer


def tiny_policy() -> LocalPolicy:
    return LocalPolicy.of(*tiny())


@lru_cache(1)
def tiny_folder(root: str) -> Path:
    model, tokenizer = tiny()
    model.save_pretrained(root)
    tokenizer.save_pretrained(root)
    return Path(root)


def _texts(parts: list[dict[str, Any]]) -> str:
    """A message in parts, to a model without eyes."""
    return "\n".join(p["text"] for p in parts if p["type"] == "text")


class ModelServer:
    """`faults`: replies by path that are given instead of the real ones, first in, first out; None lets one pass."""

    def __init__(
        self,
        policy: LocalPolicy,
        flavour: str = "vllm",
        logprobs: str = "processed_logprobs",
        model: str = "tiny",
        key: str = "",
    ) -> None:
        self.flavour, self.logprobs, self.key = flavour, logprobs, key
        self.longest = CAPACITY
        self.cards: dict[str, dict[str, Any]] = {model: self._card(model)}
        self.weight_version = "default"
        self.faults: dict[str, list[Reply | None]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.over = threading.Event()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self.serve(policy)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                if len(body) < length or (self.command == "POST" and not body):  # whoever asked is dead
                    self.close_connection = True
                    return
                value = json.loads(body) if body else None
                with outer._lock:
                    outer.asked.append((self.path, value))
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                    waiting = outer.faults.get(self.path) or [None]
                    fault = waiting.pop(0)
                try:
                    reply = fault or outer._reply(self, value)
                finally:  # before it answers: whoever has the answer may be here again at once
                    with outer._lock:
                        outer.at_once -= 1
                self.close_connection = fault is not None or self.close_connection
                with suppress(BrokenPipeError, ConnectionResetError):
                    reply(self)

            do_POST = do_GET

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = LoopbackHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.root = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.url = f"{self.root}/v1"

    def _card(self, model: str, **more: Any) -> dict[str, Any]:
        owner = {"vllm": "vllm", "sglang": "sglang"}.get(self.flavour, "someone")
        card = {"id": model, "object": "model", "created": 1, "owned_by": owner, "root": f"/models/{model}", **more}
        return {**card, "max_model_len": self.longest} if self.flavour != "chat" else card

    def serve(self, policy: LocalPolicy) -> None:
        self.policy = policy
        self.engine = Engine(policy.weights, policy.config, 4, CAPACITY)

    def shorten(self, longest: int) -> None:
        """Allow conversations of so many tokens (--max-model-len)."""
        self.longest = longest
        self.cards = {name: self._card(name) for name in self.cards}

    @contextmanager
    def running(self) -> Iterator[ModelServer]:
        thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            self.http.shutdown()
            thread.join()
            self.http.server_close()

    def hang(self) -> Reply:
        return lambda _: self.over.wait(30) and None

    def count(self, path: str) -> int:
        return sum(p == path for p, _ in self.asked)

    def _reply(self, handler: BaseHTTPRequestHandler, body: Any) -> Reply:
        status, value = 401, {"error": {"message": "Unauthorized"}}
        if not self.key or handler.headers.get("Authorization") == f"Bearer {self.key}":
            status, value = self._answer(handler.path, body)
        text = value if isinstance(value, str) else json.dumps(value)
        return send(text.encode(), status, Content_Type="application/json")

    def _answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": list(self.cards.values())}
        if path == "/v1/chat/completions":
            return self._chat(body)
        if self.flavour == "vllm":
            routes = {
                "/tokenize": self._tokenize,
                "/v1/completions": self._completions,
                "/v1/load_lora_adapter": self._load_adapter,
                "/v1/unload_lora_adapter": self._unload_adapter,
            }
        elif self.flavour == "sglang":
            routes = {
                "/get_model_info": lambda _: (200, {"model_path": "/models/x", "weight_version": self.weight_version}),
                "/tokenize": self._tokenize,
                "/generate": self._generate,
                "/update_weights_from_disk": self._update,
            }
        else:
            routes = {}
        return routes[path](body) if path in routes else (404, {"detail": "Not Found"})

    def _tokenize(self, body: Any) -> tuple[int, Any]:
        ids = self.policy.encode(body["prompt"])
        return 200, {"tokens": ids, "count": len(ids), "max_model_len": CAPACITY}

    def _completions(self, body: Any) -> tuple[int, Any]:
        if body["model"] not in self.cards:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        for name, plain in (("top_k", -1), ("min_p", 0), ("repetition_penalty", 1), ("presence_penalty", 0)):
            if body.get(name) != plain:  # a real server would take generation_config.json's own
                return 400, {"error": {"message": f"{name} is left to the server"}}
        if len(body["prompt"]) + body["max_tokens"] > self.longest:
            return 400, {"error": {"message": f"This model's maximum context length is {self.longest} tokens."}}
        ids, logprobs, tops, stopped = self._draw(
            body["prompt"], body, body["max_tokens"], body["stop_token_ids"], self.logprobs
        )
        name = (
            (lambda i: f"token_id:{i}") if body.get("return_tokens_as_token_ids") else self.policy.tokenizer.id_to_token
        )
        found = {
            "text_offset": [0] * len(ids),
            "tokens": [name(i) for i in ids],
            "token_logprobs": logprobs,
            "top_logprobs": [{name(i): p for i, p in top[: body["logprobs"]]} for top in tops],
        }
        choice = {
            "index": 0,
            "text": self.policy.tokenizer.decode(ids[:-1] if stopped is not None else ids, skip_special_tokens=False),
            "logprobs": found,
            "finish_reason": "length" if stopped is None else "stop",
            "stop_reason": stopped,
        }
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return 200, {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage}

    def _generate(self, body: Any) -> tuple[int, Any]:
        how = body["sampling_params"]
        more = {"seed": how["sampling_seed"], "temperature": how["temperature"], "top_p": how["top_p"]}
        ids, logprobs, tops, stopped = self._draw(
            body["input_ids"], more, how["max_new_tokens"], how["stop_token_ids"], "temperature"
        )
        finish = {"type": "length", "length": len(ids)} if stopped is None else {"type": "stop", "matched": stopped}
        about = {
            "id": "1",
            "finish_reason": finish,
            "prompt_tokens": len(body["input_ids"]),
            "completion_tokens": len(ids),
            "output_token_logprobs": [[p, i, None] for i, p in zip(ids, logprobs, strict=True)],
        }
        if body["top_logprobs_num"]:
            about["output_top_logprobs"] = [[[p, i, None] for i, p in top[: body["top_logprobs_num"]]] for top in tops]
        return 200, {"text": "", "output_ids": ids, "meta_info": about}

    def _chat(self, body: Any) -> tuple[int, Any]:
        if body["model"] not in self.cards:
            return 404, {"error": {"message": "no such model"}}
        said = [m["content"] if isinstance(m["content"], str) else _texts(m["content"]) for m in body["messages"]]
        text = prompt_text(said[0], said[1])
        for turn, answer in zip(said[2::2], said[3::2], strict=True):
            text += f"{turn}<|im_end|>\n<|im_start|>user\n{answer}<|im_end|>\n<|im_start|>assistant\n"
        prompt = self.policy.encode(text)
        ids, _, _, stopped = self._draw(prompt, body, body["max_tokens"], [self.policy.end], "temperature")
        content = self.policy.tokenizer.decode(ids[:-1] if stopped is not None else ids, skip_special_tokens=False)
        choice = {"index": 0, "message": {"role": "assistant", "content": content}}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": len(prompt) + len(ids)}
        return 200, {"choices": [{**choice, "finish_reason": "length" if stopped is None else "stop"}], "usage": usage}

    def _load_adapter(self, body: Any) -> tuple[int, Any]:
        folder = Path(body["lora_path"])
        if not folder.is_dir():
            return 404, {"error": {"message": "No adapter found"}}
        parent = next(i for i, c in self.cards.items() if not c.get("parent"))
        self.cards[body["lora_name"]] = self._card(body["lora_name"], parent=parent)
        return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."

    def _unload_adapter(self, body: Any) -> tuple[int, Any]:
        return (
            (200, "Success") if self.cards.pop(body["lora_name"], None) else (404, {"error": {"message": "not found"}})
        )

    def _update(self, body: Any) -> tuple[int, Any]:
        try:
            self.serve(LocalPolicy.load(body["model_path"]))
        except Exception as e:
            return 400, {"success": False, "message": f"Failed to get weights iterator: {e}"}
        self.weight_version = body["weight_version"]
        return 200, {"success": True, "message": "Succeeded to update model weights."}

    def _draw(
        self, prompt: list[int], how: Any, most: int, stops: list[int], report: str
    ) -> tuple[list[int], list[float], list[list[tuple[int, float]]], int | None]:
        """Sample a turn: ids, log-probs as `report` says, likeliest tokens with theirs, and what it stopped at."""
        temperature, top_p = how["temperature"], how["top_p"]
        ids: list[int] = []
        logprobs: list[float] = []
        tops: list[list[tuple[int, float]]] = []
        u = uniforms(how["seed"], "", most)
        with self._lock, torch.inference_mode():
            self.engine.reset(0)
            logits = self.engine.extend(0, prompt)
            while True:
                token = draw(logits[None], u[len(ids)][None], temperature, top_p)[0][0]
                reported = _reported(logits, temperature, top_p, report)
                best = reported.topk(5)
                ids.append(token)
                logprobs.append(float(reported[token]))
                tops.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
                if token in stops:
                    return ids, logprobs, tops, token
                if len(ids) == most:
                    return ids, logprobs, tops, None
                logits = self.engine.decode([token])[0]


def _reported(logits: torch.Tensor, temperature: float, top_p: float, report: str) -> torch.Tensor:
    """Return the log-probs [V] that a server reports."""
    scaled = torch.log_softmax(logits / (temperature or 1.0), -1)
    if report == "raw_logprobs":
        return torch.log_softmax(logits, -1)
    if report == "processed_logprobs" and top_p < 1 and temperature:
        p, order = scaled.exp().sort(descending=True)
        kept = order[(p.cumsum(-1) - p) < top_p]
        cut = torch.full_like(scaled, -9999.0)
        cut[kept] = torch.log_softmax(scaled[kept], -1)
        return cut
    return scaled
