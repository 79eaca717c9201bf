"""Best-worst contrast: which pair is kept, why another is not, and what a trajectory is seen to have done."""

from __future__ import annotations

import pytest

from genevolve.experience.contrast import actions, by_request, contrast, specific
from genevolve.experience.wording import Wording, wording
from genevolve.records import Message

from .rollouts import EXACT, LOOSE, QUESTION, look, make, search, skill


def groups(*trajectories):  # type: ignore[no-untyped-def]
    return by_request(trajectories)


def test_best_and_worst_of_a_group_are_paired_with_their_gap() -> None:
    found = contrast(groups(make(0, 0.5), make(1, 0.9), make(2, 0.1), make(3, None)))
    (pair,) = found.pairs
    assert (pair.best.rollout, pair.worst.rollout, pair.gap) == (1, 2, 0.8)
    assert found.counts == {"kept": 1}


def test_equal_rewards_go_to_the_lower_rollout_on_both_ends() -> None:
    rows = [make(i, r) for i, r in enumerate((0.2, 0.9, 0.9, 0.2))]
    (pair,) = contrast(groups(*reversed(rows))).pairs
    assert (pair.best.rollout, pair.worst.rollout) == (1, 0)


@pytest.mark.parametrize(("low", "kept"), [(0.5, True), (0.501, False)])
def test_the_gap_of_twenty_hundredths_counts_in_spite_of_floats(low: float, kept: bool) -> None:
    found = contrast(groups(make(0, 0.7), make(1, low)))
    assert bool(found.pairs) is kept
    assert found.counts == ({"kept": 1} if kept else {"kept": 0, "gap too small": 1})


def test_a_trajectory_is_never_compared_with_itself() -> None:
    assert contrast(groups(make(0, 0.5), make(1, 0.5)), min_gap=0).counts == {"kept": 0, "gap too small": 1}


@pytest.mark.parametrize("termination", ["rounds", "length", "protocol"])
def test_a_worst_that_broke_the_protocol_teaches_nothing(termination: str) -> None:
    failed = make(1, 0.0, prompt=None, termination=termination, failure="No valid answer.")
    assert contrast(groups(make(0, 0.9), failed)).counts == {"kept": 0, "protocol failure": 1}


def test_a_program_that_was_answered_in_the_last_round_is_no_protocol_failure() -> None:
    assert len(contrast(groups(make(0, 0.9), make(1, 0.0, format_errors=3))).pairs) == 1


def test_missing_rewards_are_left_out_and_a_group_of_one_is_counted() -> None:
    assert contrast(groups(make(0, 0.9), make(1, None))).counts == {"kept": 0, "fewer than two rewards": 1}


def test_a_step_keeps_the_largest_gaps_and_counts_the_rest() -> None:
    rows = []
    for i in range(12):
        rows += [make(0, 0.95, request_id=f"r{i:02d}"), make(1, 0.05 * i, request_id=f"r{i:02d}")]
    found = contrast(groups(*rows))
    assert [p.request_id for p in found.pairs] == [f"r{i:02d}" for i in range(8)]
    assert found.counts == {"kept": 8, "larger gaps came first": 4}


def test_the_exact_program_is_read_as_exact_and_the_loose_one_as_loose() -> None:
    exact, loose = wording(EXACT), wording(LOOSE)
    asked = ("count", "position", "colour", "text", "light")
    assert all(exact[k] == Wording.EXACT for k in (*asked, "whole"))
    assert all(loose[k] == Wording.LOOSE for k in asked)
    assert loose["whole"] == exact["pattern"] == exact["material"] == Wording.ABSENT


def test_every_exact_wording_the_data_writes_is_read_as_exact() -> None:
    from genevolve.dataset.wording import exact
    from genevolve.scene import NUMBERS

    values = {"count": NUMBERS[1:], "position": ("left", "upper"), "colour": ("red",), "whole": ("",)}
    for kind, words in values.items():
        for value in words:
            assert wording(f"The first reference image, {exact(kind, value)}.")[kind] == Wording.EXACT, (kind, value)
    for kind, value in (("text", "IT. IS"), ("light", "pink dawn"), ("material", "sandy"), ("pattern", "dots")):
        assert wording("The first reference image. " + exact(kind, value, "top"))[kind] == Wording.EXACT, kind


def test_a_second_subject_without_whole_weakens_it_and_lettering_is_no_requirement() -> None:
    prompt = (
        "The first reference image, shown whole and unaltered. The second reference image. The words 'RED TWO' here."
    )
    read = wording(prompt)
    assert read["whole"] == Wording.LOOSE
    assert read["colour"] == read["count"] == read["position"] == Wording.ABSENT


def test_actions_are_read_from_calls_program_and_turns() -> None:
    done = actions(
        make(tool_calls=(search("country whose capital is Thimphu"), look("flag of Bhutan"), skill("text_rendering")))
    )
    assert done.first_tool == "search"
    assert done.specific_query
    assert done.search_paid
    assert done.skills == ("text_rendering",)
    (pick,) = done.picks
    assert (pick.rank, pick.title_match, pick.from_request) == (1, True, False)
    assert done.title_match
    assert done.wasted == 0


def test_a_look_alike_an_unoffered_id_and_refused_calls_are_seen() -> None:
    wrong = actions(make(picks=("IMG_001",)))
    assert not wrong.title_match
    assert not actions(make(picks=("IMG_077",))).title_match
    refused = actions(
        make(tool_calls=(search("x", ok=False), look("flag of Bhutan"), skill("text_rendering", ok=False)))
    )
    assert (refused.first_tool, refused.skills, refused.wasted) == ("image_search", (), 2)


def test_an_id_in_a_refused_prompt_is_found_in_the_turns() -> None:
    turn = '<think> t</think><answer>{"gen_prompt": " Draw IMG_002.", "reference_images": []}</answer>'
    assert actions(make(messages=(Message(role="assistant", content=turn),))).ids_in_prompt
    quoted = (
        '<think> t</think><answer>{"gen_prompt": " Draw it.", "reference_images": [{"img_id": "IMG_002"}]}</answer>'
    )
    assert not actions(make(messages=(Message(role="assistant", content=quoted),))).ids_in_prompt


@pytest.mark.parametrize(
    ("query", "yes"),
    [
        ("country whose capital is Thimphu", True),
        ("Thimphu", False),
        ("flag of the country", False),
        ("sign OPEN DAY", False),
    ],
)
def test_a_specific_query_carries_the_telling_fact(query: str, yes: bool) -> None:
    assert specific(query, QUESTION) is yes


def test_a_code_or_a_described_thing_is_a_telling_fact() -> None:
    assert specific(
        "country whose internet domain is .bt", "Paint the flag of the country whose internet domain is .bt."
    )
    described = "Paint the thing an encyclopedia describes as 'Order of large mammals', lit by a pink dawn."
    assert specific("Order of large mammals", described)
    assert not specific("pink dawn", described)
