"""A policy behind vLLM, SGLang or any OpenAI-compatible server, with hundreds of conversations in flight (ours).

Token mode, where the server offers it: token ids go out, token ids and log-probs come back, nothing is tokenised twice, and
the server's prefix cache makes a turn cost its new tokens. Message level otherwise, and where the policy is shown pictures:
good for generate and bench, refused for training. Which one it is, and whether the log-probs are those that training needs,
a probe finds out (`probe.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from genevolve.policy.base import Job, PolicyError, Sampled, Sampling, ServerDownError
from genevolve.policy.chatml import ChatML
from genevolve.policy.dialects import Draw, Messages, TokenDialect, Turn
from genevolve.policy.pictures import Eyes, jpeg
from genevolve.policy.probe import Ability, probe
from genevolve.policy.server import identity_hash, load, read_card, served_name, serving, unanswered
from genevolve.services import loop
from genevolve.services.chat import message_size
from genevolve.services.client import CallError, Client, DataUrl, Paid
from genevolve.tools.base import ToolError
from genevolve.training import checkpoint
from genevolve.training.checkpoint import policy_hash, tokenizer_hash

FAILURES = 32
"""Conversations in a row that the server fails before the command ends: it is down, and waiting longer helps nobody."""
TOO_LONG = re.compile(r"context length|maximum context|max_model_len|too many tokens|longer than", re.IGNORECASE)
"""In the error text of a server whose limit a conversation has reached."""


class ServedPolicy:
    """One model of a server. For one thread; the conversations of a call run side by side."""

    def __init__(
        self,
        client: Client,
        model: str,
        ability: Ability,
        words: ChatML | None,
        hashes: tuple[str, str],
        longest: int | None = None,
        family: str = "",
        options: Mapping[str, Any] | None = None,
        eyes: Eyes | None = None,
    ) -> None:
        """`hashes` are (policy, tokenizer); `longest`: the server's own limit on a conversation's tokens.

        At message level alone: turns of a `family` are paid once and kept, `options` are further fields of the request's
        body (null takes one out), and with `eyes` the pictures of an observation stand behind it.
        """
        self.client, self.model, self.ability, self.words, self.longest = client, model, ability, words, longest
        self.family, self.options, self.eyes = family, dict(options or {}), eyes
        self.policy_hash, self.tokenizer_hash = hashes
        self._messages = Messages()

    @classmethod
    def connect(cls, client: Client, base: str, folder: Path | None = None, eyes: Eyes | None = None) -> ServedPolicy:
        """Find the model on the server: a folder's weights, loaded if need be; what a folder's card names; or, without a
        folder, the model `base`, or the only one there is. With `eyes` it is shown pictures, and asked in messages.

        Raises PolicyError in one sentence when it is not there, ServiceError for a refused key.
        """
        try:
            return loop.run(cls._connect(client, base, folder, eyes))
        except CallError as e:
            raise unanswered(client, e) from None

    @classmethod
    async def _connect(cls, client: Client, base: str, folder: Path | None, eyes: Eyes | None) -> ServedPolicy:
        now, card = await serving(client), None if folder is None else read_card(folder)
        if folder is None or card is not None:
            model = now.choose(base if card is None else card["model"])
            known = identity_hash(now.identity(model))
            if card is not None and now.identity(model) != card:
                raise PolicyError(
                    f"The policy's server now reports {now.identity(model)}, and {folder} was made for {card}: name the policy "
                    "`server` to take what is served."
                )
            tokens = tokenizer_folder(base)
        else:
            name = served_name(folder)
            if now.model_of(name) is None:
                now = await load(client, folder, now)
            model, known, tokens = str(now.model_of(name)), policy_hash(folder), tokenizer_folder(str(folder))
        words = None if tokens is None else ChatML.load(tokens)
        missing = f"there is no tokenizer.json of {base} here; fetch it with `hf download {base} tokenizer.json`"
        if eyes is not None:
            ability = Ability(
                None, "it is shown pictures, which go as messages; to train, set sampling.show_images to 0"
            )
        else:
            ability = await probe(client, model, words, bool(now.native), missing)
        hashes = (known, "" if tokens is None else tokenizer_hash(tokens))
        return cls(client, model, ability, words, hashes, now.longest(model), eyes=eyes)

    def about(self) -> dict[str, Any]:
        """Return what is worth writing beside results: the model, the mode and why, what the log-probs are of."""
        a = self.ability
        return {
            "model": self.model,
            "policy_hash": self.policy_hash,
            "mode": a.mode,
            "why": a.why,
            "logprobs_after_temperature": a.scaled,
            "logprobs_after_top_p": a.truncated,
        }

    def unfit(self, sampling: Sampling) -> str:
        """Return why training cannot use what is sampled like this, as a sentence; empty where it can."""
        return self.ability.unfit(sampling)

    def sample(
        self, jobs: Sequence[Job], sampling: Sampling, seed: int, on_done: Callable[[int, Sampled], None] | None = None
    ) -> list[Sampled]:
        """Play all jobs (policy/base.py), as many at a time as the server is asked (its CONCURRENCY). A job's `step` runs in
        a thread of its own, `on_done` in this one, while the others go on.

        A conversation that the server fails is `failed`, with tokens up to there. Raises PolicyError after FAILURES of them
        in a row, and what a `step` or the service raises for the user; then the conversations under way are lost.
        """
        if not jobs:
            return []
        ended: SimpleQueue[tuple[int, Sampled] | None] = SimpleQueue()
        out: list[Sampled | None] = [None] * len(jobs)
        threads = ThreadPoolExecutor(min(self.client.endpoint.concurrency, len(jobs)), "step")
        game = _Game(self, jobs, sampling, seed, threads, lambda i, s: ended.put((i, s)))
        work = asyncio.run_coroutine_threadsafe(game.run(), loop.current())
        work.add_done_callback(lambda _: ended.put(None))
        try:
            while (one := ended.get()) is not None:
                out[one[0]] = one[1]
                if on_done is not None:
                    on_done(*one)
            work.result()
        finally:
            work.cancel()
            threads.shutdown(wait=False, cancel_futures=True)
            self.client.write_free()
        return [s for s in out if s is not None]

    async def token_turn(self, dialect: TokenDialect, draw: Draw) -> Turn:
        def read(value: Any) -> Paid:
            turn = dialect.read(value, draw)
            return Paid(turn, len(draw.ids) + len(turn.ids), self.client.endpoint.cost(len(draw.ids), len(turn.ids)))

        turn: Turn = await self._ask(dialect, dialect.body(draw), read, len(draw.ids), draw.most)
        return turn

    async def message_turn(self, messages: list[dict[str, Any]], most: int, sampling: Sampling, seed: int) -> Turn:
        size = sum(message_size(m["content"]) for m in messages)

        def read(value: Any) -> Paid:
            turn = self._messages.read(value)
            used = turn.used or size + most
            cost = self.client.endpoint.cost(min(used, size), max(0, used - size))
            return Paid([turn.text, turn.cut, turn.used], used, cost)

        body = self._messages.body(self.model, messages, most, sampling, seed) | self.options
        body = {k: v for k, v in body.items() if v is not None}
        text, cut, used = await self._ask(self._messages, body, read, size, most, self.family)
        return Turn(text=text, cut=cut, used=used)

    async def _ask(
        self,
        where: TokenDialect | Messages,
        body: dict[str, Any],
        read: Callable[[Any], Paid],
        size: int,
        most: int,
        family: str = "",
    ) -> Any:
        how: dict[str, Any] = {"tokens_in": size, "tokens_out": most, "free": self.client.endpoint.free}
        return await self.client.ask(where.path, body, read, root=where.root, family=family, **how)


class _Game:
    """All conversations of one `sample`."""

    def __init__(
        self,
        policy: ServedPolicy,
        jobs: Sequence[Job],
        sampling: Sampling,
        seed: int,
        threads: ThreadPoolExecutor,
        tell: Callable[[int, Sampled], None],
    ) -> None:
        self.policy, self.sampling, self.seed, self.threads, self.tell = policy, sampling, seed, threads, tell
        self.waiting = deque(enumerate(jobs))
        self.room = min(policy.client.endpoint.concurrency, len(jobs))
        self.limit = min(sampling.max_context, policy.longest or sampling.max_context)
        self.exact = not policy.unfit(sampling)
        self.failures = 0

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.room):
                    group.create_task(self._player())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None

    async def _player(self) -> None:
        """Play one conversation after the other."""
        while self.waiting:
            index, job = self.waiting.popleft()
            play = self._by_messages if self.policy.ability.dialect is None else self._by_tokens
            sampled = await play(job)
            self.failures = self.failures + 1 if sampled.failed else 0
            self.tell(index, sampled)
            if self.failures >= FAILURES:
                raise ServerDownError(
                    f"{self.failures} conversations in a row have failed. {sampled.failed} What was played is kept; the same "
                    "command goes on from here."
                )

    async def _by_tokens(self, job: Job) -> Sampled:
        policy, dialect, words = self.policy, self.policy.ability.dialect, self.policy.words
        assert dialect is not None
        assert words is not None
        prompt = words.prompt(job.system, job.question)
        row = _Row(prompt)
        if self.limit - len(prompt) < 1:
            return row.ended(self.exact, why=f"The prompt alone has {len(prompt)} tokens, more than {self.limit}.")
        for number in range(10**6):
            most = min(self.sampling.max_turn_tokens, self.limit - len(row.seen))
            draw = Draw(policy.model, row.seen, most, self.sampling, turn_seed(self.seed, job.key, number), words.end)
            try:
                turn = await policy.token_turn(dialect, draw)
            except CallError as e:
                return self._broken(row, e)
            row.said(turn)
            if turn.cut:
                return row.ended(self.exact, why=self._cut(len(turn.ids)))
            if (
                turn.ids[-1] != words.end
            ):  # it stopped at another token: what it reads next time must hold the end all the same
                row.told((words.end,))
            message, forced = await self._step(_advance, words, job, turn.ids)
            if message is None:
                break
            if len(forced) >= self.limit - len(row.seen):
                return row.ended(self.exact, why=self._cut(0))
            row.told(forced)
        return row.ended(self.exact)

    async def _by_messages(self, job: Job) -> Sampled:
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": job.system},
            {"role": "user", "content": job.question},
        ]
        used = 0
        for number in range(10**6):
            most = min(self.sampling.max_turn_tokens, self.limit - used)
            seed = turn_seed(self.seed, job.key, number)
            try:
                turn = await self.policy.message_turn(messages, most, self.sampling, seed)
            except CallError as e:
                return self._broken(_Row(()), e)
            used = turn.used
            if turn.cut:
                return Sampled((), (), (), (), self._cut(most))
            text = turn.text
            message = await self._step(_observe, self.policy.eyes, job, text)
            if message is None:
                break
            if used >= self.limit:
                return Sampled((), (), (), (), self._cut(0))
            messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": message}]
        return Sampled((), (), (), ())

    def _broken(self, row: _Row, error: CallError) -> Sampled:
        """Return the record of a conversation whose server failed; at the server's own limit it was merely too long."""
        if "HTTP 400" in error.reason and TOO_LONG.search(error.reason):
            return row.ended(self.exact, why=f"The trajectory is longer than the server allows: {error.reason}.")
        return row.ended(self.exact, failed=f"The {self.policy.client.endpoint.name}'s server failed: {error.reason}.")

    def _cut(self, turn: int) -> str:
        """Return the sentence of policy/local.py for a conversation that met a limit."""
        long_turn = turn >= self.sampling.max_turn_tokens
        return f"{f'The turn has {turn}' if long_turn else f'The trajectory has {self.limit}'} tokens and did not come to its end."

    async def _step(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run what may wait for a tool where it holds up nobody else."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)


def _observe(eyes: Eyes | None, job: Job, said: str) -> str | list[dict[str, Any]] | None:
    """Return what follows a turn: the next message, behind it the pictures that come with it, each under its id. One that
    cannot be read is not shown."""
    message = job.step(said)
    if message is None or eyes is None or job.pictures is None:
        return message
    parts: list[dict[str, Any]] = [{"type": "text", "text": message}]
    for img_id, file in job.pictures():
        try:
            url = DataUrl(jpeg(eyes, file), "image/jpeg")
        except (ToolError, ValueError, OSError):
            continue
        parts += [{"type": "text", "text": f"{img_id}:"}, {"type": "image_url", "image_url": {"url": url}}]
    return parts if len(parts) > 1 else message


class _Row:
    """The tokens of a conversation under way."""

    def __init__(self, prompt: tuple[int, ...]) -> None:
        self.prompt = prompt
        self.seen = list(prompt)
        self.mask: list[int] = []
        self.logprobs: list[float] = []

    def said(self, turn: Turn) -> None:
        self.seen += turn.ids
        self.mask += [1] * len(turn.ids)
        self.logprobs += turn.logprobs

    def told(self, ids: tuple[int, ...]) -> None:
        self.seen += ids
        self.mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def ended(self, exact: bool, why: str = "", failed: str = "") -> Sampled:
        if not exact:  # log-probs of another distribution must not be taken for the ones that training needs
            return Sampled((), (), (), (), why, failed=failed)
        ids = tuple(self.seen[len(self.prompt) :])
        return Sampled(self.prompt, ids, tuple(self.mask), tuple(self.logprobs), why, failed=failed)


def _advance(words: ChatML, job: Job, turn: tuple[int, ...]) -> tuple[str | None, tuple[int, ...]]:
    """Return the job's next message and its ids."""
    message = job.step(words.decode(turn[:-1] if turn[-1] == words.end else turn))
    return message, () if message is None else words.encode(words.observation(message))


def turn_seed(seed: int, key: str, turn: int) -> int:
    """Return the server's seed for a turn, 31 bits: a conversation draws the same numbers in whatever company, as far as
    the server keeps to its seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{key}\n{turn}".encode()).digest()[:4], "big") >> 1


def tokenizer_folder(name: str) -> Path | None:
    """Return the folder with the tokenizer.json of a policy folder (an adapter's may be its base's) or of a model in the
    local Hugging Face cache."""
    if Path(name).is_dir():
        root = checkpoint.tokenizer_folder(name)
        return root if (root / "tokenizer.json").is_file() else None
    if Path(name).exists() or name.count("/") > 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = name.partition("@")
    try:
        found = try_to_load_from_cache(repository, "tokenizer.json", revision=revision or None)
    except ValueError:
        return None
    return Path(found).parent if isinstance(found, str) else None
