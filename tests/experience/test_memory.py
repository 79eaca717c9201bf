"""Memory: capacity and eviction, retrieval under a gate, the calibrated gate, disk, and the real embedder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from genevolve.experience.embed import MiniLMEmbedder
from genevolve.experience.gate import calibrate_gate
from genevolve.experience.memory import ExperienceMemory
from genevolve.experience.text import demands, mask, names
from genevolve.records import RecordError

from .rollouts import QUESTION, make_bundle


class Letters:
    """An embedder one can reckon by hand: counts of the letters a to z, L2-normalised."""

    name = "letters"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts], np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def memory(gate: float = 0.9, **given: object) -> ExperienceMemory:
    return ExperienceMemory(Letters(), gate, **given)  # type: ignore[arg-type]


def test_eviction_takes_the_weakest_of_the_oldest_quarter() -> None:
    m = memory(capacity=8)
    gaps = (0.9, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
    assert m.add(make_bundle(i, g) for i, g in enumerate(gaps)) == []
    assert [b.id for b in m.add([make_bundle(8)])] == ["b001"]  # of b000 (.9) and b001 (.3)
    assert [b.id for b in m.add([make_bundle(9, 0.25)])] == ["b002"]  # weaker ones are younger, or b000
    assert len(m) == 8
    assert m.evicted == 2
    assert [b.id for b in m.bundles][:2] == ["b000", "b003"]


def test_equal_gaps_evict_the_oldest_and_a_capacity_of_one_works() -> None:
    m = memory(capacity=8)
    m.add(make_bundle(i) for i in range(9))
    assert m.bundles[0].id == "b001"
    one = memory(capacity=1)
    one.add(make_bundle(i) for i in range(3))
    assert [b.id for b in one.bundles] == ["b002"]


def test_the_same_bundle_again_replaces_itself() -> None:
    m = memory()
    m.add([make_bundle(1, 0.3), make_bundle(1, 0.6)])
    assert [b.gap for b in m.bundles] == [0.6]


def test_retrieval_takes_the_nearest_above_the_gate_or_nothing() -> None:
    m = memory(0.9)
    m.add([make_bundle(1, question="aab"), make_bundle(2, question="zzz")])
    hit, miss = m.retrieve([("q1", "aaab"), ("q2", "mmm")])
    assert hit is not None
    assert (hit.bundle.id, hit.own) == ("b001", False)
    assert hit.similarity == pytest.approx(7 / np.sqrt(50), abs=1e-4)
    assert miss is None
    assert memory().retrieve([("q", "aab")]) == [None]


def test_own_bundles_can_be_left_out_and_the_newest_of_equals_wins() -> None:
    m = memory(0.5)
    m.add([make_bundle(1, 0.9, "aab", 1, "r1"), make_bundle(2, 0.2, "aab", 2, "r1"), make_bundle(3, 0.2, "aabb", 1)])
    (own,) = m.retrieve([("r1", "aab")])
    assert own is not None
    assert (own.bundle.id, own.own) == ("b002", True)
    (other,) = m.retrieve([("r1", "aab")], own=False)
    assert other is not None
    assert (other.bundle.id, other.own) == ("b003", False)


def test_a_saved_memory_comes_back_and_a_corrupt_line_is_named(tmp_path: Path) -> None:
    m = memory(capacity=5)
    m.add(make_bundle(i, 0.1 * i) for i in range(1, 8))
    path = tmp_path / "memory.jsonl"
    assert m.save(path) == 5
    again = ExperienceMemory.load(path, Letters(), 0.9, 5)
    assert again.bundles == m.bundles
    assert not list(tmp_path.glob(".*"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace('"gap"', '"gab"'), *lines[2:]]))
    with pytest.raises(RecordError, match=r"memory\.jsonl, line 2: Bundle field"):
        ExperienceMemory.load(path, Letters(), 0.9)


def test_a_memory_of_nothing_and_an_unknown_key_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        memory(capacity=0)
    with pytest.raises(ValueError, match="question, masked, demands"):
        memory(key="hash")


def test_the_gate_separates_useful_from_useless_at_the_hit_rate_asked() -> None:
    pairs = [(0.9, 1.0), (0.8, 1.0), (0.7, 0.0), (0.6, 0.0)]
    gate = calibrate_gate(pairs, 0.3)
    assert (gate.gate, gate.hit_rate, gate.usefulness, gate.lift) == (0.8, 0.5, 1.0, 0.5)
    assert calibrate_gate(pairs, 0.75).gate == 0.7
    assert calibrate_gate([(0.5, 0.3), (0.9, 0.3)], 0.1).gate == 0.5  # equally useful: the most hits
    assert calibrate_gate([(0.5, 1.0), (0.5, 0.0), (0.4, 0.0)], 0.1).gate == 0.5  # ties are one candidate


@pytest.mark.parametrize("pairs", [[], [(0.5, float("nan"))]])
def test_the_gate_needs_finite_data(pairs: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="cannot be calibrated"):
        calibrate_gate(pairs)


def test_masking_takes_out_what_identifies_and_keeps_what_is_demanded() -> None:
    masked = mask(QUESTION)
    assert "Thimphu" not in masked
    assert "OPEN DAY" not in masked
    assert "'WORDS'" in masked
    assert all(w in masked for w in ("Draw the flag of the country whose capital is", "red plate", "three times"))
    assert names(QUESTION) == {"thimphu", "open", "day"}
    assert mask("Paint the flag of the land whose domain is .bt, on a marble floor.").count("a code") == 1


def test_the_demands_of_two_subjects_asked_alike_are_the_same_words() -> None:
    other = QUESTION.replace("capital is Thimphu", "internet domain is .na").replace("OPEN DAY", "NIGHT FAIR")
    assert demands(QUESTION) == demands(other)
    assert demands(QUESTION).startswith("something told by a fact, shown three times, to the left")
    assert demands("Paint a giraffe, shown twice.") == "something named, shown twice."
    assert demands("Paint a giraffe.") == "Paint a giraffe."


@pytest.fixture(scope="module")
def minilm() -> MiniLMEmbedder:
    return MiniLMEmbedder(batch_size=4)


def test_the_real_embedder_gives_unit_rows_that_follow_meaning_not_the_batch(minilm: MiniLMEmbedder) -> None:
    texts = [
        "A giraffe on the left.",
        "A giraffe to the left side.",
        "Quarterly tax report for a bank in Ohio.",
        "x " * 300,
    ]
    rows = minilm.embed(texts)
    assert rows.shape == (4, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > 0.8 > 0.3 > rows[0] @ rows[2]
    alone = MiniLMEmbedder().embed([texts[0]])
    assert np.allclose(alone[0], rows[0], atol=1e-5)
    assert minilm.embed([]).shape == (0, 384)


def test_the_real_embedder_with_masked_keys_finds_the_same_demand(minilm: MiniLMEmbedder) -> None:
    m = ExperienceMemory(minilm, 0.9, key="masked")
    m.add(
        [make_bundle(1, question=QUESTION), make_bundle(2, question="Paint a giraffe, on a marble floor, shown twice.")]
    )
    (hit,) = m.retrieve([("new", QUESTION.replace("Thimphu", "Windhoek").replace("OPEN DAY", "NIGHT FAIR"))])
    assert hit is not None
    assert (hit.bundle.id, hit.similarity) == ("b001", pytest.approx(1, abs=1e-4))
