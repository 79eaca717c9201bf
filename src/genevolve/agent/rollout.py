"""Rollouts: K sessions a request, played by a policy, written down as trajectories."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from genevolve.agent.session import Limits, Session, Tools
from genevolve.agent.system import system_prompt
from genevolve.policy.base import Job, Policy, Sampled, Sampling
from genevolve.records import Request, Trajectory


def rollouts(
    policy: Policy,
    requests: Sequence[Request],
    k: int,
    tools: Tools,
    sampling: Sampling,
    seed: int,
    *,
    system: str,
    guides: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
    known: Container[str] = (),
) -> list[Trajectory]:
    """Return k trajectories per request, grouped by request in the given order.

    `system` is the text of a prompt file, marker included; `guides` (request id -> text) are put into it for the requests
    that have one: never in bench rollouts, and in training ones only under `sampling.guide_to_student`; else the student
    stands alone. `on_done` is told of each
    trajectory as it ends, for progress and for resuming; those whose id is `known` are not played.
    """
    played: list[tuple[Request, int, Session]] = []
    jobs = []
    for request in requests:
        text = system_prompt(system, (guides or {}).get(request.id))
        for rollout in range(k):
            if trajectory_id(request, rollout) in known:
                continue
            session = Session(tools, limits)
            first, question = session.start(request.question, text)
            show = _shown(session) if tools.show else None
            jobs.append(Job(f"{request.id}/{rollout}", first.content, question.content, session.step, show))
            played.append((request, rollout, session))
    out: list[Trajectory | None] = [None] * len(jobs)

    def done(index: int, sampled: Sampled) -> None:
        trajectory = _trajectory(*played[index], sampled, policy, sampling)
        out[index] = trajectory
        if on_done is not None:
            on_done(trajectory)

    policy.sample(jobs, sampling, seed, done)
    return [t for t in out if t is not None]


def _shown(session: Session) -> Callable[[], Sequence[tuple[str, str]]]:
    return lambda: session.pictures


def trajectory_id(request: Request, rollout: int) -> str:
    return f"{request.id}-{rollout}"


def _trajectory(
    request: Request, rollout: int, session: Session, sampled: Sampled, policy: Policy, sampling: Sampling
) -> Trajectory:
    if sampled.failed:
        session.stop("error", sampled.failed)
    if not session.finished:
        session.stop("length", sampled.overlong or "The policy stopped before the trajectory had ended.")
    return Trajectory(
        id=trajectory_id(request, rollout),
        request_id=request.id,
        rollout=rollout,
        question=request.question,
        messages=tuple(session.messages),
        prompt_ids=sampled.prompt_ids,
        completion_ids=sampled.completion_ids,
        assistant_mask=sampled.assistant_mask,
        logprobs=sampled.logprobs,
        pictures=sampled.pictures,
        temperature=sampling.temperature,
        policy_hash=policy.policy_hash,
        tokenizer_hash=policy.tokenizer_hash,
        tool_calls=tuple(session.tool_calls),
        program=session.program,
        termination=session.termination or "length",
        failure=session.failure,
        format_errors=session.format_errors,
    )
