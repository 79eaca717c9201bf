"""ChatML as token ids, for a policy whose weights are elsewhere: prompt, observations, and turns back to text (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve.agent.chat import observation_text, prompt_text
from genevolve.policy.base import PolicyError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|im_end|>"


class ChatML:
    """A tokenizer with ChatML tokens. For all threads."""

    def __init__(self, tokenizer: Tokenizer, name: str = "The tokenizer") -> None:
        """Raise PolicyError for a tokenizer without ChatML tokens."""
        end = tokenizer.token_to_id(END)
        if end is None or tokenizer.token_to_id("<|im_start|>") is None:
            raise PolicyError(f"{name} has no <|im_start|> and {END}: it is not a ChatML tokenizer.")
        self.tokenizer, self.end = tokenizer, int(end)
        self.prompt = lru_cache(64)(self._prompt)  # the rollouts of a request begin alike
        """(system, question) -> the ids before the first assistant token"""

    @classmethod
    def load(cls, folder: str | Path) -> ChatML:
        """Read a folder's tokenizer.json; raises PolicyError in one sentence."""
        from tokenizers import Tokenizer

        path = Path(folder) / "tokenizer.json"
        try:
            return cls(Tokenizer.from_file(str(path)), str(path))
        except PolicyError:
            raise
        except Exception as e:  # tokenizers raises plain Exception
            raise PolicyError(f"{path} cannot be read ({' '.join(str(e).split())[:200]}).") from e

    def _prompt(self, system: str, question: str) -> tuple[int, ...]:
        return self.encode(prompt_text(system, question))

    def observation(self, text: str) -> str:
        """Return the text from behind an assistant's end token to its next turn."""
        return observation_text(text)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text that already holds its chat tokens."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, chat tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
