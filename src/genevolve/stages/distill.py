"""A round's last third: stored trajectories and guides -> an optimiser step of GRPO + SDL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.agent.system import system_prompt
from genevolve.errors import SettingsError
from genevolve.records import Trajectory, read_jsonl
from genevolve.settings import Settings
from genevolve.stages.backends import make_eyes, system_text
from genevolve.stages.experience import read_guides

if TYPE_CHECKING:
    from genevolve.training.batch import TrainRow
    from genevolve.training.distill import DistillTrainer
    from genevolve.training.distill_forward import Look
    from genevolve.training.parallel import Ranks


class Learner:
    """The policy in training, on disk after every step so that the crew can load it.

    `start` is the policy training began from: the reference of the KL term, and the base under LoRA adapters. `policy` is
    the one that sampled last, the same at first. `dataset` is where pictures are read that a policy with eyes was shown. With
    other processes (`ranks`) all of them make one, and call the same methods.
    """

    def __init__(
        self, settings: Settings, policy: Path, start: Path, dataset: Path | None = None, ranks: Ranks | None = None
    ) -> None:
        import torch

        from genevolve.policy.template import ChatTemplate
        from genevolve.training.checkpoint import (
            adapter_base,
            find_policy,
            policy_hash,
            tokenizer_folder,
            tokenizer_hash,
        )
        from genevolve.training.distill import DistillTrainer
        from genevolve.training.models import device_of, load_model
        from genevolve.training.parallel import ALONE

        torch.set_num_threads(settings.sampling.workers)
        d = settings.distill
        self.settings, self.policy, self.start = settings, policy, find_policy(start)
        if d.lora_rank and d.saved == "adapters" and adapter_base(self.start) is not None:
            raise SettingsError(f"{start} is a LoRA adapter itself; set distill.saved to merged to train on from it.")
        self.ranks, self.source = ranks or ALONE, find_policy(policy)
        device, low = device_of(d.device), torch.bfloat16 if d.precision == "bfloat16" else torch.float32
        # Split weights must have one type; whole ones that never move need no more bits than the forward pass uses.
        trained = low if d.lora_rank and not self.ranks.sharded else torch.float32
        model = load_model(self.start if d.lora_rank else self.source, trained, device)
        needed = d.lora_rank is None and (d.kl_coef > 0 or d.teacher == "frozen")
        frozen = load_model(self.start, low, device) if needed else None
        self.policy_hash, self.tokenizer_hash = policy_hash(self.source), tokenizer_hash(self.source)
        self.trainer: DistillTrainer = DistillTrainer(
            model, d, frozen, policy_hash(self.start), self.ranks, _look(settings, self.source, dataset)
        )
        self.template = ChatTemplate.load(tokenizer_folder(self.source), str(policy))
        self.system = system_text(settings)

    def rows(self, trajectories: Iterable[Trajectory], guides: Mapping[str, str]) -> list[TrainRow]:
        """Return training rows; the teacher's prompt is the student's with the guide in its system message."""
        from genevolve.training.batch import build_rows

        played = list(trajectories)
        prompts = {
            t.request_id: self.template.prompt(system_prompt(self.system, guides[t.request_id]), t.messages[1].content)
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

    def learn(self, trajectories: Sequence[Trajectory], guides: Mapping[str, str], out: Path) -> dict[str, float]:
        """Train on one sampled batch, save the policy in `out`, and go on from there; return the last step's metrics."""
        from genevolve.training.weights import save_trained

        metrics = self.trainer.train(self.rows(trajectories, guides))[-1]
        d = self.settings.distill
        over = str(self.start) if d.lora_rank and d.saved == "adapters" else ""
        self.policy_hash = save_trained(self.trainer.weights, self.source, out, adapters_over=over)
        return metrics

    def save(self, folder: Path) -> None:
        """Write what training needs to go on from here."""
        self.trainer.save(folder)

    def resume(self, policy: Path, folder: Path) -> None:
        """Go on from `policy` and the checkpoint that `save` wrote with it."""
        from genevolve.training.checkpoint import policy_hash

        self.trainer.resume(folder)
        self.policy, self.policy_hash = policy, policy_hash(policy)


def make_learner(settings: Settings, start: Path, dataset: Path | None = None) -> Any:
    """Return what trains an evolution from `start`: in this process, or in new ones for each step."""
    if settings.distill.processes == 1:
        return Learner(settings, start, start, dataset)
    from genevolve.stages.launch import LaunchedLearner

    return LaunchedLearner(settings, start, dataset)


def run(
    settings: Settings,
    *,
    policy: Path,
    reference: Path,
    trajectories: Path,
    experience: Path,
    out: Path,
    step: int = 1,
    dataset: Path | None = None,
) -> dict[str, Any]:
    """Make one round's training from stored files; the optimiser's state goes from out folder to out folder.

    With `distill.processes` above 1 the step is made by so many new processes (`accelerate launch`), of which each comes
    here as one of them.
    """
    from genevolve.stages.launch import launch_distill, launched

    if settings.distill.processes > 1 and not launched():
        return launch_distill(
            settings,
            policy=policy,
            reference=reference,
            trajectories=trajectories,
            experience=experience,
            out=out,
            dataset=dataset,
        )
    from genevolve.training.parallel import Ranks

    learner = Learner(settings, policy, reference, dataset, Ranks.of_environment(settings.distill.device))
    earlier = policy.parent / "trainer"
    if earlier.is_dir():
        learner.resume(policy, earlier)
    rows = list(read_jsonl(trajectories / "trajectories.jsonl", Trajectory))
    metrics = learner.learn(rows, read_guides(experience / "guides.jsonl"), out / "policy")
    learner.save(out / "trainer")
    return metrics


def _look(settings: Settings, policy: Path, dataset: Path | None) -> Look | None:
    """Return what makes pixels of the pictures that a policy was shown; None where none are shown."""
    eyes = None if dataset is None else make_eyes(settings, dataset)
    if eyes is None:
        return None
    from genevolve.policy.pictures import image_processor, pixel_inputs

    processor = image_processor(policy)
    return lambda pictures: pixel_inputs(processor, eyes.read, pictures)
