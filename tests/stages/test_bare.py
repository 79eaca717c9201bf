"""`bench --policy none`: the request is the prompt, there are no references, and no program is judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from genevolve.cli import app
from genevolve.dataset.public import load_requests
from genevolve.errors import SettingsError
from genevolve.profiles import load
from genevolve.records import Trajectory, read_jsonl
from genevolve.render.diffusers import TEXT, Diffusers
from genevolve.settings import Settings
from genevolve.stages import backends, bench
from tests.render.tiny import build
from tests.services.chats import PATH, bodies, thinking
from tests.tools.web import Server

VERDICT = {
    "rationale": "Constraints: kept.",
    "faithfulness": 1,
    "visual_correctness": 0.5,
    "text_accuracy": 0.5,
    "aesthetics": 1,
    "text_accuracy_na": True,
}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    server = Server({PATH: [thinking(lambda messages: VERDICT)]})
    monkeypatch.setenv("GENEVOLVE_JUDGE_URL", f"{server.url}/v1")
    monkeypatch.setenv("GENEVOLVE_WEB", str(tmp_path / "web"))
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    backends.client.cache_clear()
    with server.running():
        yield server
    backends.client.cache_clear()


def drawn_by(folders: tuple[Path, Path], *more: str) -> Settings:
    """The paper's services but for generator and judge: no policy and no search is asked, so that none is set up."""
    edit, text = folders
    over = [f"render.model={edit}", f"render.text_model={text}", "render.size=64", "render.steps=2"]
    return load("paper", overrides=[*over, "judge.model=eye", "bench.requests=2", *more])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("tiny"))


def test_the_request_is_drawn_by_the_text_pipeline_and_its_picture_alone_is_judged(
    judge: Server, dataset: Path, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes: list[str] = []
    pipe = Diffusers._pipe
    monkeypatch.setattr(Diffusers, "_pipe", lambda self, kind: (pipes.append(kind), pipe(self, kind))[1])
    out = tmp_path / "bare"
    out.mkdir()
    settings = drawn_by(folders)
    found = bench.run(settings, dataset=dataset, policy=None, out=out)
    requests = bench.spread(load_requests(dataset, "bench"), 2)
    assert set(pipes) == {TEXT}
    rows = list(read_jsonl(out / "blocks" / "00000.jsonl", Trajectory))
    assert [t.program and t.program.gen_prompt for t in rows] == [r.question for r in requests]
    for t in rows:
        assert t.program
        assert t.reward
        assert t.image
        assert not t.program.reference_images
        assert (t.policy_hash, t.reward.sufficiency, t.reward.total) == ("none", None, 0.6)
        assert (out / t.image).is_file()
        assert "missing" not in t.reward.diagnostics
    asked = [json.dumps(b["messages"]) for b in bodies(judge)]
    assert len(asked) == 2, "pictures only"
    assert all("Image 1, the generated picture" in a for a in asked)
    assert found["summary"]["all"]["overall"] == 0.6
    assert found["sampling"]["missing_rewards"] == 0
    again = bench.run(settings, dataset=dataset, policy=None, out=out)
    assert again["summary"] == found["summary"]
    assert len(bodies(judge)) == 2


def test_a_judge_that_fails_leaves_the_request_missing_with_its_reason(
    judge: Server, dataset: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    judge.script[PATH] = [thinking(lambda messages: {**VERDICT, "faithfulness": 0.7})]
    found = bench.run(drawn_by(folders), dataset=dataset, policy=None, out=tmp_path)
    assert (found["summary"]["all"]["judged"], found["summary"]["all"]["missing"]) == (0, 2)
    for t in read_jsonl(tmp_path / "blocks" / "00000.jsonl", Trajectory):
        assert t.reward
        assert t.reward.total is None
        assert "gave no score" in t.reward.diagnostics["missing"]


def test_a_generator_or_a_judge_that_cannot_do_this_is_one_sentence(
    dataset: Path, folders: tuple[Path, Path], tmp_path: Path, in_project: Path
) -> None:
    command: list[Any] = [
        "bench",
        "--policy",
        "none",
        "--profile",
        "tiny",
        "--dataset",
        dataset,
        "--out",
        tmp_path / "b",
    ]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert isinstance(done.exception, SettingsError)
    assert "the compositor can show no thing without its reference picture: set render.backend to" in str(
        done.exception
    )
    with pytest.raises(SettingsError, match=r"judge\.model is empty"):
        bench.run(drawn_by(folders, "judge.model=''"), dataset=dataset, policy=None, out=tmp_path)
    with pytest.raises(SettingsError, match="The pixel judge knows the embedded world's pictures of 320 pixels"):
        bench.run(drawn_by(folders, "judge.image=pixels"), dataset=dataset, policy=None, out=tmp_path)
