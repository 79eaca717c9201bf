"""The tokenizer of the embedded base: byte-level BPE with the protocol's scaffolds as single tokens (ours).

A word must have the same tokens wherever it stands, or a small model cannot copy it: words keep their leading space,
digits and punctuation stand alone, and every JSON string begins with a space (agent/format.py). For the same reason
no text is cut into tokens that practice does not teach (`drop_rare`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from genevolve.scene import SKILLS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

SCAFFOLDS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<answer>",
    "</answer>",
    "<tool_response>\n",
    "\n</tool_response>",
    '</think><tool_call>{"name": "search", "arguments": {"queries": ["',
    '</think><tool_call>{"name": "image_search", "arguments": {"query": "',
    '</think><tool_call>{"name": "query_knowledge", "arguments": {"skill_name": "',
    '</think><answer>{"gen_prompt": "',
    '"]}}</tool_call>',
    '"}}</tool_call>',
    '", "reference_images": [{"img_id": "',
    '", "note": "',
    '"}, {"img_id": "',
    '"}]}</answer>',
)
"""Text the protocol repeats in every turn: one token each, so that turns are short and their format is easy to learn."""

IMG_TOKENS = tuple(f" IMG_{i:03d}" for i in range(1, 61))
"""An id with its space: the same token behind a title, in a thought and in the answer."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Return a trained fast tokenizer with the ChatML template; deterministic for the same texts in the same order."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [*SCAFFOLDS, *SKILLS, *IMG_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


RARE = 30
"""Tokens that stand fewer times in 6,000 examples of practice are dropped. Of 10, 30, 50, 100 and 300 this one served best:
with more the common tokens turn up where the base never saw them (docs/results.md)."""


def drop_rare(tokenizer: PreTrainedTokenizerFast, counts: Mapping[int, int], least: int = RARE) -> None:
    """Have the tokenizer, in place, cut words into tokens that stand `least` times in practice; ids stay as they are.

    Byte-pair encoding needs rare tokens as steps (" mamm" on the way to " mammal"), and leaves them where a word ends
    otherwise (" mammoth"); a token that was never a target cannot be copied. So words are cut into the fewest tokens that
    are left, those merged first where there is a choice (the Unigram model with one score for all); 97% of the words of
    practice keep their tokens. Does nothing to a tokenizer that is no BPE: it has been here before.
    """
    from tokenizers import models

    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE":
        return
    vocabulary: dict[str, int] = model["vocab"]
    rank = {vocabulary["".join(merge)]: i for i, merge in enumerate(model["merges"])}

    def score(token: int) -> float:
        if token not in rank:
            return -1.0  # bytes, of which everything can be made
        return -1.0 - 1e-6 * rank[token] if counts.get(token, 0) >= least else -1e6

    pieces = sorted(vocabulary.items(), key=lambda item: item[1])
    backend.model = models.Unigram([(text, score(token)) for text, token in pieces], unk_id=None, byte_fallback=False)


def letter_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Return the tokens that are ASCII letters, those that begin a word with a space before them, in a fixed order."""
    texts = (token.replace("\u0120", " ") for token in tokenizer.get_vocab())
    return tuple(sorted(t for t in texts if re.fullmatch(" ?[A-Za-z]+", t)))
