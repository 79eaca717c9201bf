"""What a policy is to the agent loop: something that plays many conversations at once, tokens in and tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from genevolve.errors import GenEvolveError, TryLaterError
from genevolve.records import Picture


class PolicyError(GenEvolveError):
    """A policy cannot be loaded or used; the message says which and why."""


class ServerDownError(PolicyError, TryLaterError):
    """The server that a policy lies on has stopped answering."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and how many a trajectory may have."""

    temperature: float = 0.7
    """0 is greedy; log-probs are then recorded at temperature 1. [P]: .7"""
    top_p: float = 0.95
    max_turn_tokens: int = 160
    """Tokens of one assistant turn, its <|im_end|> included."""
    max_context: int = 512
    """Tokens of a whole trajectory, prompt and observations included."""
    batch: int = 48
    """Trajectories decoded together."""


@dataclass(frozen=True)
class Job:
    """One conversation to play. `step` takes an assistant turn's text and returns the next user message, None at the end."""

    key: str
    """names the random stream: the same key and seed draw the same numbers in whatever company"""
    system: str
    question: str
    step: Callable[[str], str | None]
    pictures: Callable[[], Sequence[tuple[str, str]]] | None = None
    """Returns (img_id, file) of the pictures to show with the message that `step` returned last; None: none, ever."""


@dataclass(frozen=True)
class Sampled:
    """The tokens of one conversation: prompt [P]; completion, mask and logprobs [C] as in records.Trajectory.

    All four are empty where a server gave no exact tokens with the log-probs that training needs.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    assistant_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    overlong: str = ""
    """why the conversation was cut before its end, in a sentence; empty when `step` ended it"""
    pictures: tuple[Picture, ...] = ()
    """what the policy was shown among the completion's tokens"""
    failed: str = ""
    """why it broke off through no doing of the policy's (its server), in a sentence; such a record is missing, not bad"""


class Policy(Protocol):
    """A policy that samples; hashes name its weights and tokenizer in every trajectory."""

    policy_hash: str
    tokenizer_hash: str

    def sample(
        self, jobs: Sequence[Job], sampling: Sampling, seed: int, on_done: Callable[[int, Sampled], None] | None = None
    ) -> list[Sampled]:
        """Play all jobs to their end and return them in order; `on_done(index, sampled)` is told as each one ends."""
        ...
