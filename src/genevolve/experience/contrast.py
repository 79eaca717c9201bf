"""Best-worst contrast: which pairs of rollouts teach something, and what each of the two did (paper, section 5)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from genevolve.experience.text import names, words
from genevolve.experience.wording import Wording, wording
from genevolve.records import Program, ToolCall, Trajectory

_IMG_ID = re.compile(r"IMG_\d+", re.IGNORECASE)
_PROMPT_FIELD = re.compile(r'"gen_prompt"\s*:\s*"((?:[^"\\]|\\.)*)"')
_EPSILON = 1e-9  # .7 - .5 is a gap of .2 to the user, not to a float


@dataclass(frozen=True)
class Pair:
    """The best and the worst trajectory of one request, with R(best) - R(worst)."""

    request_id: str
    best: Trajectory
    worst: Trajectory
    gap: float


@dataclass(frozen=True)
class Contrast:
    """The pairs one step keeps, why every other request has none, and the gap of each request that has one."""

    pairs: tuple[Pair, ...]
    rejected: dict[str, str] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Requests by outcome: `kept` and every reason for rejection."""
        return {"kept": len(self.pairs), **dict(sorted(Counter(self.rejected.values()).items()))}


@dataclass(frozen=True)
class Pick:
    """One reference of a program: its rank among the results of its image search, how its title fits the query."""

    img_id: str
    query: str
    rank: int = field(metadata={"doc": "0 is the first result"})
    title_match: bool = field(metadata={"doc": "no other result of that call has a title nearer to the query"})
    from_request: bool = field(metadata={"doc": "every content word of the query stands in the request"})


@dataclass(frozen=True)
class Actions:
    """What a trajectory did, slot by slot."""

    first_tool: str = ""
    queries: tuple[str, ...] = ()
    specific_query: bool = False
    skills: tuple[str, ...] = ()
    picks: tuple[Pick, ...] = ()
    references: int = 0
    wording: dict[str, Wording] = field(default_factory=dict)
    ids_in_prompt: bool = False
    wasted: int = field(default=0, metadata={"doc": "refused calls and malformed turns"})
    answered: bool = False

    @property
    def search_paid(self) -> bool:
        """True when a reference was found under a name that the request does not hold: search must have given it."""
        return bool(self.queries) and any(not p.from_request for p in self.picks)

    @property
    def title_match(self) -> bool:
        return bool(self.picks) and len(self.picks) == self.references and all(p.title_match for p in self.picks)


def by_request(trajectories: Iterable[Trajectory]) -> dict[str, list[Trajectory]]:
    """Return the groups of a step, request ids sorted, rollouts in order."""
    groups: dict[str, list[Trajectory]] = {}
    for t in trajectories:
        groups.setdefault(t.request_id, []).append(t)
    return {key: sorted(groups[key], key=lambda t: (t.rollout, t.id)) for key in sorted(groups)}


def contrast(groups: Mapping[str, Sequence[Trajectory]], min_gap: float = 0.20, max_pairs: int = 8) -> Contrast:
    """Return the step's best-worst pairs: at most `max_pairs`, the largest gaps first.

    A trajectory without a reward is left out of its group. Ties go to the lower rollout. A request is rejected when
    fewer than two of its rollouts have a reward, when the gap is below `min_gap`, when the worst (or the best) made
    no program, and when eight others have larger gaps; the reason stands in `rejected`.
    """
    pairs: list[Pair] = []
    rejected: dict[str, str] = {}
    gaps: dict[str, float] = {}
    for request_id in sorted(groups):
        found = _pair(request_id, groups[request_id])
        if found is None:
            rejected[request_id] = "fewer than two rewards"
            continue
        gaps[request_id] = found.gap
        reason = _reject(found, min_gap)
        if reason:
            rejected[request_id] = reason
        else:
            pairs.append(found)
    pairs.sort(key=lambda p: (-p.gap, p.request_id))
    rejected.update({p.request_id: "larger gaps came first" for p in pairs[max_pairs:]})
    return Contrast(tuple(pairs[:max_pairs]), rejected, gaps)


def _pair(request_id: str, group: Sequence[Trajectory]) -> Pair | None:
    rewarded = [(t.reward.total, t) for t in group if t.reward is not None and t.reward.total is not None]
    if len(rewarded) < 2:
        return None
    best_total, best = max(rewarded, key=lambda row: (row[0], -row[1].rollout))
    worst_total, worst = min(rewarded, key=lambda row: (row[0], row[1].rollout))
    return Pair(request_id, best, worst, round(best_total - worst_total, 9))


def _reject(pair: Pair, min_gap: float) -> str:
    if pair.gap < min_gap - _EPSILON or pair.best is pair.worst:
        return "gap too small"
    if pair.best.program is None:
        return "best has no program"
    if pair.worst.program is None:
        return "environment error" if pair.worst.termination == "error" else "protocol failure"
    return ""


def actions(trajectory: Trajectory) -> Actions:
    """Return what a trajectory did, read from its tool calls, its program and (for ids in a refused prompt) turns."""
    done = [c for c in trajectory.tool_calls if c.ok]
    queries = tuple(q for c in done if c.name == "search" for q in _strings(c.arguments.get("queries")))
    skills = dict.fromkeys(
        s for c in done if c.name == "query_knowledge" for s in _strings(c.arguments.get("skill_name"))
    )
    program = trajectory.program
    return Actions(
        first_tool=next((c.name for c in done if c.name in ("search", "image_search")), ""),
        queries=queries,
        specific_query=any(specific(q, trajectory.question) for q in queries),
        skills=tuple(skills),
        picks=_picks(program, done, trajectory.question) if program else (),
        references=len(program.reference_images) if program else 0,
        wording=wording(program.gen_prompt) if program else {},
        ids_in_prompt=_ids_in_prompt(trajectory),
        wasted=sum(not c.ok for c in trajectory.tool_calls) + trajectory.format_errors,
        answered=program is not None and trajectory.termination == "answer",
    )


def specific(query: str, question: str) -> bool:
    """Return whether a query carries the request's telling fact: two of its words, a name or code among them if any.

    Lettering to be drawn (a quotation in capitals) is no fact.
    """
    asked, telling = set(words(question)), names(question)
    told = set(words(query))
    lettering = {w for w in telling if w.upper() in question and w not in question}
    facts = telling - lettering
    return len(told & asked - lettering) >= 2 and (not facts or bool(told & facts))


def _strings(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [s.strip() for s in items if isinstance(s, str) and s.strip()]


def _picks(program: Program, calls: Sequence[ToolCall], question: str) -> tuple[Pick, ...]:
    """Trace every reference back to the image search that offered it; an id nobody offered gives no pick."""
    offered = {
        str(row.get("img_id", "")): call
        for call in reversed(calls)
        if call.name == "image_search"
        for row in call.result
    }
    asked = set(words(question))
    picks = []
    for reference in program.reference_images:
        call = offered.get(reference.img_id)
        query = next(iter(_strings(call.arguments.get("query"))), "") if call else ""
        if call is None or not query:
            continue
        rank = next(i for i, row in enumerate(call.result) if row.get("img_id") == reference.img_id)
        match = _matches(query, [str(row.get("title", "")) for row in call.result], rank)
        picks.append(Pick(reference.img_id, query, rank, match, set(words(query)) <= asked))
    return tuple(picks)


def _matches(query: str, titles: Sequence[str], rank: int) -> bool:
    """Return whether the title at `rank` fits the query better than every other title there is."""
    fits = [_fit(query, title) for title in titles]
    best = max(fits)
    return 0 < fits[rank] == best and len({t for t, fit in zip(titles, fits, strict=True) if fit == best}) == 1


def _fit(query: str, title: str) -> float:
    """Word overlap (F1) of a title with the query: 1 for the same words."""
    a, b = set(words(query)), set(words(title))
    return 2 * len(a & b) / (len(a) + len(b)) if a and b else 0.0


def _ids_in_prompt(trajectory: Trajectory) -> bool:
    prompts = [trajectory.program.gen_prompt] if trajectory.program else []
    for message in trajectory.messages:
        if message.role == "assistant":
            prompts += _PROMPT_FIELD.findall(message.content)
    return any(_IMG_ID.search(p) for p in prompts)
