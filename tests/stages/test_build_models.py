"""A small GenEvolve-Data by models on loopback: whole, resumed after a kill, and with answers that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from genevolve.dataset.audit import Audit
from genevolve.dataset.models.asking import service_of
from genevolve.dataset.models.writer import Sheet, plain
from genevolve.dataset.public import SftRow, load_public, load_quarantine, load_requests, load_sft
from genevolve.dataset.release.exporting import export_dataset
from genevolve.errors import SettingsError, TryLaterError
from genevolve.profiles import load
from genevolve.records import read_jsonl
from genevolve.services.cache import BudgetError, store
from genevolve.services.patience import Patience
from genevolve.settings import Settings
from genevolve.stages import backends, build
from genevolve.stages.build_models import kept_picture
from genevolve.stages.data_models import check_data_models
from genevolve.stages.runner import sections_of
from genevolve.tools.fetch import Fetcher
from genevolve.tools.world import World
from tests.dataset.models.script import AUDIT, DOWN, FILTER, Script, kind, said
from tests.services.chats import PATH, completion
from tests.tools.web import Names, Server, picture, send
from tests.tools.web import said as says_json

SIZES = {"recipes": 120, "sft": 6, "sft_heldout": 2, "evolve": 3, "validation": 2, "bench": 4}
KINDS = ("recipe", "teacher", "audit", "gt_filter")


def with_models(project: Path, **dataset: Any) -> Settings:
    return load("tiny", overrides=with_models_overrides(**dataset), path=project / "params.yaml")


def with_models_overrides(**dataset: Any) -> list[str]:
    values = {"teacher": "openai", "teacher_model": "big", "guide_fraction": 0, **SIZES, **dataset}
    over = [f"dataset.{k}={json.dumps(v)}" for k, v in values.items()]
    over += ["judge.image=vlm", "judge.program=vlm", "judge.model=eye", "policy.system=system", "sampling.workers=1"]
    return [*over, "sampling.max_turn_tokens=1000", "sampling.max_context=9000"]


@pytest.fixture
def script(dataset: Path) -> Script:
    return Script(World.open(dataset / "world"))


@pytest.fixture
def served(script: Script, dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    server = Server({PATH: [script]})
    # The world is a function of nothing: in this process it is copied, in processes of a test's own it is built.
    copied = partial(shutil.copytree, dataset / "world", dirs_exist_ok=True)
    monkeypatch.setattr("genevolve.tools.world.build_world", copied)
    for name in ("TEACHER", "JUDGE"):
        monkeypatch.setenv(f"GENEVOLVE_{name}_URL", f"{server.url}/v1")
        monkeypatch.setenv(f"GENEVOLVE_{name}_RATE", "0")
        monkeypatch.setenv(f"GENEVOLVE_{name}_CONCURRENCY", "4")
    for name in ("WRITER", "AUDITOR"):
        monkeypatch.delenv(f"GENEVOLVE_{name}_URL", raising=False)
    monkeypatch.setenv("GENEVOLVE_WEB", str(tmp_path / "web"))
    monkeypatch.setenv("GENEVOLVE_COMMAND", "test")
    backends.client.cache_clear()
    backends.world.cache_clear()
    with server.running():
        yield server
    backends.client.cache_clear()
    backends.world.cache_clear()


def patient() -> None:
    """Make the teacher's client try twice and wait for nothing."""
    client = backends.client("teacher", 0.0, store(), key="OPENAI_API_KEY")
    client.patience = Patience(attempts=2, first_wait=0.0)


def yields(out: Path) -> dict[str, dict[str, int]]:
    return {y["stage"]: y for y in json.loads((out / "yields.json").read_text())}


def adds_up(out: Path) -> None:
    """Check that each step's losses stand in the quarantine, and what it kept is the next one's input."""
    rows, lost = yields(out), Counter(q.stage for q in load_quarantine(out))
    names = list(rows)
    for earlier, later in pairwise(names[:4]):
        assert rows[earlier]["kept"] == rows[later]["in"]
    steps = ("de-duplication, length", "teacher", "program checks", "audit")
    for name, step in zip(names, steps, strict=False):
        assert rows[name]["in"] - rows[name]["kept"] == lost[step], name
    gt, seen = rows["ground truth rendered"], rows["visual filter"]
    assert rows["audit on six dimensions"]["kept"] == rows["SFT export"]["in"] + gt["in"]
    assert gt["in"] - gt["spare"] - gt["kept"] == lost["ground truth"]
    assert seen["in"] - seen["kept"] == lost["visual filter"]
    assert set(lost) <= {*steps, "ground truth", "visual filter"}
    assert all(len(q.reason) > 5 for q in load_quarantine(out))


def test_models_build_a_whole_dataset_and_nothing_is_asked_twice(
    project: Path, served: Server, script: Script, tmp_path: Path
) -> None:
    settings, out = with_models(project), tmp_path / "dataset"
    report = build.run(settings, out=out)
    adds_up(out)
    assert max(said(served).values()) == 1
    assert set(script.seen) == set(KINDS)
    requests = load_requests(out)
    assert Counter(r.split for r in requests) == {s: n for s, n in SIZES.items() if s != "recipes"}
    sheets = {s.id: s for s in read_jsonl(out / "recipes.jsonl", Sheet)}
    assert list(sheets) == [r.id for r in requests]
    owner: dict[str, str] = {}
    for r in requests:
        assert r.scene is None
        assert all(owner.setdefault(plain(a), r.split) == r.split for a in sheets[r.id].anchors), (
            "no anchor in two splits"
        )
    student = backends.system_text(settings).replace("{{guide}}\n", "")
    for t in load_sft(out):
        assert t.messages[0].content == student, "what the teacher alone was told is not in the records"
        assert not t.completion_ids
        assert t.program is not None
    taught = [json.loads(r[3])["messages"] for r in served.requests]
    assert any("How an expert works" in m[0]["content"] for m in taught if kind(m) == "teacher")
    for row in load_public(out, "sft"):
        assert isinstance(row, SftRow)
        assert row.images
        assert all((out / image).is_file() for image in row.images)
    for row in load_public(out, "bench"):
        assert not isinstance(row, SftRow)
        assert (out / row.gt_image).read_bytes().startswith(b"\x89PNG")
    audits = list(read_jsonl(out / "audit.jsonl", Audit))
    assert {a.said for a in audits} == {"Sound."}
    assert audits[0].scores == {k: int(v) for k, v in AUDIT.items() if k != "rationale"}
    assert report["splits"]["bench"]["half"] == {"gate": 2, "report": 2}
    assert not (out / "taught.jsonl").exists()

    asked = len(served.requests)
    first = (out / "report.json").read_bytes()
    assert build.run(settings, out=out)["digest"] == report["digest"]
    assert (len(served.requests), (out / "report.json").read_bytes()) == (asked, first), "a second build is free"


RUN = """
import sys
from pathlib import Path
from genevolve.settings import Settings
from genevolve.stages import build
build.run(Settings.model_validate_json(sys.argv[1]), out=Path(sys.argv[2]))
"""


def test_the_command_builds_prints_the_yields_and_keeps_what_is_there(
    project: Path, served: Server, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    command = [sys.executable, "-m", "genevolve", "build", "--profile", "tiny"]
    for setting in with_models_overrides():
        command += ["--set", setting]
    environment = {**os.environ, "GENEVOLVE_TRACKING": "off", "GENEVOLVE_TEACHER_USD_CALL": "0.01"}
    short = [*command, "--budget", "0.1"]
    stopped = subprocess.run(short, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert stopped.returncode == 1
    assert "The budget of this command, $0.1 (world.budget_usd), is used up" in stopped.stderr
    assert len(served.requests) == 10
    command += ["--budget", "40"]
    first = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "audit on six dimensions" in first.stdout
    adds_up(tmp_path / "build/tiny/dataset")
    asked = len(served.requests)
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout, len(served.requests)) == (0, first.stdout, asked)


@pytest.mark.parametrize("dying", ["teacher", "audit", "gt_filter"])
def test_a_killed_build_pays_again_for_nothing_but_what_was_under_way(
    project: Path, served: Server, script: Script, tmp_path: Path, dying: str
) -> None:
    settings, out = with_models(project), tmp_path / "dataset"
    values = settings.model_dump(mode="json")
    values["distill"] = {k: v for k, v in values["distill"].items() if k not in ("steps", "temperature", "seed")}
    hung: list[bytes] = []
    alive = 5 if dying != "teacher" else 21

    def until_it_hangs(handler: BaseHTTPRequestHandler) -> None:
        body: bytes = handler.body  # type: ignore[attr-defined]
        if script.seen[dying] >= alive:
            hung.append(body)
            served.over.wait(60)
        else:
            script(handler)

    served.script[PATH] = [until_it_hangs]
    process = subprocess.Popen([sys.executable, "-c", RUN, json.dumps(values), str(out)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(hung) < 4 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert len(hung) == 4, "all calls that the service allows at a time are under way: what was answered is kept"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = said(served)
    assert max(before.values()) == 1
    served.script[PATH] = [script]
    build.run(settings, out=out)
    adds_up(out)
    twice = {body for body, n in said(served).items() if n > 1}
    assert twice <= set(hung)
    assert max(said(served).values()) <= 2


def test_what_cannot_be_used_is_mended_or_left_out_with_its_reason(
    project: Path, served: Server, script: Script, tmp_path: Path
) -> None:
    broken = completion("I would say five out of five.")
    script.faults = {
        ("recipe", 0): completion('{"anchors": ["x"], "question": "Too short"}'),
        ("audit", 0): completion("```json\n" + json.dumps(AUDIT)[:-1] + ",}\n```"),
        ("audit", 1): broken,
        ("audit", 2): completion({**AUDIT, "supervised_value": 9}),
        ("audit", 3): completion({**AUDIT, "reference_grounding": 1, "rationale": "A wrong picture."}),
        ("gt_filter", 0): completion({**FILTER, "compliance": 2}),
        ("teacher", 1): completion("<answer>no JSON</answer>"),
    }
    reply: Callable[[BaseHTTPRequestHandler], None] = script

    def stubborn(handler: BaseHTTPRequestHandler) -> None:
        """The one whose audit is broken stays broken whenever it is asked."""
        messages = json.loads(handler.body)["messages"]  # type: ignore[attr-defined]
        if kind(messages) == "audit" and any("five out of five" in str(m["content"]) for m in messages[2:]):
            broken(handler)
        else:
            reply(handler)

    served.script[PATH] = [stubborn]
    out = tmp_path / "dataset"
    build.run(with_models(project), out=out)
    adds_up(out)
    reasons = [(q.stage, q.reason) for q in load_quarantine(out)]
    assert ("audit", "reference_grounding 1") in reasons
    assert any(s == "audit" and "no usable JSON in 3 answers" in r for s, r in reasons)
    assert ("visual filter", "compliance 2") in reasons
    assert ("teacher", "1 turns broke the format") in reasons
    mended = [json.loads(r[3])["messages"] for r in served.requests]
    assert any(kind(m) == "recipe" and "Answer again" in str(m[-1]["content"]) for m in mended)
    assert any(kind(m) == "audit" and "whole number from 1 to 5" in str(m[-1]["content"]) for m in mended)


def test_over_the_web_the_pictures_lie_in_the_dataset_and_the_public_files_hold_them(
    project: Path, served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"title": "A place", "link": "https://example.org/a", "snippet": "What it is."}
    found = {"title": "The thing", "imageUrl": "http://pictures.example/a.jpg", "link": "https://example.org/a"}
    web = Server(
        {
            "/search": says_json({"organic": [row]}),
            "/images": says_json({"images": [found]}),
            "/a.jpg": send(picture("JPEG", (300, 200))),
        }
    )
    monkeypatch.setenv("GENEVOLVE_SERPER_URL", web.url)
    monkeypatch.setenv("SERPER_API_KEY", "k")
    monkeypatch.setattr(backends, "fetcher", lambda: Fetcher(Names(web.port).net))
    backends.serper.cache_clear()
    settings, out = with_models(project), tmp_path / "dataset"
    world = settings.world.model_copy(update={"search": "serper", "image_search": "serper", "budget_usd": 5})
    settings = settings.model_copy(update={"world": world})
    with web.running():
        build.run(settings, out=out)
        asked = len(web.requests)
        adds_up(out)
        assert not (out / "world").exists()
        shown = {file for r in load_public(out, "sft") if isinstance(r, SftRow) for file in r.images}
        assert len(shown) == 1
        assert next(iter(shown)).startswith("web/")
        assert (out / next(iter(shown))).read_bytes().startswith(b"\xff\xd8")
        queries = Counter(r[3] for r in web.requests if r[0] == "POST")
        assert max(queries.values()) == 1, "an equal search is paid once"
        build.run(settings, out=out)
        assert len(web.requests) == asked
    backends.serper.cache_clear()
    with pytest.raises(SettingsError, match=r"made with web search and has no embedded world: set world\.search"):
        backends.check_dataset(with_models(project), out)
    backends.check_dataset(settings, out, load_requests(out, "bench"))
    counts = export_dataset(out, tmp_path / "public")
    assert sum(counts.values()) == 17
    again = load_requests(out, "bench")
    assert all(r.gold_program and r.gold_program.files for r in again)


def test_another_try_takes_the_place_of_one_that_failed(
    project: Path, served: Server, script: Script, tmp_path: Path
) -> None:
    script.faults = {("teacher", i): completion("Nothing to say.") for i in range(3)}
    out = tmp_path / "dataset"
    build.run(with_models(project, teacher_tries=2), out=out)
    adds_up(out)
    assert (
        yields(out)["teacher loop, structurally valid"]["in"] == yields(out)["teacher loop, structurally valid"]["kept"]
    )
    assert {a.habits for a in read_jsonl(out / "audit.jsonl", Audit)} == {"try 1", "try 2"}
    assert max(said(served).values()) == 1


def test_a_service_that_is_down_ends_the_build_and_it_goes_on_later(
    project: Path, served: Server, script: Script, tmp_path: Path
) -> None:
    settings, out = with_models(project), tmp_path / "dataset"
    patient()
    script.faults = {("audit", i): DOWN for i in range(1000)}
    with pytest.raises(TryLaterError, match=r"teacher service does not answer \(HTTP 500\).*goes on from here"):
        build.run(settings, out=out)
    script.faults = {}
    before = {b for b, n in said(served).items() if kind(json.loads(b)["messages"]) != "audit" and n}
    build.run(settings, out=out)
    assert max(n for b, n in said(served).items() if b in before) == 1
    adds_up(out)


def test_the_budget_stops_the_build_before_it_is_passed(
    project: Path, served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENEVOLVE_TEACHER_USD_CALL", "0.01")
    settings, out = with_models(project), tmp_path / "dataset"
    settings = settings.model_copy(update={"world": settings.world.model_copy(update={"budget_usd": 0.4})})
    with pytest.raises(BudgetError, match="is used up"):
        build.run(settings, out=out)
    assert len(served.requests) == 40
    settings = settings.model_copy(update={"world": settings.world.model_copy(update={"budget_usd": 40})})
    build.run(settings, out=out)
    assert max(said(served).values()) == 1
    adds_up(out)


@pytest.mark.parametrize(
    ("over", "unset", "says"),
    [
        ({"teacher_model": ""}, "", r"dataset\.teacher_model is empty"),
        ({}, "TEACHER", "GENEVOLVE_TEACHER_URL is not set"),
        ({}, "JUDGE", "GENEVOLVE_JUDGE_URL is not set"),
        ({"auditor_prompt": "none.md"}, "", r"prompt none\.md cannot be read"),
        ({"teacher_prompt": "none.md"}, "", r"prompt none\.md cannot be read"),
        ({"seeds": "none.json"}, "", r"seeds none\.json cannot be read"),
        ({"guide_fraction": 0.3}, "", r"dataset\.guide_fraction"),
    ],
)
def test_what_is_missing_is_one_sentence_and_nothing_is_touched(
    project: Path, served: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, over: dict[str, Any], unset: str,
    says: str,
) -> None:  # fmt: skip
    if unset:
        monkeypatch.delenv(f"GENEVOLVE_{unset}_URL")
    out = tmp_path / "dataset"
    with pytest.raises(SettingsError, match=says):
        build.run(with_models(project, **over), out=out)
    assert not out.exists()
    assert not served.requests


def test_services_of_their_own_and_judges_of_pixels(
    project: Path, served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_models(project)
    assert service_of("auditor", settings.dataset) == ("teacher", "big")
    monkeypatch.setenv("GENEVOLVE_AUDITOR_URL", f"{served.url}/v1")
    with pytest.raises(SettingsError, match=r"dataset\.auditor_model is empty: name a model of the auditor service"):
        check_data_models(settings)
    assert service_of("auditor", with_models(project, auditor_model="m").dataset) == ("auditor", "m")
    judged = settings.model_copy(update={"judge": settings.judge.model_copy(update={"image": "pixels"})})
    with pytest.raises(SettingsError, match=r"judge\.image: pixels knows the requests of the embedded world alone"):
        check_data_models(judged)


def test_a_fingerprint_knows_the_teachers_limits_and_the_embedded_one_is_as_it_was(project: Path) -> None:
    embedded = load("embedded", path=project / "params.yaml")
    assert sections_of("build", embedded) == ("world", "dataset", "render", "judge", "seeds")
    assert "teacher_model" not in embedded.section_values("dataset")["dataset"]
    assert sections_of("build", with_models(project))[-2:] == ("policy", "sampling")


def test_a_ground_truth_is_drawn_once(settings: Settings, tmp_path: Path) -> None:
    from genevolve.render.base import RenderJob

    drawn: list[int] = []

    def draw() -> bytes | None:
        drawn.append(1)
        return b"png" if len(drawn) > 1 else None

    job = RenderJob("q-000001", "A cat.", (b"reference",), 1)
    assert [kept_picture(tmp_path, settings, job, draw) for _ in range(3)] == [None, b"png", b"png"]
    other = RenderJob("q-000001", "A cat.", (b"another",), 1)
    assert kept_picture(tmp_path, settings, other, draw) == b"png"
    assert len(drawn) == 3
