"""What is sent to a policy's server for one turn, and how its answer is read: vLLM, SGLang, or plain chat completions.

Everything is said in every request that a server may otherwise take from the model's generation_config.json (top-k, min-p,
penalties): a default nobody sees would change the distribution. What comes back is checked field by field; a wrong form
is a BadAnswer, and asked for again.

Sources: vLLM, "OpenAI-Compatible Server" (Completions API, extra parameters); SGLang, "Native APIs", "Sampling Parameters".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from genevolve.policy.base import Sampling
from genevolve.services.client import BadAnswer

TOKEN_ID = "token_id:"
"""How vLLM writes a token under return_tokens_as_token_ids."""
LIST = 5
"""Alternatives asked for when a server's log-probs are measured."""


@dataclass(frozen=True)
class Draw:
    """One turn to draw: what the policy has read, and how it may go on."""

    model: str
    ids: Sequence[int]
    most: int
    """tokens the turn may have"""
    sampling: Sampling
    seed: int
    end: int
    """the token that ends a turn"""
    alternatives: int = 1


@dataclass(frozen=True)
class Turn:
    """One assistant turn. Token mode: ids and log-probs [N], the end token included. Message level: text."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    text: str = ""
    cut: bool = False
    """the limit of tokens came before the end of the turn"""
    used: int = 0
    """tokens of the conversation so far, as the server counts; 0: it does not say"""


class TokenDialect(Protocol):
    """A server that takes token ids and gives token ids with log-probs."""

    name: str
    path: str
    root: bool
    """The path stands beside the base URL's /v1, not below it."""

    def body(self, draw: Draw) -> dict[str, Any]: ...

    def read(self, value: Any, draw: Draw) -> Turn: ...

    def alternatives(self, value: Any) -> dict[str, float]:
        """Return the log-probs of the likeliest first tokens."""
        ...


class Completions:
    """vLLM: POST /v1/completions with the prompt as token ids."""

    name, path, root = "vllm", "/completions", False

    def body(self, draw: Draw) -> dict[str, Any]:
        s = draw.sampling
        return {
            "model": draw.model,
            "prompt": draw.ids,
            "max_tokens": draw.most,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": draw.seed,
            "stop_token_ids": [draw.end],
            "logprobs": draw.alternatives,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            "add_special_tokens": False,
        }

    def read(self, value: Any, draw: Draw) -> Turn:
        try:
            choice = value["choices"][0]
            found = choice["logprobs"]
            tokens, logprobs = found["tokens"], found["token_logprobs"]
            ids = choice.get("token_ids") or [int(t[len(TOKEN_ID) :]) for t in tokens if t.startswith(TOKEN_ID)]
            finish, reason = choice["finish_reason"], choice.get("stop_reason")
            read = (value.get("usage") or {}).get("prompt_tokens")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise BadAnswer("wrong form") from None
        return _turn(ids, logprobs, finish, reason, read, draw)

    def alternatives(self, value: Any) -> dict[str, float]:
        try:
            found = value["choices"][0]["logprobs"]["top_logprobs"][0]
            return {str(token): float(logprob) for token, logprob in found.items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise BadAnswer("wrong form") from None


class Generate:
    """SGLang: POST /generate, its native interface."""

    name, path, root = "sglang", "/generate", True

    def body(self, draw: Draw) -> dict[str, Any]:
        s = draw.sampling
        return {
            "input_ids": draw.ids,
            "sampling_params": {
                "max_new_tokens": draw.most,
                "temperature": s.temperature,
                "top_p": s.top_p,
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "sampling_seed": draw.seed,
                "stop_token_ids": [draw.end],
                "skip_special_tokens": False,
            },
            "return_logprob": True,
            "logprob_start_len": -1,
            "top_logprobs_num": draw.alternatives if draw.alternatives > 1 else 0,
        }

    def read(self, value: Any, draw: Draw) -> Turn:
        try:
            about = value["meta_info"]
            pairs = about["output_token_logprobs"]
            ids, logprobs = [p[1] for p in pairs], [p[0] for p in pairs]
            finish, reason = about["finish_reason"]["type"], about["finish_reason"].get("matched")
            read = about.get("prompt_tokens")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise BadAnswer("wrong form") from None
        return _turn(ids, logprobs, finish, reason, read, draw)

    def alternatives(self, value: Any) -> dict[str, float]:
        try:
            return {str(row[1]): float(row[0]) for row in value["meta_info"]["output_top_logprobs"][0]}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise BadAnswer("wrong form") from None


def _turn(ids: Any, logprobs: Any, finish: Any, reason: Any, read: Any, draw: Draw) -> Turn:
    """Return a checked turn; raises BadAnswer."""
    if not isinstance(ids, list) or not isinstance(logprobs, list) or len(ids) != len(logprobs) or not ids:
        raise BadAnswer("tokens and log-probs that do not belong together")
    if len(ids) > draw.most or any(type(i) is not int or i < 0 for i in ids):
        raise BadAnswer("tokens that cannot be")
    if any(type(p) not in (float, int) or not -math.inf < p <= 1e-3 for p in logprobs):
        raise BadAnswer("log-probs that cannot be")
    if finish not in ("stop", "length"):  # 'abort': the server gave up, and may be asked again
        raise BadAnswer(f"unfinished ({str(finish)[:20]})")
    if read is not None and read != len(draw.ids):
        raise BadAnswer("the server read another prompt than it was sent")
    if finish == "stop" and reason == draw.end and ids[-1] != draw.end:
        raise BadAnswer("the token that ended the turn is left out")
    return Turn(tuple(ids), tuple(map(float, logprobs)), cut=finish == "length" and ids[-1] != draw.end)


class Messages:
    """Any OpenAI-compatible server: POST /v1/chat/completions, texts in and out. Its chat template is the server's."""

    name, path, root = "messages", "/chat/completions", False

    def body(self, model: str, messages: list[dict[str, Any]], most: int, s: Sampling, seed: int) -> dict[str, Any]:
        return {
            "model": model,
            "messages": messages,
            "max_tokens": most,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "seed": seed,
        }

    def read(self, value: Any) -> Turn:
        try:
            choice = value["choices"][0]
            said = choice["message"]
            content, finish = said.get("content"), choice.get("finish_reason")
            thought = said.get("reasoning_content") or said.get("reasoning")
            used = (value.get("usage") or {}).get("total_tokens", 0)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise BadAnswer("wrong form") from None
        if isinstance(content, list):  # some servers answer in parts
            content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
        if not isinstance(content, str) and not isinstance(thought, str):
            raise BadAnswer("wrong form")
        text = content if isinstance(content, str) else ""
        if isinstance(thought, str) and "<think>" not in text:  # a server with a reasoning parser takes the turn apart
            text = f"<think>{thought}</think>{text}"
        if finish not in ("stop", "length", None):
            raise BadAnswer(f"unfinished ({str(finish)[:20]})")
        return Turn(text=text, cut=finish == "length", used=used if type(used) is int and 0 <= used < 10**9 else 0)
