"""Rollouts of a policy behind a server: sampled side by side in this process, drawn and judged by the crew meanwhile.

Worker processes would only divide the server's attention; they draw and judge. A trajectory is on disk when its last turn
is there, and again when it has its reward; so a kill costs at most what is in flight.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve.agent.rollout import rollouts, trajectory_id
from genevolve.agent.session import Limits
from genevolve.files import write_whole
from genevolve.records import Request, Trajectory
from genevolve.stages.backends import make_served, make_tools, system_text
from genevolve.stages.journal import NAME, Journal

if TYPE_CHECKING:
    from genevolve.policy.base import Sampling
    from genevolve.policy.openai import ServedPolicy
    from genevolve.settings import Settings

Group = tuple[Request, list[Trajectory]]
ABOUT = "policy_server.json"
"""Which model was asked, in which mode, and what its log-probs are of."""


class Served:
    """The policy's server, and the tools its policy calls."""

    def __init__(self, settings: Settings, dataset: Path) -> None:
        self.settings, self.dataset = settings, dataset
        self.tools, self.system = make_tools(settings, dataset), system_text(settings)
        self._policy: tuple[Path, ServedPolicy] | None = None

    def policy(self, folder: Path) -> ServedPolicy:
        """Return the policy of a folder, on the server: its weights are loaded there if they are not."""
        if self._policy is None or self._policy[0] != folder:
            self._policy = (folder, make_served(self.settings, folder, self.dataset))
        return self._policy[1]

    def play(
        self,
        folder: Path,
        requests: Sequence[Request],
        k: int,
        sampling: Sampling,
        seed: int,
        *,
        submit: Callable[[list[Group], Path | None], Future[list[Trajectory]]],
        at_once: int,
        images: Path | None,
        guides: Mapping[str, str],
        on_done: Callable[[int], None] | None,
        journal: Path | None,
    ) -> list[Trajectory]:
        """Return k scored trajectories per request, grouped by request in the given order; `submit` draws and judges."""
        policy = self.policy(folder)
        if images is not None:
            write_whole(images / ABOUT, json.dumps(policy.about(), indent=1, sort_keys=True) + "\n")
            journal = journal or images / NAME
        shown = hashlib.sha256(json.dumps(sorted(guides.items())).encode()).hexdigest()
        about = {"policy": policy.policy_hash, "tokens": policy.tokenizer_hash, "seed": seed, "k": k, "guides": shown}
        about |= {"sampling": {n: v for n, v in asdict(sampling).items() if n != "batch"}}
        diary = None if journal is None else Journal(journal, about)
        table = _Table(requests, k, images, diary, on_done)
        table.scoring = Scoring(lambda waiting: submit(waiting, images), at_once, table.scored)
        try:
            table.resume()
            rollouts(
                policy,
                requests,
                k,
                self.tools,
                sampling,
                seed,
                system=self.system,
                guides=guides,
                limits=Limits(self.settings.sampling.tool_calls, self.settings.sampling.rounds),
                on_done=table.sampled,
                known=table.known,
            )
            table.scoring.finish()
        finally:
            if diary is not None:
                diary.close()
        return [table.out[i] for i in table.ids]


class _Table:
    """What has been sampled and scored of one `play`; a request's rollouts are scored when the last of them is there."""

    scoring: Scoring

    def __init__(
        self,
        requests: Sequence[Request],
        k: int,
        images: Path | None,
        diary: Journal | None,
        on_done: Callable[[int], None] | None,
    ) -> None:
        self.images, self.diary, self.on_done = images, diary, on_done
        self.ids = [trajectory_id(r, n) for r in requests for n in range(k)]
        self.requests = {r.id: r for r in requests}
        self.missing = {r.id: k for r in requests}
        self.groups: dict[str, list[Trajectory]] = {r.id: [] for r in requests}
        self.out: dict[str, Trajectory] = {}
        self.known: set[str] = set()

    def resume(self) -> None:
        """Take what the journal has; what a server failed is played again."""
        found = {} if self.diary is None else self.diary.known
        for i in self.ids:
            if i in found and found[i].termination != "error":
                self.known.add(i)
                self._take(found[i])

    def sampled(self, t: Trajectory) -> None:
        if self.diary is not None:
            self.diary.add(t)
        self._take(t)

    def scored(self, t: Trajectory) -> None:
        if self.diary is not None:
            self.diary.add(t)
        self._finish(t)

    def _take(self, t: Trajectory) -> None:
        self.missing[t.request_id] -= 1
        group = self.groups[t.request_id]
        if _finished(t, self.images):
            self._finish(t)
        else:
            group.append(t)
        if group and not self.missing[t.request_id]:
            self.scoring.add((self.requests[t.request_id], sorted(group, key=lambda t: t.rollout)))

    def _finish(self, t: Trajectory) -> None:
        self.out[t.id] = t
        if self.on_done is not None:
            self.on_done(1)


def _finished(t: Trajectory, images: Path | None) -> bool:
    """Return whether a trajectory of a journal has its reward, and its picture is still there."""
    if t.reward is None or (t.program is not None and t.reward.total is None):
        return False
    return t.image is None or (images is not None and (images / t.image).is_file())


class Scoring:
    """Groups are scored while others are still sampled: a few tasks at a time, each with its share of what waits."""

    def __init__(
        self,
        submit: Callable[[list[Group]], Future[list[Trajectory]]],
        at_once: int,
        keep: Callable[[Trajectory], None],
    ) -> None:
        self._submit, self._at_once, self._keep = submit, at_once, keep
        self._changed = threading.Condition()  # on a lock that its holder may take again
        self._waiting: list[Group] = []
        self._running = 0
        self._error: BaseException | None = None

    def add(self, group: Group) -> None:
        """Have a group scored. Raises what has failed since."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._waiting.append(group)
            self._go()

    def _go(self) -> None:
        while self._waiting and self._running < self._at_once:
            n = -(-len(self._waiting) // self._at_once)
            taken, self._waiting = self._waiting[:n], self._waiting[n:]
            self._running += 1
            self._submit(taken).add_done_callback(self._done)

    def _done(self, task: Future[list[Trajectory]]) -> None:
        with self._changed:
            self._running -= 1
            try:
                for t in task.result():
                    self._keep(t)
                self._go()
            except BaseException as e:
                self._error, self._waiting = self._error or e, []
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait for all groups. Raises what has failed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running and not self._waiting)
            if self._error is not None:
                raise self._error
