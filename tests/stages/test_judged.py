"""Models as judges and summariser inside the stages: loopback servers, the real crew, contrast, memory and bench."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genevolve.dataset.public import load_requests
from genevolve.errors import SettingsError
from genevolve.experience.contrast import by_request, contrast
from genevolve.records import Program, Reference, Request, Reward, ToolCall, Trajectory, dump, parse
from genevolve.services.cache import store
from genevolve.services.endpoint import ServiceError
from genevolve.settings import Settings
from genevolve.stages import backends, build, evolve
from genevolve.stages.backends import check_models
from genevolve.stages.crew import Crew, Player
from genevolve.stages.experience import extract, new_memory
from genevolve.stages.sample import sampling_metrics
from genevolve.tools.base import ToolError
from genevolve.training.batch import build_rows
from tests.experience.test_summarise_llm import GOOD
from tests.services.chats import PATH, bodies, completion, text_of, thinking
from tests.tools.web import Server, status

KSCORE = {
    "rationale": "Constraints: kept.",
    "faithfulness": 1,
    "visual_correctness": 0.5,
    "text_accuracy": 1,
    "text_accuracy_na": False,
    "aesthetics": 1,
}


def verdicts(messages: list[dict[str, Any]]) -> Any:
    """Answer as both judges and as the summariser; a program that says `fail` breaks its picture's judge or its own."""
    text, rubric = text_of(messages[1]), text_of(messages[0])
    if "compare two attempts" in rubric:
        return GOOD
    if "You judge programs" in rubric:
        return status(500) if "no program judge" in text else {"rationale": "r", "sufficiency": 0.75}
    return KSCORE


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    server = Server({PATH: [thinking(verdicts)]})
    for name in ("JUDGE", "SUMMARISER"):
        monkeypatch.setenv(f"GENEVOLVE_{name}_URL", f"{server.url}/v1")
        monkeypatch.setenv(f"GENEVOLVE_{name}_RATE", "1000000")
    monkeypatch.setenv("GENEVOLVE_WEB", str(tmp_path / "web"))
    monkeypatch.setenv("GENEVOLVE_COMMAND", "test")
    for name in ("OPENAI_API_KEY", "GENEVOLVE_JUDGE_KEY", "GENEVOLVE_SUMMARISER_KEY"):
        monkeypatch.delenv(name, raising=False)
    backends.client.cache_clear()
    with server.running():
        yield server
    backends.client.cache_clear()


def with_models(settings: Settings, **judge: Any) -> Settings:
    values = {"image": "vlm", "program": "vlm", "model": "eye", **judge}
    experience = {"summariser": "openai", "model": "pen"}
    return settings.model_copy(
        update={
            "judge": settings.judge.model_copy(update=values),
            "experience": settings.experience.model_copy(update=experience),
        }
    )


def played(request: Request, rollout: int, gen_prompt: str | None) -> Trajectory:
    gold = request.gold_program
    assert gold is not None
    program = None
    if gen_prompt is not None:
        references = tuple(Reference(img_id=f"IMG_{i:03d}") for i in range(1, len(gold.files) + 1))
        program = Program(gen_prompt=gen_prompt, reference_images=references, files=gold.files)
    call = ToolCall(turn=0, name="query_knowledge", arguments={"skill_name": "spatial_layout"}, ok=True)
    return Trajectory(
        id=f"{request.id}-{rollout}",
        request_id=request.id,
        rollout=rollout,
        question=request.question,
        messages=(),
        program=program,
        termination="answer" if program else "protocol",
        tool_calls=(call,),
    )


def gold_prompt(request: Request) -> str:
    assert request.gold_program is not None
    return request.gold_program.gen_prompt


def group(request: Request) -> list[Trajectory]:
    gold = gold_prompt(request)
    return [played(request, i, p) for i, p in enumerate((gold, gold, f"{gold} no program judge", None))]


def test_rewards_hold_what_the_models_said_and_a_failed_judge_is_missing(
    settings: Settings, dataset: Path, served: Server, tmp_path: Path
) -> None:
    request = load_requests(dataset, "evolve")[0]
    patient()
    player = Player(with_models(settings), dataset)
    scored = player.score(group(request), [request], tmp_path)
    first, again, lost, none = (t.reward or Reward() for t in scored)
    assert (first.image and first.image.overall, first.sufficiency, first.total) == (0.8, 0.75, 0.775)
    assert again == first
    assert json.loads(first.diagnostics["image"]["answers"][0]) == KSCORE
    assert first.diagnostics["image"]["model"] == first.diagnostics["program"]["model"] == "eye"
    assert (lost.total, lost.sufficiency, lost.image is not None) == (None, None, True)
    assert "HTTP 500" in lost.diagnostics["missing"]
    assert (none.total, none.sufficiency, none.diagnostics) == (0.0, 0.0, {})
    kinds = [b["messages"][0]["content"].splitlines()[0][:18] for b in bodies(served)]
    assert kinds.count("You are a strict j") == 1, "equal programs are drawn once, equal pictures judged once"
    for t in scored:
        assert parse(dump(t), Trajectory, "here") == t
    metrics = sampling_metrics(scored)
    assert metrics["missing_rewards"] == 1
    assert metrics["reward"] == pytest.approx((0.775 + 0.775 + 0) / 3), "a missing reward is no 0"
    found = contrast(by_request(scored), 0.2)
    assert found.rejected == {request.id: "protocol failure"}
    assert found.gaps == {request.id: 0.775}


def patient() -> None:
    """Make the judge's client try twice and wait for nothing."""
    from genevolve.services.patience import Patience

    client = backends.client("judge", 0.0, store(), key="OPENAI_API_KEY")
    client.patience = Patience(attempts=2, first_wait=0.0)


def test_the_embedded_world_is_opened_for_the_embedded_program_judge_alone(
    settings: Settings, served: Server, tmp_path: Path
) -> None:
    image, program = backends.make_judges(with_models(settings), tmp_path)
    assert [type(j).__name__ for j in (image, program)] == ["VlmImageJudge", "VlmProgramJudge"]
    assert type(backends.make_judges(with_models(settings, image="pixels"), tmp_path)[0]).__name__ == "PixelJudge"
    mixed = with_models(settings, program="constraints")
    backends.make_image_judge("vlm", mixed, tmp_path)  # as a build does, which has no world where services are searched
    with pytest.raises(ToolError, match=str(tmp_path)):
        backends.make_judges(mixed, tmp_path)


@pytest.mark.parametrize(
    ("render", "says"),
    [
        (
            {"backend": "service", "size": 1024},
            r"320 pixels a side, not 1024 \(render\.size\): set judge\.image to vlm",
        ),
        ({"backend": "gemini", "model": "gemini-3-pro-image-preview"}, "not pictures of Gemini's own sizes"),
    ],
)
def test_pixels_are_not_judged_where_another_generator_draws(
    settings: Settings, dataset: Path, tmp_path: Path, render: dict[str, Any], says: str
) -> None:
    over = settings.model_copy(update={"render": settings.render.model_copy(update=render)})
    with pytest.raises(SettingsError, match=says):
        backends.check_dataset(over, dataset)
    with pytest.raises(SettingsError, match=says):
        build.run(over, out=tmp_path / "built")
    seen = over.model_copy(update={"judge": over.judge.model_copy(update={"image": "vlm"})})
    backends.check_dataset(seen, dataset)


def test_a_missing_reward_is_no_worst_and_trains_nothing(settings: Settings, dataset: Path, served: Server) -> None:
    request = load_requests(dataset, "evolve")[0]
    patient()
    scored = Player(with_models(settings), dataset).score(group(request)[:3], [request], None)
    found = contrast(by_request(scored), 0.2)
    assert found.gaps == {request.id: 0.0}, "were the missing one a 0, it would be the worst"
    tokens = {"prompt_ids": (1,), "completion_ids": (2, 3), "assistant_mask": (1, 1), "logprobs": (-1.0, -1.0)}
    rows = [t.model_copy(update=tokens) for t in scored]
    trained = build_rows(rows, policy_hash="", tokenizer_hash="", temperature=1.0)
    assert [r.reward for r in trained.rows] == [0.775, 0.775]
    assert trained.missing_reward == 1


def test_a_refused_key_ends_the_stage(settings: Settings, dataset: Path, served: Server) -> None:
    request = load_requests(dataset, "evolve")[0]
    served.script[PATH] = [status(401)]
    with pytest.raises(ServiceError, match="GENEVOLVE_JUDGE_KEY"):
        Player(with_models(settings), dataset).score(group(request), [request], None)


def test_a_round_without_bundles_for_some_pairs_counts_them(
    settings: Settings, dataset: Path, served: Server, rounds: Callable[[], list[Trajectory]]
) -> None:
    over = with_models(settings)
    served.script[PATH] = [thinking(lambda m: GOOD if "r1" in m[1]["content"] else completion("I would rather not."))]
    extracted = extract(over, new_memory(settings), rounds(), 1)
    assert extracted.metrics["pairs_kept"] == 2
    assert (extracted.metrics["bundles"], extracted.metrics["pairs_without_bundle"]) == (1, 1)
    assert [b.request_id for b in extracted.bundles] == ["r1"]
    assert "request r2: no bundle: no usable JSON in 2 answers" in extracted.page
    embedded = extract(settings, new_memory(settings), rounds(), 1)
    assert "pairs_without_bundle" not in embedded.metrics


@pytest.fixture
def rounds() -> Callable[[], list[Trajectory]]:
    from tests.experience.rollouts import EXACT, LOOSE, make

    def made() -> list[Trajectory]:
        rows = []
        for request in ("r1", "r2"):
            ask = {"request_id": request, "question": f"Draw the thing of {request}."}
            rows += [make(0, 0.9, prompt=EXACT, **ask), make(1, 0.1, prompt=LOOSE, **ask)]
        return rows

    return made


@pytest.mark.parametrize(
    ("judge", "experience", "unset", "says"),
    [
        ({"model": ""}, {}, "", r"judge\.model is empty"),
        ({}, {"model": ""}, "", r"experience\.model is empty"),
        ({}, {}, "GENEVOLVE_JUDGE_URL", "GENEVOLVE_JUDGE_URL is not set"),
        ({"rubric": "none.md"}, {}, "", r"rubric none\.md cannot be read"),
        ({"program_rubric": "none.md"}, {}, "", r"rubric none\.md cannot be read"),
        ({}, {"prompt": "none.md"}, "", r"prompt none\.md cannot be read"),
    ],
)
def test_what_is_missing_is_one_sentence_before_anything_starts(
    settings: Settings, dataset: Path, served: Server, monkeypatch: pytest.MonkeyPatch, judge: dict[str, Any],
    experience: dict[str, Any], unset: str, says: str,
) -> None:  # fmt: skip
    if unset:
        monkeypatch.delenv(unset)
    over = with_models(settings, **judge)
    over = over.model_copy(update={"experience": over.experience.model_copy(update=experience)})
    with pytest.raises(SettingsError, match=says):
        check_models(over)
    if experience:
        Crew(over, dataset)  # what only plays needs no summariser
        with pytest.raises(SettingsError, match=says):
            evolve.run(over, dataset=dataset, parent=dataset, out=dataset / "none")
        return
    with pytest.raises(SettingsError, match=says):
        Crew(over, dataset)
