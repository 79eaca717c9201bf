"""`genevolve bench --policy none`: the generator without an agent. The request is the prompt; there are no tools and no
references, and no program to judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.agent.rollout import trajectory_id
from genevolve.errors import SettingsError
from genevolve.records import Message, Program, Request, Reward, Trajectory
from genevolve.render.ready import check_renderer
from genevolve.stages.backends import check_image_judge, make_image_judge
from genevolve.stages.crew import Player

if TYPE_CHECKING:
    from genevolve.judge.base import ProgramJob
    from genevolve.settings import Settings

POLICY = "none"
"""What such records have in place of a policy's hash."""


class Bare:
    """Draws and judges requests as they are."""

    def __init__(self, settings: Settings, dataset: Path, requests: Sequence[Request]) -> None:
        """Raise SettingsError, one sentence, for a generator or a judge of pictures that cannot do this."""
        if settings.render.backend == "compositor":
            raise SettingsError(
                "`--policy none` gives the generator the request alone, and the compositor can show no thing without its "
                "reference picture: set render.backend to diffusers, service or gemini."
            )
        check_renderer(settings)
        check_image_judge(settings, dataset, requests)
        judges = make_image_judge(settings.judge.image, settings, dataset), _Unasked()
        self._player = Player(settings, dataset, judges=judges)

    def play(
        self, requests: Sequence[Request], k: int, images: Path, on_done: Callable[[int], Any]
    ) -> list[Trajectory]:
        """Return k scored records per request, grouped by request in the given order; all k have one picture."""
        played = [_trajectory(request, n) for request in requests for n in range(k)]
        scored = [_without_program_judge(t) for t in self._player.score(played, requests, images)]
        on_done(len(scored))
        return scored


class _Unasked:
    """A ProgramJudge that judges nothing: the policy wrote no program."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.notes: list[dict[str, Any]] = []

    def score(self, jobs: Sequence[ProgramJob]) -> list[float | None]:
        self.reasons, self.notes = [""] * len(jobs), [{} for _ in jobs]
        return [None] * len(jobs)


def _trajectory(request: Request, rollout: int) -> Trajectory:
    return Trajectory(
        id=trajectory_id(request, rollout),
        request_id=request.id,
        rollout=rollout,
        question=request.question,
        messages=(Message(role="user", content=request.question),),
        program=Program(gen_prompt=request.question, reference_images=()),
        policy_hash=POLICY,
    )


def _without_program_judge(t: Trajectory) -> Trajectory:
    """Return a record whose reward is the picture's KScore alone."""
    reward = t.reward or Reward()
    found = reward.image
    notes = {k: v for k, v in reward.diagnostics.items() if found is None or k != "missing"}
    whole = reward.model_copy(update={"total": None if found is None else found.overall, "diagnostics": notes})
    return t.model_copy(update={"reward": whole})
