"""The sampling loop of all local policies: continuous batching over an engine's slots, tokens in and tokens out (ours)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from genevolve.policy.base import Job, Sampled, Sampling
from genevolve.policy.draw import draw, uniforms
from genevolve.records import Picture

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Piece(NamedTuple):
    """Tokens that stand between the policy's own, and the pictures among them."""

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()
    """`Picture.at` counts from the beginning of this piece."""
    pixels: Any = None
    """What the engine's `extend` needs to see them; None without pictures."""


class Speaker(Protocol):
    """A policy as the loop needs it: how conversations become tokens and back."""

    end: int
    """The token that ends an assistant's turn."""
    never: Tensor | None
    """Ids that are never drawn, [N] on the engine's device: placeholders of pictures and ids without a token."""

    def opening(self, job: Job) -> tuple[int, ...]:
        """Return the prompt, up to the first assistant token."""
        ...

    def reply(self, job: Job, message: str) -> Piece:
        """Return what follows the assistant's end token, up to its next turn."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a turn, its end token left out."""
        ...


class Engine(Protocol):
    """Rows of tokens in slots 0..R-1 with their key-value caches; see engine.py and slots.py."""

    slots: int
    capacity: int
    vocabulary: int
    device: torch.device

    def reset(self, slot: int) -> None: ...

    def move(self, source: int, target: int) -> None: ...

    def save(self, slot: int, logits: Tensor) -> Any: ...

    def restore(self, slot: int, saved: Any) -> Tensor: ...

    def extend(self, slot: int, ids: Sequence[int], pixels: Any = None) -> Tensor: ...

    def decode(self, tokens: Sequence[int]) -> Tensor: ...


class Row:
    """A conversation under way."""

    __slots__ = ("done", "forced", "ids", "index", "job", "logprobs", "mask", "pictures", "prompt", "turn", "why")

    def __init__(self, index: int, job: Job, prompt: tuple[int, ...]) -> None:
        self.index, self.job, self.prompt = index, job, prompt
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []
        self.turn: list[int] = []
        self.forced: Piece | None = None  # an observation to append after the token just drawn
        self.pictures: list[Picture] = []
        self.done, self.why = False, ""


class Loop:
    """Continuous batching: rows in slots 0..R-1, a finished row's slot is filled from the end, new rows join behind."""

    def __init__(
        self,
        policy: Speaker,
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
        told: dict[tuple[str, str], tuple[int, ...]] = {}
        prompts = []
        for job in jobs:
            said = (job.system, job.question)
            if said not in told:
                told[said] = policy.opening(job)
            prompts.append(told[said])
        self.waiting = deque(Row(i, job, prompt) for i, (job, prompt) in enumerate(zip(jobs, prompts, strict=True)))
        self.uses = Counter(prompts)
        self.saved: dict[tuple[int, ...], Any] = {}
        self.rows: list[Row] = []
        self.out: list[Sampled | None] = [None] * len(jobs)
        self.logits = torch.empty(slots, engine.vocabulary, device=engine.device)
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
        u = self.u[:n].gather(1, at[:, None])[:, 0].to(self.engine.device)
        return draw(self.logits[:n], u, self.sampling.temperature, self.sampling.top_p, self.policy.never)

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

    def _take(self, row: Row, token: int, logprob: float) -> None:
        """Record a drawn token; at the end of a turn ask the job what comes next."""
        row.ids.append(token)
        row.mask.append(1)
        row.logprobs.append(logprob)
        row.turn.append(token)
        room = self.sampling.max_context - len(row.prompt) - len(row.ids)
        if token == self.policy.end:
            text = self.policy.text(row.turn[:-1])
            row.turn = []
            message = row.job.step(text)
            if message is None:
                row.done = True
                return
            piece = self.policy.reply(row.job, message)
            if len(piece.ids) < room:
                row.forced = piece
                row.pictures += [p.model_copy(update={"at": p.at + len(row.ids)}) for p in piece.pictures]
                row.ids += piece.ids
                row.mask += [0] * len(piece.ids)
                row.logprobs += [0.0] * len(piece.ids)
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
            if row.forced is not None:
                self.logits[slot] = self.engine.extend(slot, row.forced.ids, row.forced.pixels)
                row.forced = None

    def _end(self, row: Row) -> None:
        sampled = Sampled(
            row.prompt, tuple(row.ids), tuple(row.mask), tuple(row.logprobs), row.why, tuple(row.pictures)
        )
        self.out[row.index] = sampled
        if self.on_done is not None:
            self.on_done(row.index, sampled)
