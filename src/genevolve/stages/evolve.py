"""Stage `evolve`: R rounds of sample -> experience -> distil from the parent's policy; the best validated one is kept.

A night goes on from `earlier`, the folder of the night before it, promoted or not: its memory is the first memory, its
records choose the requests (`curriculum`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genevolve.experience.contrast import Pair, by_request, contrast
from genevolve.files import write_whole
from genevolve.records import Bundle, Request, Trajectory, dump, read_jsonl, write_jsonl
from genevolve.settings import Settings
from genevolve.stages.backends import check_models
from genevolve.stages.crew import Crew, bench_sampling
from genevolve.stages.curriculum import FRESH, HISTORY, choose_requests, records_of, told, unlearnt
from genevolve.stages.distill import Learner, make_learner
from genevolve.stages.experience import Extracted, extract, new_memory, student_guides, write_guides
from genevolve.stages.fresh import can_draw, draw_fresh
from genevolve.stages.journal import NAME
from genevolve.stages.sample import of_step, sample, sampling_metrics, step_seed, training_seed

CONCLUSION = "metrics.json"
"""Written when the policy is chosen and before the rounds' weights are dropped: from then on there is nothing to redo."""


def run(settings: Settings, *, dataset: Path, parent: Path, earlier: Path | None = None, out: Path) -> dict[str, Any]:
    """Evolve `parent` into out/policy; out/rounds/NNN keeps what each round sampled, learnt and measured.

    Killed and started again, it goes on behind the last whole round, to the same bytes.
    """
    from tqdm import tqdm

    from genevolve.dataset.public import load_requests

    if (out / CONCLUSION).exists():  # killed between the last round and the end of the stage
        return json.loads((out / CONCLUSION).read_text()) | _to_show(settings, out)
    pool, validation = load_requests(dataset, "evolve"), load_requests(dataset, "validation")
    check_models(settings)
    chosen, about = _choose(settings, dataset, pool, earlier, out)
    with Crew(settings, dataset) as crew:
        crew.check_training(parent)
        state = _State(settings, parent, out, dataset, earlier)
        if state.best is None:
            state.validated(0, _validate(settings, crew, validation, parent))
        bar = tqdm(total=settings.cycle.steps, initial=state.step, desc="evolve", unit="round")
        while state.step < settings.cycle.steps and not state.stale():
            step = state.step + 1
            new = out / "rounds" / f"{step:03d}.new"
            requests = of_step(chosen, settings, step)
            shown = student_guides(settings, state.memory, requests)
            trajectories = sample(settings, crew, requests, state.policy, step, images=new, guides=shown)
            extracted = extract(settings, state.memory, trajectories, state.carried + step, shown)
            crew.release()
            row: dict[str, Any] = {"step": step, **sampling_metrics(trajectories), **extracted.metrics}
            row |= state.learner.learn(trajectories, extracted.guides, new / "policy")
            if step % settings.cycle.validate_every == 0 or step == settings.cycle.steps:
                row |= _validate(settings, crew, validation, new / "policy")
            state.finish(step, row, trajectories, extracted)
            bar.set_postfix(reward=f"{row['reward']:.3f}", valid=f"{row['valid']:.2f}")
            bar.update()
        bar.close()
    return state.conclude(about) | _to_show(settings, out)


def _choose(
    settings: Settings, dataset: Path, pool: list[Request], earlier: Path | None, out: Path
) -> tuple[list[Request], dict[str, Any]]:
    """Return the requests of all rounds, in order, and what to say about them; a night writes what they were chosen by."""
    n, seed = settings.cycle.steps * settings.cycle.requests_per_step, settings.seeds.run_seed
    history, fresh = records_of(earlier, settings.judge.alpha) if earlier is not None else ([], [])
    if earlier is None:
        return choose_requests([], pool, n, seed), {}
    night = settings.cycle.night
    write_jsonl(out / HISTORY, history)
    if settings.cycle.curriculum == "walk":
        write_jsonl(out / FRESH, fresh)
        return choose_requests([], pool, n, f"{seed}/{night}"), {}
    short = n - len(unlearnt(history, [*pool, *fresh])) if history else 0
    drawn = []
    if short > 0 and can_draw(settings):
        drawn = draw_fresh(settings, dataset, fresh, short, night, training_seed(settings, 0))
    write_jsonl(out / FRESH, [*fresh, *drawn])
    chosen = choose_requests(history, [*pool, *fresh, *drawn], n, f"{seed}/{night}")
    return chosen, {"curriculum": told(chosen, history, len(drawn))}


def _to_show(settings: Settings, out: Path) -> dict[str, Any]:
    """Return each round's widest pair as traces and on one sheet (best left, worst right), and the rounds' pages."""
    from genevolve.render.contact import contact_sheet

    pairs: list[tuple[Path, Pair]] = []
    for folder in sorted((out / "rounds").glob("[0-9][0-9][0-9]")):
        groups = by_request(read_jsonl(folder / "trajectories.jsonl", Trajectory))
        pairs += [(folder, pair) for pair in contrast(groups, settings.experience.gap, 1).pairs]
    drawn = [
        (pair.best.question, (folder / pair.best.image).read_bytes(), (folder / pair.worst.image).read_bytes())
        for folder, pair in pairs
        if pair.best.image and pair.worst.image
    ]
    if drawn:
        (out / "best-worst.png").write_bytes(contact_sheet(drawn))
    return {
        "images": ["best-worst.png"] if drawn else [],
        "pages": ["experience.md"],
        "traces": {"best": [p.best for _, p in pairs], "worst": [p.worst for _, p in pairs]},
    }


def _validate(settings: Settings, crew: Crew, requests: list[Request], policy: Path) -> dict[str, Any]:
    k, seed = settings.cycle.validation_k, step_seed(settings, 0)
    played = crew.play(policy, requests, k, bench_sampling(settings), seed)
    return {f"validation_{k}": v for k, v in sampling_metrics(played).items() if k in ("reward", "kscore", "valid")}


class _State:
    """What an evolution is made of: learner, memory, curve; all of it on disk after every round."""

    def __init__(self, settings: Settings, parent: Path, out: Path, dataset: Path, earlier: Path | None = None) -> None:
        self.settings, self.parent, self.out = settings, parent, out
        self.curve: list[dict[str, Any]] = []
        self.memory = new_memory(settings)
        self.carried = 0
        """The step of the newest bundle that came with the memory: bundles of this night are newer than it."""
        if earlier is not None and (earlier / "memory.jsonl").exists():
            self.memory.add(read_jsonl(earlier / "memory.jsonl", Bundle))
            self.memory.evicted = 0
            self.carried = max((b.step for b in self.memory.bundles), default=0)
        self.best: tuple[float, int] | None = None
        for partial in (out / "rounds").glob("*.new"):
            _clear(partial, () if settings.policy.backend == "local" else (NAME, "images"))
        whole = sorted(p for p in (out / "rounds").glob("[0-9][0-9][0-9]"))
        start = out / "start.json"
        if start.exists():
            self.validated(0, json.loads(start.read_text()))
        for folder in whole:
            row = json.loads((folder / "metrics.json").read_text())
            self.curve.append(row)
            self.validated(int(folder.name), row)  # metrics are floats on disk
        self.step = len(whole)
        self.policy = whole[-1] / "policy" if whole else parent
        self.learner: Learner = make_learner(settings, parent, dataset)
        if whole:
            self._resume(whole[-1])

    def _resume(self, folder: Path) -> None:
        self.memory = new_memory(self.settings)
        self.memory.add(read_jsonl(folder / "memory.jsonl", Bundle))
        self.memory.evicted = int(self.curve[-1]["memory_evicted"])
        self.learner.resume(folder / "policy", folder / "trainer")

    def validated(self, step: int, row: Mapping[str, Any]) -> None:
        """Note a validation score; the first best one wins."""
        if step == 0 and not (self.out / "start.json").exists():
            write_whole(self.out / "start.json", json.dumps(dict(row)))
        score = row.get("validation_reward")
        if score is not None and (self.best is None or score > self.best[0]):
            self.best = (score, step)

    def stale(self) -> bool:
        """Say whether `patience` looks at the validation split in a row brought nothing better."""
        patience = self.settings.cycle.patience
        looks = [r["step"] for r in self.curve if "validation_reward" in r]
        return bool(patience) and self.best is not None and sum(s > self.best[1] for s in looks) >= patience

    def finish(self, step: int, row: dict[str, Any], trajectories: list[Trajectory], extracted: Extracted) -> None:
        """Make the round a whole one: everything is written beside it, then renamed."""
        folder = self.out / "rounds" / f"{step:03d}"
        new = folder.with_suffix(".new")
        (new / NAME).unlink(missing_ok=True)
        paired = {t.image for pair in extracted.contrast.pairs for t in (pair.best, pair.worst)}
        for picture in (new / "images").glob("*"):  # the others can be drawn again from their programs
            if f"images/{picture.name}" not in paired:
                picture.unlink()
        kept = (t if t.image in paired else t.model_copy(update={"image": None}) for t in trajectories)
        write_jsonl(new / "trajectories.jsonl", kept)
        (new / "experience.md").write_text(extracted.page, encoding="utf-8")
        write_jsonl(new / "bundles.jsonl", extracted.bundles)
        write_guides(new / "guides.jsonl", extracted.guides)
        self.memory.save(new / "memory.jsonl")
        self.learner.save(new / "trainer")
        (new / "metrics.json").write_text(json.dumps(row, sort_keys=True))
        new.rename(folder)
        self.step, self.policy = step, folder / "policy"
        self.learner.policy = self.policy
        self.curve.append(row)
        self.validated(step, row)
        self._tidy(step)

    def _tidy(self, step: int) -> None:
        """Drop weights no later round needs: those of the best round and of the last one stay."""
        assert self.best is not None
        for folder in sorted((self.out / "rounds").glob("[0-9][0-9][0-9]")):
            number = int(folder.name)
            if number != step:
                shutil.rmtree(folder / "trainer", ignore_errors=True)
                if number != self.best[1]:
                    shutil.rmtree(folder / "policy", ignore_errors=True)

    def conclude(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Put the best validated policy in out/policy and return the stage's metrics, `about` among them."""
        assert self.best is not None
        score, step = self.best
        source = self.out / "rounds" / f"{step:03d}" / "policy" if step else self.parent
        shutil.rmtree(self.out / "policy", ignore_errors=True)
        shutil.copytree(source, self.out / "policy")
        self.memory.save(self.out / "memory.jsonl")
        last = self.curve[-1] if self.curve else {}
        metrics = {
            "rounds": self.step,
            "best_round": step,
            "validation_reward": score,
            "hit_rate": sum(r["hit_rate"] for r in self.curve) / max(1, len(self.curve)),
            "bundles": len(self.memory),
            "slots": _slots(self.memory.bundles),
            "last": {k: v for k, v in last.items() if isinstance(v, (int, float))},
            "curve": self.curve,
            **about,
        }
        pages = sorted((self.out / "rounds").glob("*/experience.md"))
        (self.out / "experience.md").write_text(
            "\n".join(p.read_text(encoding="utf-8") for p in pages), encoding="utf-8"
        )
        write_whole(self.out / CONCLUSION, json.dumps(metrics, sort_keys=True))
        for folder in (self.out / "rounds").glob("[0-9][0-9][0-9]"):
            shutil.rmtree(folder / "policy", ignore_errors=True)
            shutil.rmtree(folder / "trainer", ignore_errors=True)
        return metrics


def _clear(folder: Path, keep: tuple[str, ...]) -> None:
    """Remove a round that was not finished, but for what a server's policy has left there to go on from."""
    if not keep:
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _slots(bundles: tuple[Bundle, ...]) -> dict[str, int]:
    """Count bullets by slot over the memory."""
    counts: dict[str, int] = {}
    for bundle in bundles:
        for name, value in json.loads(dump(bundle.decision_guidance)).items():
            if isinstance(value, list):
                counts[name] = counts.get(name, 0) + len(value)
    return counts
