"""The summariser behind an OpenAI-compatible server: a best-worst pair in, one bundle out (paper, section 5).

Temperature 0; the prompt is a Markdown file, ours in `prompts/` or the user's; the pair stands fenced as JSON, since
requests, search results and the policy's own words are anybody's. What comes back is held against the paper's rules
(`faults`) and, when it breaks them, sent back once with what was wrong; a pair that fails twice has no bundle. Each
question is paid once (family `summary`), so a killed round asks nothing again. A service that is down (`services.steady`)
ends the command: a round that it left without bundles would teach nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from genevolve.errors import SettingsError
from genevolve.experience.bullets import FIELD_OF, STANDARD
from genevolve.experience.contrast import Pair
from genevolve.experience.summarise import violations
from genevolve.experience.text import quoted, unquoted_names, words
from genevolve.records import Bundle, DecisionGuidance, RetrievalKey, Trajectory
from genevolve.services import loop
from genevolve.services.chat import Ask, Chat, system, user
from genevolve.services.client import CallError
from genevolve.services.fence import fenced
from genevolve.services.steady import DOWN, Steady

PROMPT = Path(__file__).parent / "prompts" / "summarise.md"
TRIES = 2
TURN, OBSERVATION, ATTEMPT = 4000, 1500, 40_000
"""Most characters of an assistant's turn, of a tool's answer, and of a whole attempt that are shown."""
LEAST_SLOTS, MOST_BULLETS, MOST_WORDS = 3, 8, 40
"""Slots that must have bullets; bullets a slot may have; words of focus, trigger and summary."""
TOLD = 8
"""Most faults that are sent back."""

_TAG = re.compile(r"<(/?)(think|tool_call|answer|tool_response)>")
_NO_ORDER = frozenset(
    "a an the this that these those it its he she they we you i there here best worst both when if because".split()
)
_ABBREVIATIONS = frozenset("ai id ids json ocr png rgb url urls vlm".split())
_MARK = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")
_STANDARD = re.compile(rf"^{STANDARD}\s*", re.IGNORECASE)


def prompt_text(file: str) -> str:
    """Return the summariser's prompt: of `file`, or ours where it is empty. Raises SettingsError, one sentence."""
    path = Path(file) if file else PROMPT
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as e:
        raise SettingsError(f"The summariser's prompt {path} cannot be read ({e.strerror}).") from e
    except UnicodeDecodeError as e:
        raise SettingsError(f"The summariser's prompt {path} is not UTF-8 text.") from e
    if not text:
        raise SettingsError(f"The summariser's prompt {path} is empty.")
    return text


def _bullets(value: Any) -> Any:
    """Take list marks and stray spaces off, and write the prefix as the paper does."""
    rows = [value] if isinstance(value, str) else value
    if not isinstance(rows, list):
        return rows
    return tuple(_bullet(r) if isinstance(r, str) else r for r in rows)


def _bullet(text: str) -> str:
    line = _MARK.sub("", " ".join(text.split()))
    return _STANDARD.sub(f"{STANDARD} ", line) if _STANDARD.match(line) else line


Bullets = Annotated[tuple[str, ...], BeforeValidator(_bullets)]


class Guidance(BaseModel):
    """`decision_guidance` as the model writes it."""

    model_config = ConfigDict(extra="ignore")
    focus: str
    recommended_tool_plan: Bullets = ()
    search_query_guidance: Bullets = ()
    skill_routing_guidance: Bullets = ()
    reference_selection_guidance: Bullets = ()
    prompt_program_guidance: Bullets = ()
    failure_guards: Bullets = ()


class Key(BaseModel):
    model_config = ConfigDict(extra="ignore")
    trigger: str
    source_prompt_summary: str


class Advice(BaseModel):
    """What the model answers with."""

    model_config = ConfigDict(extra="ignore")
    retrieval_key: Key
    decision_guidance: Guidance


class LlmSummariser:
    """A Summariser; the pairs of a step are under way together."""

    def __init__(self, chat: Chat, prompt: str, options: Mapping[str, Any] | None = None) -> None:
        self.chat, self.prompt, self.options = chat, prompt, dict(options or {})
        self.reasons: list[str] = []

    def bundles(self, pairs: Sequence[Pair], step: int = 0) -> list[Bundle | None]:
        """Return a bundle per pair, None where the model wrote none that keeps the rules.

        Raises ServiceError, BudgetError and TryLaterError: the command cannot go on.
        """
        # a round has few pairs: when none of them is answered, and it is not one alone, the service is down
        steady = Steady("The summariser", max(2, min(DOWN, len(pairs))))
        found = loop.spread((self._one(pair, step, steady) for pair in pairs), self.chat.client.endpoint.concurrency)
        self.reasons = [f if isinstance(f, str) else "" for f in found]
        return [f if isinstance(f, Bundle) else None for f in found]

    async def _one(self, pair: Pair, step: int, steady: Steady) -> Bundle | str:
        foreign = names_of(pair)

        def check(advice: Advice, raw: str) -> None:
            if wrong := faults(_bundle(pair, step, advice), foreign):
                raise ValueError("; ".join(wrong[:TOLD]))

        ask = Ask((system(self.prompt), user(pair_text(pair))), extra=self.options)
        try:
            advice, _ = await self.chat.object(ask, Advice, family="summary", tries=TRIES, check=check)
        except CallError as e:
            steady.failed(e)
            return f"request {pair.request_id}: no bundle: {e.reason}"
        steady.answered()
        return _bundle(pair, step, advice)


def _bundle(pair: Pair, step: int, advice: Advice) -> Bundle:
    key = {name: " ".join(text.split()) for name, text in advice.retrieval_key.model_dump().items()}
    guidance = advice.decision_guidance.model_dump()
    return Bundle(
        id=f"{pair.request_id}.s{step:03d}",
        request_id=pair.request_id,
        question=pair.best.question,
        retrieval_key=RetrievalKey.model_validate(key),
        decision_guidance=DecisionGuidance.model_validate({**guidance, "focus": " ".join(guidance["focus"].split())}),
        gap=pair.gap,
        best=pair.best.id,
        worst=pair.worst.id,
        step=step,
    )


def names_of(pair: Pair) -> set[str]:
    """Return the words, lower case, of the names that the two attempts found: in their queries and in their references' notes."""
    texts: list[str] = []
    for t in (pair.best, pair.worst):
        for call in t.tool_calls:
            for value in call.arguments.values():
                texts += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
        texts += [r.note for r in t.program.reference_images] if t.program else []
    asked = set(words(pair.best.question)) - unquoted_names(pair.best.question)
    return {w for text in texts for w in unquoted_names(f"x {text}")} - asked


def faults(bundle: Bundle, foreign: Iterable[str] = ()) -> list[str]:
    """Return the rules that a bundle breaks, one phrase each: the paper's (`violations`), and what a model is prone to.

    `foreign`: words of names that the attempts found and the request does not hold.
    """
    found = [v.removeprefix(f"{bundle.id}: ") for v in violations(bundle)]
    telling = set(foreign) - _ABBREVIATIONS
    filled = 0
    for slot, name in FIELD_OF.items():
        rows = getattr(bundle.decision_guidance, name)
        filled += bool(rows)
        if len(rows) > MOST_BULLETS:
            found.append(f"{name} has {len(rows)} bullets, not at most {MOST_BULLETS}")
        for text in rows:
            bare = text.removeprefix(STANDARD).strip()
            named = sorted((unquoted_names(bare) - _ABBREVIATIONS) | (telling & set(words(bare))))
            if named:
                found.append(f"a {slot} bullet holds the name or figure '{named[0]}'")
            first = (bare.split() or [""])[0].casefold().strip(",.:;")
            if first in _NO_ORDER:
                found.append(f"a {slot} bullet begins with '{first}', not with the verb of an order")
    if filled < LEAST_SLOTS:
        found.append(f"only {filled} slots have bullets, not at least {LEAST_SLOTS}")
    key = bundle.retrieval_key
    lines = (
        ("focus", bundle.decision_guidance.focus),
        ("trigger", key.trigger),
        ("source_prompt_summary", key.source_prompt_summary),
    )
    for name, text in lines:
        if not 1 <= len(text.split()) <= MOST_WORDS:
            found.append(f"{name} has {len(text.split())} words, not 1 to {MOST_WORDS}")
        own = (unquoted_names(bundle.question) | telling) & set(words(text))
        if own or any(p in text for p in quoted(bundle.question)):
            found.append(f"{name} names something of the request")
    return found


def pair_text(pair: Pair) -> str:
    """Return what the model reads of a pair."""
    parts = [fenced("request", pair.best.question)]
    parts += [fenced(tag, attempt(t)) for tag, t in (("best", pair.best), ("worst", pair.worst))]
    return "\n\n".join(
        [*parts, f"The better attempt's reward is higher by {pair.gap:g}. Answer with the JSON object alone."]
    )


def attempt(t: Trajectory) -> dict[str, Any]:
    """Return a trajectory as a model reads it: rewards, turns without the system prompt and the request, the program."""
    reward = t.reward
    score = reward.image if reward else None
    said: dict[str, Any] = {"reward": reward.total if reward else None}
    if reward is not None and score is not None:
        said["picture"] = score.model_dump(
            include={"faithfulness", "visual_correctness", "text_accuracy", "aesthetics"}
        )
        said["judge_said"] = score.rationale[:TURN]
    if reward is not None:
        said["program_sufficiency"] = reward.sufficiency
    said["turns"] = _turns(t)
    if t.program is not None:
        said["program"] = {
            "gen_prompt": t.program.gen_prompt,
            "references": [r.note for r in t.program.reference_images],
        }
    return said


def _turns(t: Trajectory) -> list[dict[str, str]]:
    rows, left = [], ATTEMPT
    for message in t.messages[2:]:
        text = _TAG.sub(r"[\1\2]", message.content)
        text = _cut(text, min(left, TURN if message.role == "assistant" else OBSERVATION))
        left = max(0, left - len(text))
        if text:
            rows.append({"agent" if message.role == "assistant" else "tool": text})
    return rows


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(0, most - 4)] + " ..." if most > 4 else ""
