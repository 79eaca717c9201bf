"""One trajectory's state machine: assistant text in, observation text out, until there is a program or there is none.

Pure Python; it knows no model. All rules of method.md, section 1, are here, in `protocol.py` (grammar) and `rules.py`
(programs); another wording, with rules of its own, is a `dialogue.Dialogue`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from genevolve.agent.dialogue import OURS, Dialogue
from genevolve.agent.format import TAGS, escape
from genevolve.agent.protocol import TOOLS_CLOSED, Answer, Call, FormatError
from genevolve.agent.rules import RuleError
from genevolve.errors import GenEvolveError
from genevolve.records import Message, Program, Termination, ToolCall
from genevolve.scene import SKILLS
from genevolve.tools.base import ImageSearch, Knowledge, Search, ToolError

Result = list[dict[str, Any]]


@dataclass(frozen=True)
class Tools:
    """The three tools of one world, how many results a call gets that names no `top_k`, and how their results are told."""

    search: Search
    image_search: ImageSearch
    knowledge: Knowledge
    top_k: int = 5
    show: int = 0
    """how many pictures of an image_search result a policy with eyes is shown"""
    dialogue: Dialogue = OURS


@dataclass(frozen=True)
class Limits:
    """How long a trajectory may become. Defaults: method.md, section 1 (the public release)."""

    tool_calls: int = 10
    rounds: int = 11


class _Refused(Exception):
    """Internal: a call that the rules refuse; the message is the sentence shown to the model."""


class Session:
    """One trajectory. `start` gives the prompt; `step` takes each assistant turn and returns the observation that
    follows it, or None when the trajectory has ended. After that `termination` is set, and `program` or `failure`."""

    def __init__(self, tools: Tools, limits: Limits | None = None) -> None:
        self.tools = tools
        self.dialogue = tools.dialogue
        self.limits = limits or Limits()
        self.messages: list[Message] = []
        self.tool_calls: list[ToolCall] = []
        self.program: Program | None = None
        self.termination: Termination | None = None
        self.failure = ""
        self.format_errors = 0
        self.pictures: tuple[tuple[str, str], ...] = ()
        """(img_id, file) of the pictures to show with the last observation."""
        self._files: dict[str, str] = {}
        self._asked: set[tuple[str, str]] = set()
        self._round = 0

    @property
    def finished(self) -> bool:
        return self.termination is not None

    def start(self, question: str, system: str) -> list[Message]:
        """Return the system and the user message. A question that holds tags or chat tokens is escaped."""
        if self.messages:
            raise RuntimeError("A session is started once.")
        hostile = "<|" in question or any(f"{tag}>" in question.lower() for tag in TAGS)
        text = "\n".join(escape(line) for line in question.splitlines()) if hostile else question
        if self._last_round():
            text += "\n" + self.dialogue.final_step
        self.messages = [Message(role="system", content=system), Message(role="user", content=text)]
        return list(self.messages)

    def step(self, assistant_text: str) -> str | None:
        """Take one assistant turn; return the observation for the next user message, None when it was the last turn."""
        if not self.messages or self.finished:
            raise RuntimeError("This session is not waiting for a turn.")
        self.messages.append(Message(role="assistant", content=_storable(assistant_text)))
        self.pictures = ()
        final = self._last_round()
        turn = self.dialogue.parse(assistant_text, final)
        if isinstance(turn, Call):
            observation = self._use(turn)
        else:
            reason = turn.reason if isinstance(turn, FormatError) else self._answer(turn)
            if reason is None:
                return None
            self.format_errors += 1
            observation = self.dialogue.format_error(reason)
            if final:
                self.stop("rounds" if reason == TOOLS_CLOSED else "protocol", reason)
        self._round += 1
        if self.finished:
            return None
        if self._last_round():
            observation += "\n" + self.dialogue.final_step
        self.messages.append(Message(role="user", content=observation))
        return observation

    def stop(self, termination: Termination, failure: str) -> None:
        """End the trajectory without a program: the sampler ran out of tokens, or something broke."""
        if not self.finished:
            self.termination, self.failure = termination, failure

    def _last_round(self) -> bool:
        return self._round + 1 >= self.limits.rounds or len(self.tool_calls) >= self.limits.tool_calls

    def _answer(self, answer: Answer) -> str | None:
        """Return None when the answer became the program, else the sentence of the rule it breaks."""
        try:
            self.program = self.dialogue.program(answer, self._files)
        except RuleError as e:
            return str(e)
        self.termination = "answer"
        return None

    def _use(self, call: Call) -> str:
        """Run one call, record it and return its observation. A tool that raises is an observation, not a crash;
        only an error that is meant for the user ends the command."""
        run: Callable[[Call], tuple[str, Result]] = {
            "search": self._search,
            "image_search": self._image_search,
            "query_knowledge": self._query_knowledge,
        }[call.name]
        ok = False
        result: Result = []
        try:
            observation, result = run(call)
            ok = True
        except _Refused as e:
            observation = self.dialogue.said(str(e))
        except GenEvolveError:  # no money left, or a key that is refused: the user mends it, a policy cannot
            raise
        except ToolError as e:
            observation = self.dialogue.failed(call.name, f"failed: {str(e)[:200]}")
        except Exception as e:  # the message may hold keys and paths; its type does not
            observation = self.dialogue.failed(call.name, f"failed ({type(e).__name__}); try something else.")
        self.tool_calls.append(
            ToolCall(turn=self._round, name=call.name, arguments=call.arguments, ok=ok, result=result)
        )
        return observation

    def _known(self, tool: str, query: str) -> bool:
        """Return whether this was asked and answered before, where a dialogue refuses to do it again."""
        return not self.dialogue.repeats and (tool, query) in self._asked

    def _search(self, call: Call) -> tuple[str, Result]:
        queries = {_key(q): q for q in call.arguments["queries"]}
        new = {key: q for key, q in queries.items() if not self._known("search", key)}
        if not new:
            raise _Refused("You have searched for this already: read its results, or ask in other words.")
        top_k = call.arguments.get("top_k", self.tools.top_k)
        rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        for query in new.values():
            for hit in self.tools.search.search(query, top_k):
                row = {"query": query, "title": hit.title, "url": hit.url, "snippet": hit.snippet}
                rows.setdefault((hit.title, hit.snippet, query if self.dialogue.repeats else ""), row)
        self._asked.update(("search", key) for key in new)
        found = list(rows.values())
        return self.dialogue.search(list(new.values()), found), found

    def _image_search(self, call: Call) -> tuple[str, Result]:
        query = call.arguments["query"]
        key = ("image_search", _key(query))
        if self._known(*key):
            raise _Refused("You have looked for this picture already: use its results, or ask in other words.")
        hits = self.tools.image_search.search(query, call.arguments.get("top_k", self.tools.top_k))
        ids = {file: img_id for img_id, file in self._files.items()} if self.dialogue.repeats else {}
        rows: Result = []
        for h in hits:
            img_id = ids.get(h.file, f"IMG_{len(self._files) + 1:03d}")
            self._files[img_id] = h.file
            rows.append({"img_id": img_id, "title": h.title, "url": h.url, "file": h.file})
        self._asked.add(key)
        self.pictures = tuple((row["img_id"], row["file"]) for row in rows[: self.tools.show])
        return self.dialogue.images(query, rows), rows

    def _query_knowledge(self, call: Call) -> tuple[str, Result]:
        skill = call.arguments["skill_name"]
        if skill not in SKILLS:
            raise _Refused(f"There is no such skill; the skills are {', '.join(SKILLS)}.")
        if self._known("query_knowledge", skill):
            raise _Refused("You have read this skill already.")
        text = self.tools.knowledge.read(skill)
        self._asked.add(("query_knowledge", skill))
        return self.dialogue.skill(skill, text), [{"skill_name": skill, "text": text}]


def _key(query: str) -> str:
    """Two queries are the same when only case and spacing tell them apart."""
    return " ".join(query.split()).casefold()


def _storable(text: str) -> str:
    """Return text that UTF-8 can hold: a lone surrogate from a server must not break the record."""
    return text.encode("utf-8", "replace").decode("utf-8")
