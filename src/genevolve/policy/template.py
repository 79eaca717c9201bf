"""How a conversation becomes tokens under a model's own chat template, piece by piece (ours).

The loop appends: prompt, the policy's turn, observation, turn, ... A chat template renders whole conversations, and some
rewrite what was said before (Qwen3's drops the `<think>` of former turns). `ChatTemplate` therefore proves when it is made
that for our turn grammar the template only ever appends, in text and in tokens, and takes ChatML otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genevolve.agent.chat import observation_text, prompt_text
from genevolve.policy.base import PolicyError

_SYSTEM = "You are an agent.\n\nUse tools: search."
_QUESTION = "Draw 2 things.\nOne with a sign."
_TURN = '<think> first {n}</think><tool_call>{{"name": "search", "arguments": {{"queries": [" x{n}"]}}}}</tool_call>'
_SEEN = "<tool_response>\n - fact {n}\n</tool_response>\nFinal step."
CHATML = ("<|im_start|>", "<|im_end|>")


class _Unfit(PolicyError):
    """This way of writing conversations is not append-only; the message says where."""


class ChatTemplate:
    """The prompt, and what stands between the policy's turns, as token ids. Nothing is tokenised twice."""

    def __init__(self, tokenizer: Any, name: str = "this policy") -> None:
        """Raise PolicyError when the tokenizer's chat template rewrites former turns and it has no ChatML tokens."""
        self.tokenizer, self.name = tokenizer, name
        self.special = sorted(
            {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(tokenizer.all_special_tokens),
            key=lambda t: (-len(t), t),
        )
        self.own, self.parts, why = False, False, "it has none"
        if tokenizer.chat_template:
            self.own = True
            for self.parts in (False, True):  # messages as strings, or as lists of parts: some templates take only one
                try:
                    return self._prove()
                except _Unfit as e:
                    why = str(e)
        self.own = self.parts = False
        known = tokenizer.get_vocab()
        if any(t not in known for t in CHATML):
            raise PolicyError(
                f"{name}: the chat template cannot be appended to ({why}) and the tokenizer has no ChatML tokens, so it "
                "cannot be played token by token; serve it and use the policy `openai`."
            )
        try:
            self._prove()
        except _Unfit as e:
            raise PolicyError(f"{name}: neither its chat template nor ChatML can be appended to ({e}).") from e

    @classmethod
    def load(cls, folder: str | Path, name: str = "") -> ChatTemplate:
        """Read a folder's tokenizer and template; raises PolicyError in one sentence."""
        from transformers import AutoTokenizer

        root = Path(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(root, local_files_only=True, trust_remote_code=False)
            older = root / "chat_template.json"  # where processors of image-text models used to keep it
            if not tokenizer.chat_template and older.is_file():
                tokenizer.chat_template = json.loads(older.read_text(encoding="utf-8"))["chat_template"]
        except Exception as e:  # it raises what its many parts raise
            raise PolicyError(f"{name or root}: the tokenizer cannot be read ({_short(e)}).") from e
        return cls(tokenizer, name or str(root))

    def prompt(self, system: str, question: str) -> tuple[int, ...]:
        """Return the ids of system and user message, up to the first assistant token."""
        return self.encode(self._prompt(system, self._plain(question)))

    def observation(self, text: str, shown: Sequence[str] = ()) -> str:
        """Return the text from behind an assistant's end token to its next turn; `shown` (img_ids) get a line each with
        the placeholder of one picture."""
        lines = "".join(f"\n{img_id}: {self.placeholder()}" for img_id in shown)
        return self._observation(self._plain(text) + lines)

    def turn(self, text: str) -> tuple[int, ...]:
        """Return the ids of an assistant's turn, its end token included: what supervised training learns."""
        return (*self.encode(text), self.end)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text that already holds its chat tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, chat tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def placeholder(self) -> str:
        """Return what the template writes for one picture in a user message; raises PolicyError when that is nothing."""
        parts = [{"type": "text", "text": "Left "}, {"type": "image"}, {"type": "text", "text": " right"}]
        try:
            text = self._rendered([{"role": "user", "content": parts}], False) if self.tokenizer.chat_template else ""
        except _Unfit:
            text = ""
        marker, found, _ = text.partition("Left ")[2].partition(" right")
        if not found or not any(token in marker for token in self.special):
            raise PolicyError(f"{self.name}: its chat template shows no pictures; set sampling.show_images to 0.")
        return marker

    def _plain(self, text: str) -> str:
        """Return text in which nothing is read as a chat token: a space goes behind its first character."""
        for token in self.special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _prompt(self, system: str, question: str) -> str:
        if not self.own:
            return prompt_text(system, question)
        return self._render([self._message("system", system), self._message("user", question)], True)

    def _observation(self, text: str) -> str:
        if not self.own:
            return observation_text(text)
        whole = self._render([*self._lead, self._message("user", text)], True)
        if not whole.startswith(self._before):
            raise _Unfit("an observation changes what stands before it")
        return whole[len(self._before) :]

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self.parts else text}

    def _render(self, messages: list[dict[str, Any]], more: bool) -> str:
        if not self.own:
            text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
            return text + ("<|im_start|>assistant\n" if more else "")
        return self._rendered(messages, more)

    def _rendered(self, messages: list[dict[str, Any]], more: bool) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=more))
        except Exception as e:  # a template is a program of a stranger's
            raise _Unfit(_short(e)) from e

    def _prove(self) -> None:
        """Find the end token, and check on a conversation of three turns that pieces add up to the whole."""
        start = [self._message("system", _SYSTEM), self._message("user", _QUESTION)]
        text, turns = self._render(start, True), [_TURN.format(n=n) for n in (1, 2, 3)]
        if _QUESTION not in text or _SYSTEM not in text:
            raise _Unfit("it leaves out the system or the user message")
        messages = [*start, self._message("assistant", turns[0])]
        closed = self._render(messages, False)
        if not closed.startswith(text + turns[0]):
            raise _Unfit("a turn is not rendered as it was said")
        tail = self.encode(closed[len(text + turns[0]) :])
        end = self.tokenizer.convert_ids_to_tokens(tail[0]) if tail else ""
        if end not in self.special:
            raise _Unfit("no special token ends a turn")
        self.end: int = tail[0]
        self._lead, self._before = messages, text + turns[0] + end
        ids = [*self.encode(text), *self.turn(turns[0])]
        for n, turn in enumerate(turns[1:], 1):
            seen = _SEEN.format(n=n)
            piece = self._observation(seen)
            text += turns[n - 1] + end + piece
            messages = [*messages, self._message("user", seen)]
            if self._render(messages, True) != text:
                raise _Unfit("former turns are rewritten when the conversation goes on")
            ids += [*self.encode(piece), *self.turn(turn)]
            messages = [*messages, self._message("assistant", turn)]
        if tuple(ids) != self.encode(text + turns[-1] + end):
            raise _Unfit("tokens run across the borders of turns")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
