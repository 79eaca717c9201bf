"""`genevolve evolve --profile paper`, the real command, with every service a server on loopback and tiny weights: a cycle of two
rounds whose cold start trains in two processes, and a short one that the Gemini API draws; then, slower: stopped by its budget and
all its training by two processes, from data that models made, with faults at every server, those that make the data among them."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from genevolve.policy.server import served_name
from genevolve.records import Bundle, Trajectory, read_jsonl
from genevolve.render.gemini import MODEL, USD_CALL
from genevolve.training.checkpoint import policy_hash
from tests.flows.paper import KEYS, Project, Services, echoing, write_models
from tests.services.chats import PATH

IMPORTED = "dataset.imported=datasets/public"
WEB = {"web", "web: private address", "web: pixels", "web: broken picture", "web: not a picture"}
SHORT = ("cycle.steps=1", "cold_start.processes=1")
GEMINI = ("render.backend=gemini", f"render.model={MODEL}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture
def services(models: Path, dataset: Path, request: pytest.FixtureRequest) -> Iterator[Services]:
    """Give the servers; a test may say which of them fail, and how often."""
    with Services(models, dataset, **getattr(request, "param", {})).running() as running:
        yield running


def ledger(project: Project) -> dict[str, tuple[int, int, float]]:
    """Return calls made, answers out of the cache, and dollars, by backend."""
    with sqlite3.connect(project.folder / ".cache" / "web" / "calls.sqlite") as db:
        rows = db.execute("SELECT backend, sum(not cached), sum(cached), total(cost) FROM calls GROUP BY 1").fetchall()
    return {backend: (made, cached, cost) for backend, made, cached, cost in rows}


def scores(project: Project, cycle: str) -> dict[str, Any]:
    return json.loads((project.built / cycle / "bench" / "scores.json").read_text())["all"]


def played(project: Project) -> dict[str, list[Trajectory]]:
    """Return the records of both benches and of all rounds, by where they lie."""
    places = [
        *project.built.glob("*/bench/blocks/*.jsonl"),
        *project.built.glob("*/trained/rounds/*/trajectories.jsonl"),
    ]
    return {str(p.relative_to(project.built)): list(read_jsonl(p, Trajectory)) for p in sorted(places)}


def whole(project: Project, rounds: int = 2) -> None:
    """Assert that no record of a cycle is missing or has no reward."""
    rows = played(project)
    places = [f"{cycle}/bench/blocks/00000.jsonl" for cycle in ("c000", "c001")]
    places += [f"c001/trained/rounds/{n:03d}/trajectories.jsonl" for n in range(1, rounds + 1)]
    assert {name: len(found) for name, found in rows.items()} == dict.fromkeys(places, 4)
    for name, found in rows.items():
        for t in found:
            assert t.program is not None, f"{name} {t.id}: {t.termination} {t.failure}"
            assert t.reward is not None
            assert t.reward.total is not None, f"{name} {t.id}: {t.reward.diagnostics}"
            assert [c.name for c in t.tool_calls] == ["search", "image_search", "query_knowledge"]
            assert all(c.ok for c in t.tool_calls), f"{name} {t.id}"
    assert all(t.image for name in places[:2] for t in rows[name])
    for t in rows[places[-1]]:
        assert len(t.logprobs) == len(t.completion_ids) > 0
    for cycle in ("c000", "c001"):
        assert all(isinstance(v, float) for v in scores(project, cycle).values())
        assert len(scores(project, cycle)) == 4


def learnt(project: Project, services: Services, rounds: int) -> None:
    """Assert that the summariser wrote the bundles, that the teacher read them, and that each training changed the weights."""
    trained = project.built / "c001" / "trained"
    folders = [trained / "rounds" / f"{n:03d}" for n in range(1, rounds + 1)]
    bundles = [b for folder in folders for b in read_jsonl(folder / "bundles.jsonl", Bundle)]
    assert len(bundles) == len(services.summariser.requests) > 0
    assert {b.decision_guidance.focus for b in bundles} == {"Resolve the fact before looking for the picture."}
    curve = json.loads((trained / "metrics.json").read_text())["curve"]
    assert [row["step"] for row in curve] == [*range(1, rounds + 1)]
    assert curve[-1]["sdl/hit_rate"] > 0
    policies = (project.models / "base", project.built / "c000/trained/policy", trained / "policy")
    assert len({policy_hash(folder) for folder in policies}) == 3


@pytest.mark.parametrize("renderer", ["diffusers", "gemini"])
def test_a_cycle_trains_scores_and_leaks_nothing(
    renderer: str, services: Services, models: Path, project: Path, tmp_path: Path
) -> None:
    """By diffusers: two rounds, and a cold start by two processes. By the Gemini API: one round and one process; a quick bench of
    its policy is drawn by our own server, too."""
    rounds = 2 if renderer == "diffusers" else 1
    services.policy.by_chance = rounds  # so that the last round is the best one, and its weights the cycle's
    paper = Project(tmp_path / "project", project, models, services)
    paper.import_data()
    over = (IMPORTED, *(() if renderer == "diffusers" else (*SHORT, *GEMINI)))
    done = paper.ok(paper.evolve(*over))
    assert "KScore on 2 bench requests about entities neither policy was trained on" in done.stdout
    whole(paper, rounds)
    learnt(paper, services, rounds)
    start, end = paper.built / "c000/trained/policy", paper.built / "c001/trained/policy"
    names = services.policy.names
    assert (names[0], names[-1]) == (served_name(start), served_name(end))
    assert len(names) == 1 + rounds, "the start's, and what each round made of it"
    found = ledger(paper)
    assert set(found) == {"policy", "serper", "judge", "summariser", renderer, *WEB}
    drawn = services.gemini.requests
    assert {headers["x-goog-api-key"] for *_, headers, _ in drawn} <= {KEYS["GENEVOLVE_GEMINI_KEY"]}
    assert not any("authorization" in headers for *_, headers, _ in drawn)
    if renderer == "gemini":
        assert found["gemini"][0] == len(drawn) > 0
        assert found["gemini"][2] == pytest.approx(USD_CALL * len(drawn))
        look = ("--policy", str(end), "--dataset", str(paper.built / "dataset"), "--out", "build/look")
        paper.ok(
            paper.run("bench", "--profile", "paper", *look, *paper.sizes("render.backend=service", "bench.requests=2"))
        )
        seen = list(read_jsonl(paper.folder / "build/look/blocks/00000.jsonl", Trajectory))
        assert len([t for t in seen if t.image and t.reward and t.reward.total is not None]) == 2
        assert ledger(paper)["render"][0] == len(services.render.requests) == 2
    assert services.inside.requests == []
    examined = paper.run("doctor", "--profile", "paper", *paper.sizes(*over)).stdout.splitlines()
    asked = ("policy server", "search service", "judge service", "summariser service", "base policy", "embedder model")
    assert [line for line in examined if line[9:].startswith(asked) and not line.startswith("ok")] == [], examined
    assert sum(line[9:].startswith(asked) for line in examined) == len(asked), examined
    assert paper.leaks() == []


@pytest.mark.parametrize("refused", ["teacher", pytest.param("judge", marks=pytest.mark.slow)])  # after a cold start
def test_a_run_that_fails_under_prefect_tells_prefect_no_key(
    refused: str, services: Services, models: Path, project: Path, tmp_path: Path
) -> None:
    """What ends a run is a state's message, a log row and a traceback in Prefect's database; the service repeats the key in it."""
    getattr(services, refused).script[PATH] = [echoing(401)]
    paper = Project(tmp_path / "project", project, models, services)
    if refused == "judge":
        paper.import_data()
    data = IMPORTED if refused == "judge" else "dataset.teacher_model=big"
    done = paper.under_prefect(data, *SHORT)
    assert (done.returncode, f"{refused} service refused the key" in done.stderr) == (1, True), done.stderr[-6000:]
    with sqlite3.connect(paper.folder / "home" / ".prefect" / "prefect.db") as db:
        states = [text for (text,) in db.execute("SELECT message FROM flow_run_state WHERE type = 'FAILED'")]
        logged = [text for (text,) in db.execute("SELECT message FROM log") if "Traceback" in text]
    said = f"The {refused} service refused the key (HTTP 401): check GENEVOLVE_{refused.upper()}_KEY and its credit. It says: "
    assert len(states) == 2, "the cycle and the flow within it"
    assert logged
    assert all(f"{said}failed for Bearer ***" in text for text in (*states, *logged)), (states, logged)
    assert paper.leaks() == []


@pytest.mark.slow
@pytest.mark.parametrize("services", [{"teacher": 5, "judge": 4, "search": 3, "images": 3, "web": 3}], indirect=True)
def test_a_short_cycle_from_data_that_models_made(
    services: Services, models: Path, project: Path, tmp_path: Path
) -> None:
    paper = Project(tmp_path / "project", project, models, services)
    sizes = {"recipes": 120, "sft": 4, "sft_heldout": 2, "evolve": 4, "validation": 2, "bench": 4}
    over = [f"dataset.{name}={n}" for name, n in sizes.items()]
    paper.ok(paper.evolve(*over, "dataset.teacher_model=big", *SHORT))
    whole(paper, rounds=1)
    yields = json.loads((paper.built / "dataset" / "yields.json").read_text())
    assert {y["stage"] for y in yields} >= {"audit on six dimensions", "ground truth rendered", "visual filter"}
    met = services.faults["teacher"].met
    assert set(met) == set(services.faults["teacher"].kinds)
    asked_twice = Counter(Counter(body for *_, body in services.teacher.requests).values())
    assert (asked_twice[2], set(asked_twice)) == (met.total(), {1, 2}), "what met a fault, and nothing else"
    found = ledger(paper)
    assert found["teacher"][0] == len(services.teacher.requests), "a row an attempt"
    assert found["teacher"][2] == pytest.approx(0.01 * (len(services.teacher.requests) - met["429"] - met["500"])), (
        "what may have been counted is paid"
    )
    asked = services.asked()
    paper.ok(paper.evolve(*over, "dataset.teacher_model=big", *SHORT))
    assert services.asked() == asked
    assert paper.leaks() == []


@pytest.mark.slow
def test_a_whole_cycle_is_stopped_by_its_budget_goes_on_ends_and_asks_nothing_twice(
    services: Services, models: Path, project: Path, tmp_path: Path
) -> None:
    paper = Project(tmp_path / "project", project, models, services)
    paper.import_data()
    over = (IMPORTED, "distill.processes=2")
    stopped = paper.evolve(*over, budget="0.05")
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1].startswith(
        "genevolve: The budget of this command, $0.05 (world.budget_usd), is"
    )
    assert sum(cost for *_, cost in ledger(paper).values()) <= 0.05
    paid = services.asked()["judge"]
    assert paid > 0
    done = paper.ok(paper.evolve(*over))
    assert "KScore on 2 bench requests about entities neither policy was trained on" in done.stdout
    whole(paper)
    built = paper.built

    learnt(paper, services, rounds=2)

    # each round's weights reached the server, and only there were they sampled
    start, end = built / "c000/trained/policy", built / "c001/trained/policy"
    names = [b["weight_version"] for p, b in services.policy.asked if p == "/update_weights_from_disk"]
    assert names[0] == served_name(start)
    assert served_name(end) in names
    assert all(a != b for a, b in pairwise(names)), "nothing is loaded that is served"
    for name, rows in played(paper).items():
        assert len({t.policy_hash for t in rows}) == 1, name
    second = played(paper)["c001/trained/rounds/002/trajectories.jsonl"]
    assert second[0].policy_hash != policy_hash(start)

    # pictures came from the web that the fetcher may see, and from nowhere else
    assert services.inside.requests == []
    assert (paper.folder / ".cache/web/images").is_dir()
    kept = {t.program.files[0] for rows in played(paper).values() for t in rows if t.program}
    assert all(f.startswith("web/") and (paper.folder / ".cache/web/images" / f[4:]).is_file() for f in kept)

    # the ledger knows every service; a picture was refused, and why
    found = ledger(paper)
    assert set(found) == {"policy", "serper", "judge", "summariser", "diffusers", *WEB}, found
    assert found["diffusers"][0] > 0
    assert found["diffusers"][1:] == (0, 0.0)
    assert found["judge"][0] == len(services.judge.requests)
    assert found["serper"][:1] == (len(services.serper.requests),)
    assert found["serper"][2] == pytest.approx(0.001 * len(services.serper.requests))
    assert found["summariser"][2] == pytest.approx(0.01 * len(services.summariser.requests))
    for server, body in _paid_bodies(services).items():
        assert max(Counter(body).values()) == 1, f"{server} was asked something twice"
    spent = paper.ok(paper.run("spend")).stdout
    for name in ("judge", "diffusers"):
        assert re.search(rf"^\d{{4}}-\d\d +{name} +{found[name][0]} ", spent, re.MULTILINE), spent

    # the same command again: nothing is asked, nothing changes
    asked, before = services.asked(), (built / "reports" / "latest.json").read_bytes()
    paper.ok(paper.evolve(*over))
    assert services.asked() == asked
    assert json.loads((built / "reports" / "latest.json").read_bytes()) == json.loads(before)
    assert paper.leaks() == []
    assert (paper.folder / "mlruns" / "mlflow.db").stat().st_size, "where it was looked for keys, among others"


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("renderer", ["service", "gemini"])
def test_a_cycle_with_faults_at_every_server_ends_and_loses_no_record(
    renderer: str, models: Path, dataset: Path, project: Path, tmp_path: Path
) -> None:
    drawer = "render" if renderer == "service" else "gemini"
    every = {"policy": 3, "search": 1, "images": 1, "web": 1, drawer: 1, "judge": 2, "summariser": 1}
    with Services(models, dataset, **every).running() as services:
        paper = Project(tmp_path / "project", project, models, services)
        paper.import_data()
        paper.ok(paper.evolve(IMPORTED, *(GEMINI if renderer == "gemini" else ("render.backend=service",))))
        met = {name: dict(services.faults[name].met) for name in every}
        loads = dict(services.loads.met)
    kinds = {name: set(services.faults[name].kinds) for name in every}
    assert all(set(met[n]) == kinds[n] for n in ("policy", "web", drawer, "judge")), met
    assert {*met["search"], *met["images"]} == kinds["search"], "six questions to each, seven faults"
    assert {"hang", "drip"} <= set(met["summariser"]), "a question a pair: the slowest come first"
    assert set(loads) == {"429", "500"}
    whole(paper)
    rounds = [paper.built / f"c001/trained/rounds/{n}" for n in ("001", "002")]
    pairs = [b for folder in rounds for b in read_jsonl(folder / "bundles.jsonl", Bundle)]
    assert pairs
    curve = json.loads((paper.built / "c001/trained/metrics.json").read_text())["curve"]
    assert [row["missing_rewards"] for row in curve] == [0, 0]
    assert sum(row["pairs_without_bundle"] for row in curve) == 0
    found = ledger(paper)
    for name, server in (("judge", services.judge), (drawer, getattr(services, drawer))):
        assert found[name][0] == len(server.requests), f"{name}: a row an attempt"
    assert set(found) >= {"policy", "serper", "judge", "summariser", drawer, *WEB, "web: time"}
    assert paper.leaks() == []


def _paid_bodies(services: Services) -> dict[str, list[str]]:
    servers = {"judge": services.judge, "summariser": services.summariser, "serper": services.serper}
    return {n: [path + body.decode() for _, path, _, body in s.requests] for n, s in servers.items()}
