"""`genevolve status` on a machine where nothing ever ran, where everything runs, and where things are wrong."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from genevolve.operations import addresses
from genevolve.operations.daemons import ServeError
from genevolve.operations.journal import lock_file, night, skipped
from genevolve.operations.status import status
from genevolve.registry import MOVE
from genevolve.tracking import MlflowTracker
from tests.flows import toys

Answers = Callable[[str, Any], Any]


@contextmanager
def server(answers: Answers) -> Iterator[str]:
    """A real HTTP server on a free port; `answers` gets path and body, and returns a value for JSON, or None for 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "null")
            value = answers(self.path, body)
            data = (
                value.encode() if isinstance(value, str) and value.startswith("plain:") else json.dumps(value).encode()
            )
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write(data.removeprefix(b"plain:"))

        do_GET = do_POST

        def log_message(self, *args: object) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def prefect(**changes: Any) -> Answers:
    """What Prefect 3.8 answers to what `status` asks; `changes` replace single answers."""
    deployment = {
        "id": "d1",
        "paused": False,
        "work_pool_name": "default-process-pool",
        "schedules": [{"active": True}],
    }
    plain = {
        "health": True,
        "version": "3.8.8",
        "deployment": deployment,
        "workers": [{"name": "w"}],
        "gpu_workers": [],
        "runs": [{"expected_start_time": "2031-05-06T02:00:00Z"}],
    } | changes

    def answer(path: str, body: Any) -> Any:
        if path == "/api/flow_runs/filter":
            assert body["deployments"]["id"]["any_"] == ["d1"]
            assert body["flow_runs"]["state"]["type"]["any_"] == ["SCHEDULED"]
        return {
            "/api/health": plain["health"],
            "/api/admin/version": plain["version"],
            "/api/deployments/name/evolution-cycle/nightly": plain["deployment"],
            "/api/deployments/name/gpu-stage/gpu-stage": {"work_pool_name": "gpu-process-pool"},
            "/api/work_pools/default-process-pool/workers/filter": plain["workers"],
            "/api/work_pools/gpu-process-pool/workers/filter": plain["gpu_workers"],
            "/api/flow_runs/filter": plain["runs"],
        }.get(path)

    return answer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("GENEVOLVE_PREFECT_PORT", "1")  # nobody answers there
    monkeypatch.setenv("GENEVOLVE_MLFLOW_PORT", "1")
    return tmp_path


def lines(line: str = "") -> dict[str, str]:
    found = status(line)
    assert len(found) <= 10
    return {text[:12].strip(): text[13:] for text in found if text[:12].strip()}


def test_where_nothing_ever_ran_it_says_so_and_leaves_nothing(folder: Path) -> None:
    said = lines()
    assert said["champion"] == "none: no cycle has run here"
    assert said["last nights"] == "none"
    assert said["now"] == "nothing is running"
    assert said["next run"].startswith("none: no Prefect server answers at http://127.0.0.1:1/api")
    assert said["servers"] == "Prefect down, MLflow down"
    assert said["needs you"] == "`make serve`, or no night will run"
    assert "GB free" in said["disk"]
    assert list(folder.iterdir()) == []


def test_nights_next_run_and_paid_calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genevolve.services.cache import CallCache

    ledger = CallCache(folder / ".cache" / "web" / "calls.sqlite")
    for number, cost in enumerate((0.25, 0.5)):
        ledger.put("kscore", "judge", {"n": number}, 1, seconds=1, cost=cost)
    ledger.get("kscore", "judge", {"n": 0})
    for number in range(4):
        with night("") as numbers:
            ends = {"promoted": number == 3, "after": 0.8 + number / 100, "diff": 0.01, "ci": [-0.01, 0.03]}
            numbers.update({"cycle": f"c00{number}", **ends})
    with server(prefect()) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        text = status()
        said = lines()
    assert len(text) == 10
    assert "c003 promoted: KScore 0.8300, +0.0100 [-0.0100, +0.0300], 0 min" in said["last nights"]
    assert "c001 not promoted" in text[3]
    assert "(evolution-cycle/nightly)" in said["next run"]
    expected = datetime(2031, 5, 6, 2, tzinfo=UTC).astimezone()
    assert said["next run"].startswith(f"{expected:%Y-%m-%d %H:%M}")
    assert said["needs you"] == "nothing"
    assert said["paid calls"] == "2 made, 1 from the cache, $0.75"


@pytest.mark.parametrize(
    ("changes", "next_run", "todo"),
    [
        ({"deployment": None}, "evolution-cycle/nightly is not deployed", "`make deploy`, or no night will run"),
        (
            {"deployment": {"id": "d1", "paused": True, "work_pool_name": "p", "schedules": [{"active": True}]}},
            "the schedule of evolution-cycle/nightly is off",
            "the schedule of evolution-cycle/nightly is off",
        ),
        ({"workers": []}, "(evolution-cycle/nightly)", "no worker serves the pool default-process-pool: `make serve`"),
        ({"runs": []}, "not planned yet", "nothing"),
    ],
)
def test_what_keeps_the_next_night_from_running_is_named(
    changes: dict[str, Any], next_run: str, todo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(prefect(**changes)) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        said = lines()
    assert next_run in said["next run"]
    assert todo in said["needs you"]


def test_nights_that_hand_their_training_over_need_a_worker_of_the_gpu_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    schedules = [{"active": True}]
    handing = {
        "id": "d1",
        "work_pool_name": "default-process-pool",
        "schedules": schedules,
        "parameters": {"gpu": True},
    }
    found = []
    for workers in ([], [{"name": "w"}]):
        with server(prefect(deployment=handing, gpu_workers=workers)) as address:
            monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
            found.append(lines()["needs you"])
    assert (
        "pool gpu-process-pool, which no worker serves: `make serve POOL=gpu-process-pool` on the GPU machine"
        in found[0]
    )
    assert found[1] == "nothing"


@pytest.mark.faults
def test_a_failed_night_a_cut_off_one_and_a_full_disk_need_somebody(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genevolve.operations import status as module

    with pytest.raises(OSError, match="no judge"), night("tiny"):
        raise OSError("no judge")
    lock_file("tiny").write_text('{"pid": 1, "began": "2026-11-23T02:00:00Z"}')
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "mlflow.db").write_text("this is no database")
    monkeypatch.setattr(module, "NEEDED_GB", 10**9)
    said = lines("tiny")
    assert "failed: no judge" in said["last nights"]
    assert "was cut off" in said["now"]
    assert said["champion"].startswith("unknown: mlruns/mlflow.db cannot be read")
    unread = "see that mlruns/mlflow.db can be read, or no night will run"
    for part in ("the last night failed;", "a cycle was cut off", "make room", "`make serve`", unread):
        assert part in said["needs you"]


def test_a_failed_night_stays_to_be_mended_while_nights_are_skipped_and_until_one_has_run() -> None:
    with pytest.raises(OSError, match="no judge"), night(""):
        raise OSError("no judge")
    for _ in range(4):  # more than are shown
        skipped("", "it began 200 minutes late")
    said = lines()["needs you"]
    assert re.search(r"the last night failed \(\d{4}-\d\d-\d\d \d\d:\d\d: no judge\), and none has run since;", said)
    with night(""):
        pass
    assert "failed" not in lines()["needs you"]


def test_the_champions_score_since_when_it_is_champion_and_what_lies_on_the_disk(folder: Path) -> None:
    toys.empty_database(folder / "mlruns")
    (folder / "policy").mkdir()
    (folder / "policy" / "w").write_text("weights")
    track = MlflowTracker()
    assert lines()["champion"] == "none yet: no policy has passed the gate"
    for cycle, kscore in (("c001", 0.81), ("c002", 0.832)):
        with track.cycle(cycle, {}, cycle):
            version = track.register_policy(folder / "policy", {"after": kscore}, cycle)
        track.promote(version, reason="better")
    track._client.set_registered_model_tag(  # of the year before: the moves of this test are a moment apart
        track._model, f"{MOVE}0", json.dumps({"line": "", "time": "2025-01-02T03:04:05+00:00", "to": "c001"})
    )
    since = datetime.fromisoformat(track.moves()[-1]["time"]).astimezone()
    assert since.year > 2025
    cache = folder / ".dvc" / "cache" / "files"
    cache.mkdir(parents=True)
    with (cache / "object").open("wb") as sparse:
        sparse.truncate(3 * 2**29)
    said = lines()
    assert said["champion"] == f"c002, KScore 0.8320 on the report half, since {since:%Y-%m-%d %H:%M}"
    assert said["disk"].endswith("GB free; here, in GB: .dvc/cache 1.5, mlruns 0.0")


def test_a_running_cycle_is_seen() -> None:
    with night(""):
        assert lines()["now"].startswith("a cycle is running since ")


def test_who_answers_is_found_out_and_a_stranger_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(prefect()) as address:
        assert addresses.prefect_version(f"{address}/api") == "3.8.8"
        assert addresses.mlflow_version(address) is None
    with server(lambda path, _: {"/health": "plain:OK", "/version": "plain:3.17.2"}.get(path)) as address:
        assert addresses.mlflow_version(address) == "3.17.2"
        assert addresses.prefect_version(f"{address}/api") is None
        assert not addresses.mlflow_is_ours(address, str(folder / "mlruns" / "artifacts"))
        with pytest.raises(
            ServeError, match=r"port \d+ is taken by something that is not a Prefect server; free it, or"
        ):
            addresses.refuse_stranger(address, "a Prefect server", addresses.PREFECT_PORT)
    addresses.refuse_stranger(address, "a Prefect server", addresses.PREFECT_PORT)  # it is gone
    experiment = {"experiment": {"artifact_location": str(folder / "mlruns" / "artifacts")}}
    with server(lambda path, _: experiment if "get-by-name" in path else None) as address:
        assert addresses.mlflow_is_ours(address, str(folder / "mlruns" / "artifacts"))


def test_a_port_that_is_none_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENEVOLVE_PREFECT_PORT", "seventy")
    with pytest.raises(Exception, match="GENEVOLVE_PREFECT_PORT is 'seventy': a port is a number"):
        addresses.prefect_api()
