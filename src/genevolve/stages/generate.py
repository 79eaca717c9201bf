"""`genevolve generate`: one request, one picture, by a trained policy; no teacher, no memory, no judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from genevolve.errors import StageError
from genevolve.records import Request, dump
from genevolve.settings import Settings
from genevolve.stages.backends import check, make_policy, make_renderer, make_tools, reference_bytes, system_text
from genevolve.stages.crew import bench_sampling

DATASET = Path("data")


def run(settings: Settings, *, question: str, policy: Path, out: Path, dataset: Path = DATASET) -> Iterator[str]:
    """Draw `question` into `out` (a PNG), with program and trajectory beside it; yield lines that say what was done.

    Raises StageError when the policy made no program or the generator no picture; the trajectory is kept.
    """
    from genevolve.agent.rollout import rollouts
    from genevolve.agent.session import Limits
    from genevolve.policy.local import LocalPolicy
    from genevolve.render.base import RenderJob

    check(settings)
    embedded = "embedded" in (settings.world.search, settings.world.image_search)
    if embedded and not (dataset / "world").is_dir():
        raise StageError(
            f"There is no embedded world under {dataset}; run `make evolve` once, or pass --dataset FOLDER."
        )
    request = Request(
        id="generate",
        question=question,
        eval_type="quality_anchored",
        category="user",
        difficulty="medium",
        split="bench",
    )
    s = settings.sampling
    limits = Limits(s.tool_calls, s.rounds)
    played = rollouts(
        LocalPolicy.load(policy) if settings.policy.backend == "local" else make_policy(settings, policy),
        [request],
        1,
        make_tools(settings, dataset),
        bench_sampling(settings),
        settings.seeds.run_seed,
        system=system_text(settings),
        limits=limits,
    )[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    record = out.with_suffix(".trajectory.json")
    record.write_text(dump(played) + "\n", encoding="utf-8")
    for call in played.tool_calls:
        yield f"{call.name}: {next(iter(call.arguments.values()))}"
    if played.program is None:
        raise StageError(f"The policy made no program: {played.failure} Its trajectory is in {record}.")
    references = tuple(reference_bytes(dataset, f) for f in played.program.files)
    job = RenderJob(request.id, played.program.gen_prompt, references, settings.seeds.run_seed)
    png = make_renderer(settings).render([job])[0]
    if png is None:
        raise StageError(f"The generator drew nothing; the program is in {record}.")
    out.write_bytes(png)
    yield f"program: {played.program.gen_prompt}"
    yield f"picture: {out} (trajectory: {record})"
