"""What a night plays: requests chosen by what earlier nights of its line showed, and the records that say so (ours).

A night's folder holds, beside what every cycle leaves, `history.jsonl` (all groups that the line played before it) and
`fresh.jsonl` (the requests that nights drew anew). With its own rounds they are what the next night goes by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

from pydantic import Field

from genevolve.experience.contrast import by_request
from genevolve.records import Record, Request, Trajectory, read_jsonl
from genevolve.scene import SKILL_OF

HISTORY, FRESH = "history.jsonl", "fresh.jsonl"
LEARNT = 0.1
"""A request whose last group lacked and varied by less than this in sum is learnt: there is little left to gain."""
COVERAGE = 0.5
"""Weight of how rarely a request's skills were played, against how badly it went."""


class Played(Record):
    """One request's group of one round, as much of it as the curriculum needs."""

    request_id: str
    rewards: tuple[float, ...] = Field(default=(), description="total rewards of the rollouts; missing ones left out")
    lack: float = Field(ge=0, le=1, description="1 - mean quality of the rollouts, see `quality`")

    def spread(self) -> float:
        """Return twice the standard deviation of the rewards, in 0..1: GRPO learns from nothing else."""
        if not self.rewards:
            return 0.0
        mean = sum(self.rewards) / len(self.rewards)
        return 2 * (sum((r - mean) ** 2 for r in self.rewards) / len(self.rewards)) ** 0.5


def quality(trajectory: Trajectory, alpha: float) -> float | None:
    """Return how well a rollout did, 1 at best whether its request has lettering or not; None when a judge failed.

    As the reward, but with the KScore that leaves N/A text out: the reward of a request without text ends at .9.
    """
    if trajectory.program is None:
        return 0.0
    reward = trajectory.reward
    if reward is None or reward.image is None or reward.sufficiency is None:
        return None
    return (1 - alpha) * reward.image.overall_renormalised + alpha * reward.sufficiency


def played(trajectories: Iterable[Trajectory], alpha: float) -> list[Played]:
    """Return one record per request of a round; a group whose every rollout is missing leaves none."""
    out = []
    for request_id, group in by_request(trajectories).items():
        known = [q for t in group if (q := quality(t, alpha)) is not None]
        if known:
            rewards = tuple(t.reward.total for t in group if t.reward is not None and t.reward.total is not None)
            lack = min(1.0, max(0.0, 1 - sum(known) / len(known)))
            out.append(Played(request_id=request_id, rewards=rewards, lack=round(lack, 6)))
    return out


def records_of(folder: Path, alpha: float) -> tuple[list[Played], list[Request]]:
    """Return what a cycle's `trained` folder passes on: all groups of its line, the oldest first, and its fresh requests.

    Raises RecordError, naming file and line, where one is corrupt.
    """
    history = list(read_jsonl(folder / HISTORY, Played)) if (folder / HISTORY).exists() else []
    for path in sorted((folder / "rounds").glob("[0-9][0-9][0-9]/trajectories.jsonl")):
        history += played(read_jsonl(path, Trajectory), alpha)
    fresh = list(read_jsonl(folder / FRESH, Request)) if (folder / FRESH).exists() else []
    return history, fresh


def traits(request: Request) -> frozenset[str]:
    """Return what a request asks of a policy: its track and its skills; its category where no scene tells the skills."""
    if request.scene is None:
        return frozenset(t for t in (request.eval_type, request.category) if t)
    return frozenset([request.eval_type or "", *(SKILL_OF[kind] for kind, _, _ in request.scene.requirements())]) - {""}


def needs(history: Sequence[Played], pool: Sequence[Request]) -> dict[str, float]:
    """Return request id -> how much there is to learn from it, 0 or more.

    A request that was played: what its last group lacked plus how much it varied, halved for every group in a row, from
    the last one backwards, that lacked something and did not vary at all (nothing can be learnt from it just now).
    One that was not: the mean over its traits of what groups with that trait lacked and varied; 1 for a trait nobody
    played. To both comes COVERAGE x the mean over its traits of 1 - (groups with it / groups with the commonest).
    """
    groups: dict[str, list[Played]] = {}
    for row in history:
        groups.setdefault(row.request_id, []).append(row)
    count: Counter[str] = Counter()
    total: dict[str, float] = {}
    for request in pool:
        for row in groups.get(request.id, ()):
            for trait in traits(request):
                count[trait] += 1
                total[trait] = total.get(trait, 0.0) + row.lack + row.spread()
    most = max(count.values(), default=0)
    out = {}
    for request in pool:
        mine = sorted(traits(request))
        rare = sum(1 - count[t] / most if most else 1.0 for t in mine) / len(mine)
        if request.id in groups:
            open_ = _open(groups[request.id])
        else:
            open_ = sum(total[t] / count[t] if count[t] else 1.0 for t in mine) / len(mine)
        out[request.id] = open_ + COVERAGE * rare
    return out


def _open(groups: Sequence[Played]) -> float:
    stuck = 0
    for row in reversed(groups):
        if row.spread() > 0 or row.lack < LEARNT:
            break
        stuck += 1
    return (groups[-1].lack + groups[-1].spread()) / 2**stuck


def unlearnt(history: Sequence[Played], pool: Sequence[Request]) -> list[Request]:
    """Return the requests of the pool that were never played, or not learnt when they last were."""
    last = {row.request_id: row for row in history}
    return [r for r in pool if r.id not in last or last[r.id].lack + last[r.id].spread() >= LEARNT]


def choose_requests(history: Sequence[Played], pool: Sequence[Request], n: int, seed: int | str) -> list[Request]:
    """Return the n requests that a night plays, in the order of its rounds.

    Without history: the pool in an order of the seed's own, again and again (`walk`). With it: the requests of the
    greatest need (`needs`), learnt ones (`unlearnt`) after all others, each once, mixed by the seed, so that no round is
    all hard; the same again when the pool has fewer than n. Of equal need the seed chooses. A pure function of its
    arguments; ValueError for an empty pool and for a request that is not of the split `evolve`: bench and validation are
    never learnt from.
    """
    if not pool:
        raise ValueError("there are no requests to choose from")
    for request in pool:
        if request.split != "evolve":
            raise ValueError(f"request {request.id} is of the split '{request.split}' and must not be learnt from")
    if not history:
        return walk(pool, n, seed)
    need = needs(history, pool)
    random = Random(f"{seed}/curriculum")
    draw = {r.id: random.random() for r in pool}
    open_ = {r.id for r in unlearnt(history, pool)}
    order = sorted(pool, key=lambda r: (r.id not in open_, -round(need[r.id], 6), draw[r.id]))
    chosen: list[Request] = []
    while len(chosen) < n:
        part = order[: n - len(chosen)]
        random.shuffle(part)
        chosen += part
    return chosen


def walk(pool: Sequence[Request], n: int, seed: int | str, start: int = 0) -> list[Request]:
    """Return n requests from position `start` on: the pool in an order of the seed's own, then in another one."""
    size, picked = len(pool), []
    orders: dict[int, list[int]] = {}
    for position in range(start, start + n):
        turn = position // size
        if turn not in orders:
            orders[turn] = list(range(size))
            Random(f"{seed}/{turn}").shuffle(orders[turn])
        picked.append(pool[orders[turn][position % size]])
    return picked


def told(chosen: Sequence[Request], history: Sequence[Played], fresh: int) -> Mapping[str, float]:
    """Return the counts that a night reports: how many of its requests are new to the line, drawn anew, unsolved."""
    last = {row.request_id: row for row in history}
    ids = {r.id for r in chosen}
    open_ = [i for i in ids if i in last and last[i].lack + last[i].spread() >= LEARNT]
    return {
        "requests": float(len(ids)),
        "never_played": float(sum(i not in last for i in ids)),
        "unsolved": float(len(open_)),
        "learnt": float(sum(i in last for i in ids) - len(open_)),
        "drawn_fresh": float(fresh),
    }
