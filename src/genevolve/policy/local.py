"""A policy from a Hugging Face folder: tokens in, tokens out, nothing prefilled twice, nothing tokenised twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.agent.chat import observation_text, prompt_text
from genevolve.policy.base import Job, PolicyError, Sampled, Sampling
from genevolve.policy.engine import Engine
from genevolve.policy.loop import Loop, Piece
from genevolve.training.checkpoint import ADAPTER, CheckpointError, policy_hash, tokenizer_hash

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

END = "<|im_end|>"
ARCHITECTURE = "Qwen3ForCausalLM"


class LocalPolicy:
    """Weights and tokenizer of a Qwen3 causal language model that reads ChatML, played by our own engine on the CPU."""

    never = None

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

    @staticmethod
    def plays(folder: str | Path) -> bool:
        """Return whether this is a folder of the one architecture our engine computes, and no adapter; True where that
        cannot be read, so that `load` says what is wrong."""
        root = Path(folder)
        if not root.is_dir():
            return False
        if (root / ADAPTER).is_file():
            return False
        try:
            config = json.loads((root / "config.json").read_text(encoding="utf-8"))
            return str(config["architectures"][0]) == ARCHITECTURE
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return True

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
        if kind != ARCHITECTURE:
            raise PolicyError(f"{root}: our engine decodes {ARCHITECTURE}, not {kind}.")
        return cls(weights, config, tokenizer, hashes)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, hashes: tuple[str, str] = ("", "")) -> LocalPolicy:
        """Wrap a live Qwen3ForCausalLM and a PreTrainedTokenizerFast; the weights are copied at the first `sample`."""
        return cls(model.state_dict(), model.config.to_dict(), tokenizer.backend_tokenizer, hashes)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that already holds its chat tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def opening(self, job: Job) -> tuple[int, ...]:
        """Return the ids before the first assistant token."""
        return tuple(self.encode(prompt_text(job.system, job.question)))

    def reply(self, job: Job, message: str) -> Piece:
        """Return the ids between an assistant's end token and its next turn."""
        return Piece(tuple(self.encode(observation_text(message))))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a turn, its end token left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

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
            return Loop(self, engine, jobs, sampling, seed, slots, on_done).run()
