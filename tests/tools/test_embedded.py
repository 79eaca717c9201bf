"""The three embedded tools on the real world."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genevolve.agent.format import search_observation
from genevolve.scene import SKILLS
from genevolve.tools.base import ImageSearch, Knowledge, Search, ToolError
from genevolve.tools.embedded import SNIPPET_WORDS, EmbeddedImageSearch, EmbeddedSearch, SkillTexts
from genevolve.tools.report import image_report, search_report
from genevolve.tools.world import World

HOSTILE = [
    '"',
    "'",
    "NEAR(a b",
    "title:*",
    "a AND OR NOT",
    "-x",
    "^y",
    "{}",
    "\x00",
    "ü\ud800",
    "; DROP TABLE docs",
    "a" * 10_000,
]


@pytest.fixture(scope="module")
def search(world: World) -> Search:
    return EmbeddedSearch(world)


@pytest.fixture(scope="module")
def images(world: World) -> ImageSearch:
    return EmbeddedImageSearch(world)


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    return SkillTexts()


def test_almost_every_clue_finds_its_article_and_shows_the_fact(world: World) -> None:
    report = search_report(world, stride=5)  # all of them: python -m genevolve.tools.report
    for relation, row in report.items():
        if relation != "ms_mean":
            assert row["hit@5"] >= 0.97, relation
            assert row["read@5"] >= 0.95, relation
    assert report["capital"]["hit@1"] < 0.75  # the first result is often the city: the policy has to read


def test_the_fact_stands_at_the_end_and_the_title_gives_the_country(search: Search) -> None:
    hits = search.search(" country whose capital is Thimphu")
    right = [h for h in hits if h.title == "Bhutan"]
    assert right
    assert right[0].snippet == "The capital city is Thimphu"
    assert len(hits) == 5
    assert len({h.title for h in hits}) == 5


def test_snippets_are_short_and_plain(search: Search) -> None:
    for query in ("country whose internet domain is .bt", "largest ruminant", "double-reed woodwind instrument"):
        for hit in search.search(query, top_k=10):
            assert 0 < len(hit.snippet.split()) <= SNIPPET_WORDS
            assert hit.snippet.isascii()
            assert hit.title.isascii()


def test_results_do_not_depend_on_the_hash_seed(world_folder: Path) -> None:
    code = (
        "import sys, hashlib; from genevolve.tools.world import World; from genevolve.tools.embedded import EmbeddedSearch;"
        "w = World.open(sys.argv[1]); s = EmbeddedSearch(w);"
        "clues = [f.clue for e in w.entities.values() for f in e.facts if f.relation == 'description'];"
        "print(hashlib.sha256(repr([s.search(c.split(chr(34))[1]) for c in clues[:120]]).encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(world_folder)],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1  # a sum over a set of words would differ in its last bit, and so would the snippet


def test_domains_that_are_english_words_are_found(search: Search) -> None:
    for domain, country in ((".is", "Iceland"), (".at", "Austria"), (".in", "India"), (".to", "Tonga")):
        assert search.search(f"country whose internet domain is {domain}")[0].title == country


def test_vague_queries_do_not_find_a_country_by_luck(search: Search) -> None:
    assert "Bhutan" not in [h.title for h in search.search("flag country")]
    assert "Bhutan" not in [h.title for h in search.search("country")]


@pytest.mark.parametrize("query", HOSTILE)
def test_hostile_queries_are_just_queries(search: Search, images: ImageSearch, query: str) -> None:
    start = time.process_time()
    assert len(search.search(query)) <= 5
    assert len(images.search(query)) <= 5
    assert time.process_time() - start < 0.5


def test_nothing_asked_is_nothing_found(search: Search, images: ImageSearch) -> None:
    for query in ("", "   ", "?!", "zzzzqqqq"):
        assert search.search(query) == []
        assert images.search(query) == []
    assert search_observation([]).count("nothing found") == 1


@pytest.mark.parametrize("top_k", [-3, 0, 1, 3, 10, 10**9])
def test_top_k_is_kept_between_one_and_ten(search: Search, images: ImageSearch, top_k: int) -> None:
    wanted = min(max(top_k, 1), 10)
    assert len(search.search("bird", top_k)) == wanted
    assert 1 <= len(images.search("flag of Chad", top_k)) <= wanted


def test_every_name_finds_its_picture_at_every_place(world: World) -> None:
    report = image_report(world)
    assert report["hit@5"] == 1.0
    assert all(report["places"][place] >= 0.1 * report["n"] for place in range(1, 6))


def test_a_look_alike_stands_beside_the_right_picture(world: World, images: ImageSearch) -> None:
    hits = images.search("flag of Chad")
    assert {"flag of Chad", "flag of Romania"} <= {h.title for h in hits}
    assert hits == images.search(" Flag of CHAD ")
    chad = world.entity("flag:chad")
    assert [h.file for h in hits if h.title == chad.name] == [chad.file]


def test_a_name_inside_a_sentence_is_enough(images: ImageSearch) -> None:
    assert "giraffe" in [h.title for h in images.search("photo of a giraffe in the savanna")]
    assert "giraffe" in [h.title for h in images.search("three giraffes")]


def test_the_eight_skills_are_read_without_their_front_matter(knowledge: Knowledge) -> None:
    for skill in SKILLS:
        text = knowledge.read(f" {skill} ")
        assert text
        assert not text.startswith("---")
        assert "skill:" not in text


def test_an_unknown_skill_names_the_known_ones(knowledge: Knowledge) -> None:
    with pytest.raises(ToolError) as caught:
        knowledge.read("../../secrets")
    assert all(skill in str(caught.value) for skill in SKILLS)


def test_a_user_may_bring_other_skill_texts(tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text("---\nskill: mine\n---\nDo it well.\n")
    assert SkillTexts(tmp_path).read("mine") == "Do it well."
    with pytest.raises(ToolError, match="no folder"):
        SkillTexts(tmp_path / "absent")
