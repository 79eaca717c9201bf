"""The ablation's switches in the stages: placebo guides, guides for the student, removed tools, a smaller bench."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from genevolve.agent.session import Session
from genevolve.dataset.public import load_requests
from genevolve.errors import SettingsError
from genevolve.experience.memory import ExperienceMemory, Retrieved
from genevolve.ledger import Ledger
from genevolve.profiles import load
from genevolve.records import Bundle, DecisionGuidance, Trajectory
from genevolve.scene import SKILLS
from genevolve.settings import LATER, SWITCHES, Settings
from genevolve.stages.backends import make_tools, system_text
from genevolve.stages.bench import spread
from genevolve.stages.crew import Crew, training_sampling
from genevolve.stages.experience import extract, placebo_guides, student_guides
from tests.experience.rollouts import EXACT, LOOSE, make, make_bundle
from tests.experience.test_memory import Letters


def says(number: int, text: str, request_id: str = "") -> Bundle:
    guidance = DecisionGuidance(focus="f", failure_guards=(text,))
    return make_bundle(number, request_id=request_id).model_copy(update={"decision_guidance": guidance})


def test_a_placebo_is_never_a_requests_own_bundle_nor_the_same_advice() -> None:
    memory = [says(i, f"Advice {i % 4}.") for i in range(12)]  # three bundles to each advice
    hits = {f"r{i:03d}": Retrieved(memory[i], 0.9, own=True) for i in range(6)}
    for seed in range(50):
        given = placebo_guides(hits, memory, Random(seed))
        assert set(given) == set(hits)  # as many requests are taught as without placebo
        for request, guide in given.items():
            assert f"Advice {int(request[1:]) % 4}." not in guide
        assert given == placebo_guides(hits, memory, Random(seed))
    drawn = {placebo_guides(hits, memory, Random(seed))["r000"] for seed in range(50)}
    assert len(drawn) == 3  # not always the same one


def test_a_placebo_comes_from_the_memory_where_the_round_has_none_and_else_there_is_none() -> None:
    own, other, same = says(1, "Count.", "r1"), says(2, "Search.", "r2"), says(3, "Count.", "r3")
    hits = {"r1": Retrieved(own, 0.9, own=True)}
    assert "Search." in placebo_guides(hits, [own, other, same], Random(0))["r1"]
    assert placebo_guides(hits, [own, same], Random(0)) == {}
    assert placebo_guides({}, [own, other], Random(0)) == {}


@pytest.fixture
def round_() -> list[Trajectory]:
    rows = []
    for request in ("r1", "r2"):
        rows += [make(0, 0.9, request_id=request, prompt=EXACT), make(1, 0.1, request_id=request, prompt=LOOSE)]
    rows[2] = rows[2].model_copy(update={"tool_calls": ()})  # r2's best searched nothing: another advice
    return rows


def test_extract_gives_nearest_guides_placebos_or_none_to_those_whose_student_had_one(
    round_: list[Trajectory],
) -> None:
    given = {}
    for guides in ("nearest", "shuffled"):
        settings = load("tiny", overrides=[f"experience.guides={guides}"])
        given[guides] = extract(settings, ExperienceMemory(Letters(), 0.5), round_, 1)
    assert set(given["nearest"].guides) == {"r1", "r2"}
    assert given["shuffled"].metrics == given["nearest"].metrics
    for request, guide in given["shuffled"].guides.items():
        assert guide != given["nearest"].guides[request]
    shown = extract(load("tiny"), ExperienceMemory(Letters(), 0.5), round_, 1, {"r1": "seen already"})
    assert set(shown.guides) == {"r2"}


def test_the_students_guide_is_what_the_memory_of_earlier_rounds_holds(settings: Settings, dataset: Path) -> None:
    requests = load_requests(dataset, "evolve")
    on = load("tiny", overrides=["sampling.guide_to_student=true"])
    memory = ExperienceMemory(Letters(), 0.0)
    assert student_guides(on, memory, requests) == {}
    memory.add([says(1, "Count the copies.")])
    assert set(student_guides(on, memory, requests)) == {r.id for r in requests}
    assert student_guides(settings, memory, requests) == {}


def test_a_guided_student_is_sampled_behind_its_guide(settings: Settings, dataset: Path, project: Path) -> None:
    requests = load_requests(dataset, "evolve")[:2]
    base = project / "assets" / "base-policy"
    with Crew(settings, dataset) as crew:
        guide = {requests[0].id: " - Count the copies."}
        played = crew.play(base, requests, 1, training_sampling(settings), 3, guides=guide)
    assert "Count the copies." in played[0].messages[0].content
    assert "Current-Task" not in played[1].messages[0].content
    assert len(played[0].prompt_ids) > len(played[1].prompt_ids)


CALLS = {
    "search": '<think>t</think><tool_call>{"name": "search", "arguments": {"queries": ["a giraffe"]}}</tool_call>',
    "image_search": '<think>t</think><tool_call>{"name": "image_search", "arguments": {"query": "giraffe"}}</tool_call>',
    "query_knowledge": '<think>t</think><tool_call>{"name": "query_knowledge", "arguments": '
    '{"skill_name": "quantity_counting"}}</tool_call>',
}


@pytest.mark.parametrize("tool", list(CALLS))
def test_a_removed_tool_answers_with_an_error_and_is_not_offered(tool: str, dataset: Path) -> None:
    settings = load("tiny", overrides=[f"sampling.removed_tools=[{tool}]"])
    session = Session(make_tools(settings, dataset))
    session.start("Draw a giraffe.", "s")
    seen = {name: session.step(text) for name, text in CALLS.items()}
    assert [call.ok for call in session.tool_calls] == [name != tool for name in CALLS]
    assert f"{tool} failed: there is no such tool here." in str(seen[tool])
    offered = next(line for line in system_text(settings).splitlines() if line.startswith("Tools: "))
    names = offered.removeprefix("Tools: ").rstrip(".").split(", ")
    assert names == [name for name in CALLS if name != tool]


def test_without_any_tool_the_prompt_says_none() -> None:
    gone = load("tiny", overrides=["sampling.removed_tools=[search, image_search, query_knowledge]"])
    assert "Tools: none." in system_text(gone)
    assert "{{guide}}" in system_text(gone)


def test_a_part_of_the_bench_is_spread_over_it(dataset: Path) -> None:
    requests = load_requests(dataset, "bench")
    assert spread(requests, None) == requests
    assert spread(requests, 99) == requests
    assert spread(requests, 3) == [requests[0], requests[2], requests[4]]


def test_switches_at_rest_stand_in_no_recipe_and_reopen_no_cycle(in_project: Path) -> None:
    settings = load("embedded")
    at_rest = load("embedded", overrides=["bench.draws=1"])  # the profile plays the bench twice
    for switches in (SWITCHES, LATER):
        values = at_rest.section_values(*switches)
        assert not [f"{s}.{f}" for s, fields in switches.items() for f in fields if f in values[s]]
    ledger = Ledger.read(Path("cycles.yaml"))
    assert ledger.open_cycle(settings) == (ledger, "c001")
    changed = load("embedded", overrides=["experience.guides=shuffled"])
    assert changed.section_values("experience")["experience"]["guides"] == "shuffled"
    assert ledger.open_cycle(changed)[1] == "c002"


def test_skill_texts_of_the_users_keep_their_lines_in_the_releases_dialogue(dataset: Path, tmp_path: Path) -> None:
    over = ["policy.dialogue=release", f"policy.skills={tmp_path}"]
    with pytest.raises(SettingsError, match=r"policy\.skills: .* has no spatial_layout\.md, .*eight skills"):
        make_tools(load("tiny", overrides=over), dataset)
    for skill in SKILLS:
        (tmp_path / f"{skill}.md").write_text(f"# {skill}\n\n- WRONG -> right\n")
    session = Session(make_tools(load("tiny", overrides=over), dataset))
    session.start("Draw.", "system")
    said = session.step(
        '<tool_call>{"name": "query_knowledge", "arguments": {"skill_name": "text_rendering"}}</tool_call>'
    )
    assert said is not None
    assert said.endswith("=== Skill: text_rendering ===\n# text_rendering\n\n- WRONG -› right\n\n</tool_response>")
