"""What a policy's server can do, found out by asking it: token ids or messages, and which distribution its log-probs are of.

Training needs log p of each sampled token over the full vocabulary at the sampling temperature. vLLM gives that of the raw
distribution by default, and under `--logprobs-mode processed_logprobs` that after temperature *and* top-p; SGLang gives
the one after temperature, before top-p. No server says so in an answer, so it is measured: the same next token is asked for
at temperature 1, at .5, and at .5 with a tiny top-p (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genevolve.policy.base import PolicyError, Sampling
from genevolve.policy.chatml import ChatML
from genevolve.policy.dialects import LIST, Completions, Draw, Generate, TokenDialect
from genevolve.services.client import BadAnswer, CallError, Client

LEAST_GAP = 0.25
"""Nats between likely tokens, below which a temperature cannot be read off them."""
SURE = -0.03
"""Log-prob of the best token above which top-p could change nothing that one sees."""
TEXTS = ("The", "A picture of", "In the beginning")
CHECK = 'A 2nd look: naïve façade, IMG_001 — <tool_call>{"name": "search"}</tool_call>\n'
"""Its ids tell tokenizers apart."""


@dataclass(frozen=True)
class Ability:
    """What was found; it is written beside a run's results."""

    dialect: TokenDialect | None
    """None: message level"""
    why: str = ""
    """why message level"""
    scaled: bool | None = None
    """Log-probs are of the distribution after temperature; None: could not be told."""
    truncated: bool | None = None
    """... after top-p."""

    @property
    def mode(self) -> str:
        return "message level" if self.dialect is None else f"tokens ({self.dialect.name})"

    def unfit(self, sampling: Sampling) -> str:
        """Return why training cannot use what is sampled like this, as a sentence; empty where it can."""
        if self.dialect is None:
            return (
                f"The policy's server is used at message level ({self.why}): training needs the sampled token ids and their "
                "log-probs, which only a token server such as vLLM or SGLang gives; generate and bench work."
            )
        if sampling.temperature != 1 and self.scaled is not True:
            known = "are of the raw distribution" if self.scaled is False else "could not be told apart by temperature"
            return (
                f"The server's log-probs {known}, and training needs them at temperature {sampling.temperature:g}: start "
                "vLLM with --logprobs-mode processed_logprobs, or set sampling.temperature to 1."
            )
        if sampling.top_p < 1 and self.truncated is not False:
            known = "are taken after top-p" if self.truncated else "may be taken after top-p"
            return (
                f"The server's log-probs {known}, and training needs them over the full vocabulary: set sampling.top_p to 1 "
                "(vLLM), or use SGLang."
            )
        return ""


async def probe(client: Client, model: str, words: ChatML | None, native: bool, missing: str) -> Ability:
    """Find out what a server can do. `native`: it has SGLang's own interface; `missing`: why there is no tokenizer.

    Raises PolicyError when its tokenizer is not ours, ServiceError for a refused key, CallError when it does not answer.
    """
    if words is None:
        return Ability(None, missing)
    dialect: TokenDialect = Generate() if native else Completions()
    await _same_tokenizer(client, model, words)
    why = ""
    for text in TEXTS:
        try:
            scaled, truncated = await _measure(client, dialect, model, words.encode(text), words.end)
        except BadAnswer as e:
            why = str(e)
            break
        if scaled is not None and truncated is not None:
            return Ability(dialect, "", scaled, truncated)
    else:
        return Ability(dialect, "", scaled, truncated)
    return Ability(None, f"it gives no token ids with log-probs: {why}")


async def _same_tokenizer(client: Client, model: str, words: ChatML) -> None:
    """Compare the tokenizers, where the server offers its own (vLLM, SGLang: POST /tokenize)."""
    asked = {"model": model, "prompt": CHECK, "add_special_tokens": False}
    status, value = await client.look("/tokenize", asked, root=True)
    found = value.get("tokens") if status == 200 and isinstance(value, dict) else None
    if isinstance(found, list) and found and tuple(found) != words.encode(CHECK):
        raise PolicyError(
            f"The policy's server reads text as other tokens than the tokenizer here does: '{model}' and policy.base, or the "
            "policy's folder, are not of one kind."
        )


async def _measure(
    client: Client, dialect: TokenDialect, model: str, ids: Sequence[int], end: int
) -> tuple[bool | None, bool | None]:
    """Return (scaled by temperature, truncated by top-p) of a server's log-probs; raises BadAnswer."""

    async def ask(temperature: float, top_p: float) -> dict[str, float]:
        sampling = Sampling(temperature, top_p)
        draw = Draw(model, ids, 1, sampling, 1, end, LIST)
        status, value = await client.look(dialect.path, dialect.body(draw), root=dialect.root)
        if status != 200:
            raise BadAnswer(f"HTTP {status}{_said(value)}")
        dialect.read(value, draw)
        return dialect.alternatives(value)

    try:
        flat, sharp, cut = await ask(1.0, 1.0), await ask(0.5, 1.0), await ask(0.5, 0.01)
    except CallError as e:  # it serves models but fails on these: no reason to end the command
        raise BadAnswer(e.reason) from None
    both = [t for t in flat if t in sharp and flat[t] > -50]
    if len(both) < 2:
        return None, None
    best = max(both, key=lambda t: flat[t])
    worst = min(both, key=lambda t: flat[t])
    gap = flat[best] - flat[worst]
    scaled = truncated = None
    if gap >= LEAST_GAP:
        ratio = (sharp[best] - sharp[worst]) / gap
        scaled = True if 1.7 < ratio < 2.3 else False if 0.8 < ratio < 1.2 else None
    if sharp[best] < SURE and best in cut:
        truncated = cut[best] > sharp[best] / 2
    return scaled, truncated


def _said(value: Any) -> str:
    """Return ': ' and the beginning of a server's error text, or ''."""
    found = value.get("error", value) if isinstance(value, dict) else None
    text = found.get("message", "") if isinstance(found, dict) else found
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text or "")[:400]).split())
    return f": {line[:160]}" if line else ""
