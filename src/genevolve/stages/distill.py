"""A round's last third: stored trajectories and guides -> an optimiser step of GRPO + SDL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.agent.chat import prompt_text
from genevolve.agent.system import system_prompt
from genevolve.records import Trajectory, read_jsonl
from genevolve.settings import Settings
from genevolve.stages.backends import system_text
from genevolve.stages.experience import read_guides

if TYPE_CHECKING:
    from genevolve.training.batch import TrainRow
    from genevolve.training.distill import DistillTrainer


class Learner:
    """The policy in training, on disk after every step so that the crew can load it."""

    def __init__(self, settings: Settings, policy: Path, reference: Path) -> None:
        import torch

        from genevolve.training.checkpoint import load_policy, policy_hash, tokenizer_hash
        from genevolve.training.distill import DistillTrainer

        torch.set_num_threads(settings.sampling.workers)
        self.settings = settings
        model, self.tokenizer = load_policy(policy)
        d = settings.distill
        needed = d.lora_rank is None and (d.kl_coef > 0 or d.teacher == "frozen")
        frozen = load_policy(reference)[0] if needed else None
        self.policy_hash, self.tokenizer_hash = policy_hash(policy), tokenizer_hash(policy)
        self.trainer: DistillTrainer = DistillTrainer(model, settings.distill, frozen, self.policy_hash)
        self.system = system_text(settings)

    def rows(self, trajectories: Iterable[Trajectory], guides: Mapping[str, str]) -> list[TrainRow]:
        """Return training rows; the teacher's prompt is the student's with the guide in its system message."""
        from genevolve.training.batch import build_rows

        played = list(trajectories)
        prompts = {
            t.request_id: self.tokenizer(
                prompt_text(system_prompt(self.system, guides[t.request_id]), t.messages[1].content),
                add_special_tokens=False,
            )["input_ids"]
            for t in played
            if t.request_id in guides
        }
        found = build_rows(
            played,
            policy_hash=self.policy_hash,
            tokenizer_hash=self.tokenizer_hash,
            temperature=self.settings.distill.temperature,
            teacher_prompts=prompts,
        )
        return found.rows

    def _plain(self) -> Any:
        """Return the policy as a plain model: itself, or a copy with the adapters merged (training goes on with them)."""
        if self.settings.distill.lora_rank is None:
            return self.trainer.model
        from copy import deepcopy

        from genevolve.training.lora import merge_adapters

        return merge_adapters(deepcopy(self.trainer.model))

    def learn(self, trajectories: Sequence[Trajectory], guides: Mapping[str, str], out: Path) -> dict[str, float]:
        """Train on one sampled batch, save the policy in `out`, and go on from there; return the last step's metrics."""
        from genevolve.training.checkpoint import save_policy

        metrics = self.trainer.train(self.rows(trajectories, guides))[-1]
        self.policy_hash = save_policy(self._plain(), self.tokenizer, out)
        return metrics


def run(
    settings: Settings, *, policy: Path, reference: Path, trajectories: Path, experience: Path, out: Path, step: int = 1
) -> dict[str, Any]:
    """Make one round's training from stored files; the optimiser's state goes from out folder to out folder."""
    learner = Learner(settings, policy, reference)
    earlier = policy.parent / "trainer"
    if earlier.is_dir():
        learner.trainer.policy_hash = ""
        learner.trainer.resume(earlier)
    rows = list(read_jsonl(trajectories / "trajectories.jsonl", Trajectory))
    metrics = learner.learn(rows, read_guides(experience / "guides.jsonl"), out / "policy")
    learner.trainer.policy_hash = ""
    learner.trainer.save(out / "trainer")
    return metrics
