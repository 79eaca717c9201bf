"""Rollouts over several processes, with the same result for any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genevolve.agent.rollout import rollouts
from genevolve.agent.session import Limits, Tools
from genevolve.policy.base import Policy, PolicyError, Sampling
from genevolve.records import Request, Trajectory


@dataclass(frozen=True)
class _Work:
    """What every process needs; it travels by pickle."""

    folder: str
    make_tools: Callable[[], Tools]
    k: int
    sampling: Sampling
    seed: int
    system: str
    guides: Mapping[str, str]
    limits: Limits | None


class _Player:
    """A policy and its tools, loaded once in a process."""

    def __init__(self, work: _Work) -> None:
        from genevolve.policy.local import LocalPolicy

        self.work = work
        self.policy: Policy = LocalPolicy.load(work.folder)
        self.tools = work.make_tools()

    def play(self, requests: Sequence[Request]) -> list[Trajectory]:
        w = self.work
        return rollouts(
            self.policy,
            requests,
            w.k,
            self.tools,
            w.sampling,
            w.seed,
            system=w.system,
            guides=w.guides,
            limits=w.limits,
        )


_player: _Player | None = None
"""In a spawned process only."""


def _start(work: _Work) -> None:
    import torch

    global _player
    torch.set_num_threads(1)
    _player = _Player(work)


def _play(requests: Sequence[Request]) -> list[Trajectory]:
    assert _player is not None
    return _player.play(requests)


def sample_parallel(
    folder: str | Path,
    requests: Sequence[Request],
    k: int,
    make_tools: Callable[[], Tools],
    sampling: Sampling,
    seed: int,
    *,
    system: str,
    guides: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    workers: int = 2,
    chunk: int = 16,
    on_done: Callable[[list[Trajectory]], None] | None = None,
) -> list[Trajectory]:
    """Return what `rollouts` returns, sampled by `workers` spawned processes of one torch thread each.

    Requests are cut into chunks of fixed size whoever plays them, and come back in order. `make_tools` must pickle (a
    module's function or a partial of one). `on_done` is told of each chunk, in request order, as soon as it is there. A
    process that dies raises PolicyError; a folder that is no policy does so before any process starts.
    """
    work = _Work(str(folder), make_tools, k, sampling, seed, system, dict(guides or {}), limits)
    chunks = [requests[i : i + chunk] for i in range(0, len(requests), chunk)]
    out: list[Trajectory] = []
    for part in _parts(work, chunks, min(workers, len(chunks))):
        out += part
        if on_done is not None:
            on_done(part)
    return out


def _parts(work: _Work, chunks: Sequence[Sequence[Request]], workers: int) -> Iterator[list[Trajectory]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    if not chunks:
        return
    if workers <= 1:
        yield from map(_Player(work).play, chunks)
        return
    from genevolve.policy.local import LocalPolicy

    LocalPolicy.load(work.folder)  # its error sentence would be lost in a process that cannot start
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(work,)) as pool:
            yield from pool.map(_play, chunks)
    except BrokenProcessPool as e:
        raise PolicyError(
            "A sampling process died: too little memory, or tools that cannot be made again there."
        ) from e
