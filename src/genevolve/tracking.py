"""What happened, remembered by MLflow: one run a cycle, a nested run a stage, traces of the trajectories worth reading.

The policies and their champions are in registry.py; these two alone import MLflow. `python -m genevolve.tracking` creates the
database.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from genevolve import mlflow_view, store
from genevolve.records import Trajectory
from genevolve.registry import PARENT_VARIABLE, Registry, TrackingError, flatten, numbers

FOLDER = Path("mlruns")
SWITCH_VARIABLE = "GENEVOLVE_TRACKING"
"""`off` here means: nothing is remembered."""
_WAITING: list[threading.Thread] = []
"""Each waits until a stage's traces are written, while the cycle goes on: a second at least, even with nothing left to write."""
_AT_WORK: dict[Path, MlflowTracker] = {}
"""By its folder the tracker of the cycle, or the arm, that this process is in. Opening the books again would wait for traces."""


class Tracker(Protocol):
    """What stages and flows may tell. MlflowTracker remembers it; NullTracker does not."""

    def cycle(self, name: str, params: Mapping[str, Any], entry: str = "") -> Any: ...
    def arm(self, name: str, params: Mapping[str, Any]) -> Any: ...
    def stage(
        self,
        name: str,
        params: Mapping[str, Any],
        *,
        status: str,
        began: float,
        ended: float,
        parent: str | None,
        note: str,
    ) -> Any: ...
    def log_metrics(self, metrics: Mapping[str, Any]) -> None: ...
    def log_outcome(self, outcome: str, words: str) -> None: ...
    def log_start(self, name: str, metrics: Mapping[str, float], entry: str = "") -> None: ...
    def log_curve(self, rows: Iterable[Mapping[str, Any]]) -> None: ...
    def log_dataset(self, folder: Path, digest: str, context: str) -> None: ...
    def log_files(self, paths: Iterable[Path], kind: str) -> None: ...
    def log_traces(self, trajectories: Iterable[Trajectory], label: str) -> None: ...
    def register_policy(self, folder: Path, metrics: Mapping[str, Any], cycle: str) -> str: ...
    def promote(self, version: str, line: str = "", reason: str = "", who: str = "") -> None: ...
    def champion(self, line: str = "") -> str | None: ...
    def previous(self, line: str = "") -> str | None: ...
    def moves(self, line: str = "") -> list[dict[str, str]]: ...
    def knows_cycle(self, name: str) -> bool: ...
    def policy_folder(self, version: str) -> Path: ...
    def policies(self) -> list[tuple[str, str, Path]]: ...
    def page(self, path: str) -> str: ...


def tracker(folder: Path = FOLDER) -> Tracker:
    """Return the tracker of a folder, that of the cycle at work here where there is one; a NullTracker where
    $GENEVOLVE_TRACKING is `off`."""
    if os.environ.get(SWITCH_VARIABLE) == "off":
        return NullTracker()
    return _AT_WORK.get(folder.absolute()) or MlflowTracker(folder)


def init_db(folder: Path = FOLDER) -> str:
    """Create tables and experiment if need be, one process at a time, and return the tracking URI.

    Raises TryLaterError where a team's database does not answer, TrackingError where its files are not on this machine.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with store.alone(folder):
        mlflow, name = _mlflow(store.uri(folder)), store.experiment()
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            store.artifacts(folder).mkdir(parents=True, exist_ok=True)
            mlflow.create_experiment(name, artifact_location=str(store.artifacts(folder)))
        elif store.is_shared() and not Path(found.artifact_location).is_dir():
            raise TrackingError(
                f"the files of the experiment '{name}' lie in {found.artifact_location}, which this machine has not: mount "
                f"it there, or name another experiment ({store.EXPERIMENT_NAME})"
            )
        known = found or mlflow.get_experiment_by_name(name)
        for key, value in mlflow_view.experiment_tags().items():
            if known.tags.get(key) != value:
                mlflow.MlflowClient().set_experiment_tag(known.experiment_id, key, value)
    return store.uri(folder)


def experiment(folder: Path = FOLDER) -> tuple[str, str]:
    """Return the experiment's id and the folder of its files."""
    found = _mlflow(init_db(folder)).get_experiment_by_name(store.experiment())
    return str(found.experiment_id), str(found.artifact_location).removeprefix("file://")


def _mlflow(uri: str) -> Any:
    import logging

    # Spans are written 5 at a time otherwise, a transaction each.
    os.environ.setdefault("MLFLOW_ASYNC_TRACE_LOGGING_MAX_SPAN_BATCH_SIZE", "512")
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)  # the migrations' diary is for nobody here
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # It writes a page of traces for every error that it also raises; what is raised is told by whoever catches it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("mlflow.tracing.export.async_export_queue").setLevel(logging.WARNING)  # "Flushing ..." at the end
    return mlflow


class MlflowTracker(Registry):
    """Remembers in FOLDER/mlflow.db with artifacts in FOLDER/artifacts, or in a team's PostgreSQL (store.py)."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder.absolute()
        self._mlflow = _mlflow(init_db(folder))
        self._client = self._mlflow.MlflowClient()
        self._experiment = self._mlflow.get_experiment_by_name(store.experiment()).experiment_id
        self._model = store.model()
        self._mlflow.set_experiment(experiment_id=self._experiment)  # traces go by it, not by the run

    @contextmanager
    def cycle(self, name: str, params: Mapping[str, Any], entry: str = "") -> Iterator[None]:
        """One run a cycle; the same again when the cycle goes on after a crash. Stages below find it, in any process.

        `entry` is the digest of what the ledger says of the cycle. In a team's books two ledgers may both have a c002:
        TrackingError for the second one's.
        """
        with self._lasting(name, params, "cycle", None, entry):
            yield

    @contextmanager
    def arm(self, name: str, params: Mapping[str, Any]) -> Iterator[None]:
        """One run an arm and seed of an ablation, nested in the ablation's run, which `cycle` opened in any process; the
        same again when it goes on. Stages below are nested in it."""
        with self._lasting(name, params, "arm", os.environ.get(PARENT_VARIABLE)):
            yield

    @contextmanager
    def _lasting(
        self, name: str, params: Mapping[str, Any], kind: str, parent: str | None, entry: str = ""
    ) -> Iterator[None]:
        where = f"tags.cycle = '{name}' and tags.kind = '{kind}'"
        found = self._runs(where + (f" and tags.mlflow.parentRunId = '{parent}'" if parent else ""))
        run_id = found[0].info.run_id if found else None
        if store.is_shared() and found and found[0].data.tags.get("entry") != entry:
            raise TrackingError(
                f"{name} in the experiment '{store.experiment()}' is a cycle of another ledger, begun on "
                f"{found[0].data.tags.get('machine')}: work on that ledger (git), or set {store.EXPERIMENT_NAME} to a name "
                "of your own, which has a champion of its own"
            )
        tags = {"cycle": name, "kind": kind, "entry": entry, "machine": _machine()}
        before, outer = os.environ.get(PARENT_VARIABLE), _AT_WORK.get(self._folder)
        with self._open(
            run_id=run_id,
            experiment_id=None if run_id else self._experiment,
            run_name=name,
            nested=parent is not None,
            parent_run_id=None if run_id else parent,
            tags=tags,
        ) as run:
            if run_id is None:
                self._log_params(params)
            os.environ[PARENT_VARIABLE] = run.info.run_id
            _AT_WORK[self._folder] = self
            try:
                yield
            finally:
                _AT_WORK.pop(self._folder)
                if outer is not None:
                    _AT_WORK[self._folder] = outer
                _restore(PARENT_VARIABLE, before)
                while _WAITING:
                    _WAITING.pop().join()

    @contextmanager
    def stage(
        self,
        name: str,
        params: Mapping[str, Any],
        *,
        status: str = "FINISHED",
        began: float | None = None,
        ended: float | None = None,
        parent: str | None = None,
        note: str = "",
    ) -> Iterator[None]:
        """A run of a stage that is over, nested in the run `parent`: MLflow's `status`, when it began and ended (seconds since
        the epoch, default now). The run of the same `note`, if it was begun to be told before."""
        run_id = self._run_of_note(note) or self._stage_run(name, began, parent, note)
        alone = self._mlflow.active_run() is None
        with self._open(run_id=run_id, nested=True):
            self._log_params(params)
            try:
                yield
            finally:
                flush = threading.Thread(target=self._mlflow.flush_trace_async_logging)
                flush.start()
                if alone:
                    flush.join()
                else:
                    _WAITING.append(flush)
        self._client.set_terminated(run_id, status, _milliseconds(ended))

    def _run_of_note(self, note: str) -> str | None:
        found = self._runs(f"tags.note = '{note}'") if note else []  # not one that somebody deleted
        return str(found[0].info.run_id) if found else None

    def _stage_run(self, name: str, began: float | None, parent: str | None, note: str) -> str:
        from mlflow.tracking.context.registry import resolve_tags  # who tells it, with what command, at which commit

        tags = {"stage": name, "kind": "stage", "machine": _machine(), "note": note}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self._experiment, _milliseconds(began), resolve_tags(tags), name)
        return str(run.info.run_id)

    @contextmanager
    def _open(self, **how: Any) -> Iterator[Any]:
        """A run that says in MLflow how it ended. Where that fails too, as on a full disk, the first error is raised."""
        run = self._mlflow.start_run(**how)
        try:
            yield run
        except BaseException:
            with suppress(Exception):
                self._mlflow.end_run("FAILED")
            raise
        self._mlflow.end_run()

    def _runs(self, where: str) -> list[Any]:
        return list(self._client.search_runs([self._experiment], filter_string=where, order_by=["start_time DESC"]))

    def _log_params(self, params: Mapping[str, Any]) -> None:
        flat = list(flatten(params).items())
        for i in range(0, len(flat), 100):  # the store's batch limit
            self._mlflow.log_params({k: str(v)[:6000] for k, v in flat[i : i + 100]})

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Log the numbers among nested values; texts and lists are passed over."""
        self._mlflow.log_metrics(numbers(metrics))

    def log_outcome(self, outcome: str, words: str) -> None:
        """Say in a tag what became of a cycle, and why in the run's description."""
        self._mlflow.set_tags({"outcome": outcome, "mlflow.note.content": words})

    def log_start(self, name: str, metrics: Mapping[str, float], entry: str = "") -> None:
        """Note once, as the run before the first, what the policy scores that a line of cycles begins with.

        It is called inside the run of a cycle, and takes that one's parameters, so that comparing shows no other differences.
        """
        from mlflow.entities import Metric, Param

        found = self._runs(f"tags.cycle = '{name}' and tags.kind = 'cycle' and attributes.status = 'FINISHED'")
        if found:
            return
        cycle = self._client.get_run(self._mlflow.active_run().info.run_id)
        begin = cycle.info.start_time - 1
        tags = {"cycle": name, "kind": "cycle", "entry": entry, "machine": _machine(), "outcome": "start"}
        run_id = self._client.create_run(self._experiment, begin, tags, name).info.run_id
        params = [Param(key, value) for key, value in cycle.data.params.items()]
        for i in range(0, len(params), 100):  # the store's batch limit
            self._client.log_batch(run_id, params=params[i : i + 100])
        self._client.log_batch(run_id, metrics=[Metric(key, value, begin, 0) for key, value in metrics.items()])
        self._client.set_terminated(run_id, end_time=begin)

    def log_curve(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log one point per row and number; a row's `step` is where it stands, else its place in the list."""
        from mlflow.entities import Metric

        points = [
            Metric(key, value, 0, int(row.get("step", i)))
            for i, row in enumerate(rows)
            for key, value in numbers(row).items()
            if key != "step"
        ]
        run_id = self._mlflow.active_run().info.run_id
        for i in range(0, len(points), 1000):
            self._client.log_batch(run_id, metrics=points[i : i + 1000])

    def log_dataset(self, folder: Path, digest: str, context: str) -> None:
        """Say which dataset, by digest, the run reads (`context`: training, evaluation)."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        described: Any = MetaDataset  # MLflow declares it abstract and means it to be used as it is
        source = CodeDatasetSource({"folder": str(folder)})
        self._mlflow.log_input(described(source, name="GenEvolve-Data", digest=digest[:36]), context=context)

    def log_files(self, paths: Iterable[Path], kind: str) -> None:
        """Keep files in the run's artifact folder `kind`: images, pages."""
        for path in paths:
            self._mlflow.log_artifact(str(path), kind)

    def log_traces(self, trajectories: Iterable[Trajectory], label: str) -> None:
        """Write trajectories as traces, a span per turn and per tool call (~9 ms each: not for every rollout)."""
        for trajectory in trajectories:
            self._log_trace(trajectory, label)

    def _log_trace(self, trajectory: Trajectory, label: str) -> None:
        start = self._mlflow.start_span
        with start(name=f"{label} {trajectory.request_id}", span_type="AGENT") as whole:
            whole.set_inputs({"question": trajectory.question})
            whole.set_attributes({"trajectory": trajectory.id, "label": label, "termination": trajectory.termination})
            turns = [m.content for m in trajectory.messages if m.role == "assistant"]
            for number, content in enumerate(turns):
                with start(name=f"turn {number}", span_type="LLM") as turn:
                    turn.set_outputs(content)
                for call in trajectory.tool_calls:
                    if call.turn == number:
                        with start(name=call.name, span_type="TOOL") as tool:
                            tool.set_inputs(call.arguments)
                            tool.set_outputs(call.result if call.ok else "refused")
            reward = trajectory.reward
            whole.set_outputs(
                {
                    "program": trajectory.program.model_dump(mode="json") if trajectory.program else None,
                    "failure": trajectory.failure,
                    "reward": reward.model_dump(mode="json") if reward else None,
                }
            )

    def knows_cycle(self, name: str) -> bool:
        """Return whether a cycle was ever begun in these books."""
        return bool(self._runs(f"tags.cycle = '{name}' and tags.kind = 'cycle'"))

    def page(self, path: str) -> str:
        """Return where MLflow's pages show a file of the cycle's run, below their address; "" outside a cycle."""
        run = os.environ.get(PARENT_VARIABLE)
        return f"/#/experiments/{self._experiment}/runs/{run}/artifacts/{path}" if run else ""


class NullTracker:
    """Remembers nothing."""

    @contextmanager
    def cycle(self, name: str, params: Mapping[str, Any], entry: str = "") -> Iterator[None]:
        yield

    arm = cycle

    @contextmanager
    def stage(self, name: str, params: Mapping[str, Any], **over: Any) -> Iterator[None]:
        yield

    def log_metrics(self, metrics: Mapping[str, Any]) -> None: ...
    def log_outcome(self, outcome: str, words: str) -> None: ...
    def log_start(self, name: str, metrics: Mapping[str, float], entry: str = "") -> None: ...
    def log_curve(self, rows: Iterable[Mapping[str, Any]]) -> None: ...
    def log_dataset(self, folder: Path, digest: str, context: str) -> None: ...
    def log_files(self, paths: Iterable[Path], kind: str) -> None: ...
    def log_traces(self, trajectories: Iterable[Trajectory], label: str) -> None: ...
    def register_policy(self, folder: Path, metrics: Mapping[str, Any], cycle: str) -> str:
        return "0"

    def promote(self, version: str, line: str = "", reason: str = "", who: str = "") -> None: ...
    def champion(self, line: str = "") -> str | None:
        return None

    previous = champion

    def moves(self, line: str = "") -> list[dict[str, str]]:
        return []

    def knows_cycle(self, name: str) -> bool:
        return False

    def policy_folder(self, version: str) -> Path:
        raise TrackingError(f"nothing is remembered here ({SWITCH_VARIABLE}=off), and so no policy '{version}'")

    def policies(self) -> list[tuple[str, str, Path]]:
        return []

    def page(self, path: str) -> str:
        return ""


def _milliseconds(seconds: float | None) -> int:
    return int(1000 * (time.time() if seconds is None else seconds))


def _machine() -> str:
    return f"{socket.gethostname()}:{Path.cwd()}"


def _restore(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value


if __name__ == "__main__":
    init_db()
