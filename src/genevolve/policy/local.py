"""A policy from a Hugging Face folder: tokens in, tokens out, nothing prefilled twice, nothing tokenised twice."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.agent.chat import observation_text, prompt_text
from genevolve.policy.base import Job, PolicyError, Sampled, Sampling
from genevolve.policy.draw import draw, uniforms
from genevolve.policy.engine import Engine, Saved
from genevolve.training.checkpoint import CheckpointError, policy_hash, tokenizer_hash

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

END = "<|im_end|>"


class LocalPolicy:
    """Weights and tokenizer of a causal language model, and the loop that samples conversations from it."""

    def __init__(
        self, weights: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: Tokenizer, hashes: tuple[str, str]
    ) -> None:
        """`hashes` are (policy, tokenizer). Raises PolicyError for a tokenizer without ChatML tokens or too big for the
        embedding."""
        self.config = dict(config)
        self.weights = weights
        self.tokenizer = tokenizer
        self.policy_hash, self.tokenizer_hash = hashes
        end = tokenizer.token_to_id(END)
        if end is None or tokenizer.token_to_id("<|im_start|>") is None:
            raise PolicyError("The tokenizer has no <|im_start|> and <|im_end|>: it is not a ChatML tokenizer.")
        if tokenizer.get_vocab_size() > int(config["vocab_size"]):
            raise PolicyError(
                f"The tokenizer has {tokenizer.get_vocab_size()} tokens and the policy {config['vocab_size']}: they do not match."
            )
        self.end: int = end
        self._engine: Engine | None = None

    @classmethod
    def load(cls, folder: str | Path) -> LocalPolicy:
        """Read config.json, *.safetensors and tokenizer.json; raises PolicyError with one sentence."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        root = Path(folder)
        try:
            hashes = (policy_hash(root), tokenizer_hash(root))
            config = json.loads((root / "config.json").read_text(encoding="utf-8"))
            weights: dict[str, Tensor] = {}
            for path in sorted(root.glob("*.safetensors")):
                weights.update(load_file(path))
            tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
        except CheckpointError as e:
            raise PolicyError(str(e)) from e
        except OSError as e:
            raise PolicyError(f"{root}: {e.filename or 'a file'} cannot be read ({e.strerror}).") from e
        except SafetensorError as e:
            raise PolicyError(f"{root}: the weights are damaged ({e}).") from e
        except Exception as e:  # tokenizers raises plain Exception, json a ValueError
            raise PolicyError(f"{root}: config.json or tokenizer.json is damaged ({e}).") from e
        kind = (config.get("architectures") or ["?"])[0] if isinstance(config, dict) else "?"
        if kind != "Qwen3ForCausalLM":
            raise PolicyError(
                f"{root}: the local policy decodes Qwen3ForCausalLM, not {kind}; serve it and use `openai`."
            )
        return cls(weights, config, tokenizer, hashes)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, hashes: tuple[str, str] = ("", "")) -> LocalPolicy:
        """Wrap a live Qwen3ForCausalLM and a PreTrainedTokenizerFast; the weights are copied at the first `sample`."""
        return cls(model.state_dict(), model.config.to_dict(), tokenizer.backend_tokenizer, hashes)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that already holds its chat tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def sample(
        self, jobs: Sequence[Job], sampling: Sampling, seed: int, on_done: Callable[[int, Sampled], None] | None = None
    ) -> list[Sampled]:
        """Play all jobs (policy/base.py). The result of a job depends on its key and the seed, not on the other jobs."""
        import torch

        if not jobs:
            return []
        slots = min(sampling.batch, len(jobs))
        engine = self._engine
        if engine is None or engine.slots < slots or engine.capacity < sampling.max_context:
            self._engine = engine = Engine(self.weights, self.config, slots, sampling.max_context)
        with torch.inference_mode():
            return _Loop(self, engine, jobs, sampling, seed, slots, on_done).run()


class _Row:
    """A conversation under way."""

    __slots__ = ("done", "forced", "ids", "index", "job", "logprobs", "mask", "prompt", "turn", "why")

    def __init__(self, index: int, job: Job, prompt: tuple[int, ...]) -> None:
        self.index, self.job, self.prompt = index, job, prompt
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []
        self.turn: list[int] = []
        self.forced: list[int] = []  # observation tokens to append after the token just drawn
        self.done, self.why = False, ""


class _Loop:
    """Continuous batching: rows in slots 0..R-1, a finished row's slot is filled from the end, new rows join behind."""

    def __init__(
        self,
        policy: LocalPolicy,
        engine: Engine,
        jobs: Sequence[Job],
        sampling: Sampling,
        seed: int,
        slots: int,
        on_done: Callable[[int, Sampled], None] | None,
    ) -> None:
        import torch

        self.policy, self.engine, self.sampling, self.seed, self.slots = policy, engine, sampling, seed, slots
        self.on_done = on_done
        texts: dict[str, tuple[int, ...]] = {}
        prompts = []
        for job in jobs:
            text = prompt_text(job.system, job.question)
            if text not in texts:
                texts[text] = tuple(policy.encode(text))
            prompts.append(texts[text])
        self.waiting = deque(_Row(i, job, prompt) for i, (job, prompt) in enumerate(zip(jobs, prompts, strict=True)))
        self.uses = Counter(prompts)
        self.saved: dict[tuple[int, ...], Saved] = {}
        self.rows: list[_Row] = []
        self.out: list[Sampled | None] = [None] * len(jobs)
        self.logits = torch.empty(slots, engine.vocabulary)
        self.u = torch.empty(slots, sampling.max_context, dtype=torch.float64)

    def run(self) -> list[Sampled]:
        self._admit()
        while self.rows:
            tokens, logprobs = self._draw()
            for row, token, logprob in zip(self.rows, tokens, logprobs, strict=True):
                self._take(row, token, logprob)
            tokens = self._drop(tokens)
            if tokens:
                self.logits[: len(tokens)] = self.engine.decode(tokens)
                self._force()
            self._admit()
        return [s for s in self.out if s is not None]

    def _draw(self) -> tuple[list[int], list[float]]:
        """Return a token and its log-prob for each row; number i of a row's stream belongs to completion token i."""
        import torch

        n = len(self.rows)
        at = torch.tensor([len(row.ids) for row in self.rows])
        u = self.u[:n].gather(1, at[:, None])[:, 0]
        return draw(self.logits[:n], u, self.sampling.temperature, self.sampling.top_p)

    def _admit(self) -> None:
        """Fill free slots. The rollouts of one request share one prefill."""
        while self.waiting and len(self.rows) < self.slots:
            row = self.waiting.popleft()
            room = self.sampling.max_context - len(row.prompt)
            if room < 1:
                row.why = f"The prompt alone has {len(row.prompt)} tokens, more than {self.sampling.max_context}."
                self._end(row)
                continue
            slot = len(self.rows)
            saved = self.saved.get(row.prompt)
            if saved is not None:
                self.logits[slot] = self.engine.restore(slot, saved)
            else:
                self.engine.reset(slot)
                self.logits[slot] = self.engine.extend(slot, row.prompt)
            self.uses[row.prompt] -= 1
            if not self.uses[row.prompt]:
                self.saved.pop(row.prompt, None)
            elif saved is None:
                self.saved[row.prompt] = self.engine.save(slot, self.logits[slot])
            self.u[slot, :room] = uniforms(self.seed, row.job.key, room)
            self.rows.append(row)

    def _take(self, row: _Row, token: int, logprob: float) -> None:
        """Record a drawn token; at the end of a turn ask the job what comes next."""
        row.ids.append(token)
        row.mask.append(1)
        row.logprobs.append(logprob)
        row.turn.append(token)
        room = self.sampling.max_context - len(row.prompt) - len(row.ids)
        if token == self.policy.end:
            text = self.policy.tokenizer.decode(row.turn[:-1], skip_special_tokens=False)
            row.turn = []
            message = row.job.step(text)
            if message is None:
                row.done = True
                return
            row.forced = self.policy.encode(observation_text(message))
            if len(row.forced) < room:
                row.ids += row.forced
                row.mask += [0] * len(row.forced)
                row.logprobs += [0.0] * len(row.forced)
                return
        elif len(row.turn) < self.sampling.max_turn_tokens and room > 0:
            return
        long_turn = len(row.turn) >= self.sampling.max_turn_tokens
        limit = f"The turn has {len(row.turn)}" if long_turn else f"The trajectory has {self.sampling.max_context}"
        row.done, row.why = True, f"{limit} tokens and did not come to its end."

    def _drop(self, tokens: list[int]) -> list[int]:
        """Take finished rows out and close the gaps; return the surviving rows' tokens in slot order."""
        i = 0
        while i < len(self.rows):
            if not self.rows[i].done:
                i += 1
                continue
            self._end(self.rows[i])
            last = len(self.rows) - 1
            if i < last:
                self.engine.move(last, i)
                self.rows[i], tokens[i] = self.rows[last], tokens[last]
                self.u[i] = self.u[last]
            self.engine.reset(last)
            self.rows.pop()
            tokens.pop()
        return tokens

    def _force(self) -> None:
        for slot, row in enumerate(self.rows):
            if row.forced:
                self.logits[slot] = self.engine.extend(slot, row.forced)
                row.forced = []

    def _end(self, row: _Row) -> None:
        sampled = Sampled(row.prompt, tuple(row.ids), tuple(row.mask), tuple(row.logprobs), row.why)
        self.out[row.index] = sampled
        if self.on_done is not None:
            self.on_done(row.index, sampled)
