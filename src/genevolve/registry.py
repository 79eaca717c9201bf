"""MLflow's registry: a version a policy, two aliases a line of cycles, and a log of who moved them and why.

Also what it shares with tracking.py: how numbers and the cycle's run are named.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genevolve.errors import GenEvolveError
from genevolve.workspace import folder_digest

CHAMPION = "champion"
PREVIOUS = "previous"
MOVE = "moved."
"""Begins the names of the registered model's tags that log a move of a champion, each a JSON object."""
PARENT_VARIABLE = "GENEVOLVE_MLFLOW_RUN"
"""Environment variable that hands the cycle's run to stages in other processes."""


class TrackingError(GenEvolveError):
    """MLflow's database or registry lacks what was asked for."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among flattened values, as floats, under names that MLflow takes."""
    flat = {re.sub(r"[^\w.: /-]", "_", k): v for k, v in flatten(values).items()}
    return {k: float(v) for k, v in flat.items() if isinstance(v, int | float) and v == v and abs(v) != float("inf")}


class Registry:
    """The registered policies: the half of MlflowTracker (tracking.py), which opens the books, that knows of champions."""

    _mlflow: Any
    _client: Any
    _model: str

    def register_policy(self, folder: Path, metrics: Mapping[str, Any], cycle: str) -> str:
        """Register a policy folder as a version of `genevolve-policy`; the same bytes of the same cycle: the same version."""
        from mlflow.exceptions import MlflowException

        digest = folder_digest(folder)
        try:
            self._client.create_registered_model(self._model)
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for known in self._client.search_model_versions(f"name = '{self._model}'"):
            if known.tags.get("digest") == digest and known.tags.get("cycle") == cycle:
                return str(known.version)
        active = self._mlflow.active_run()
        run_id = active.info.run_id if active else os.environ.get(PARENT_VARIABLE)
        if run_id is None:
            raise TrackingError("a policy can be registered only inside a cycle's run")
        where = f"policy-{digest[:12]}"
        self._client.log_artifacts(run_id, str(folder), where)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{where}"
        tags = {"digest": digest, "cycle": cycle} | {f"score.{k}": f"{v:.6g}" for k, v in numbers(metrics).items()}
        return str(self._client.create_model_version(self._model, source=source, run_id=run_id, tags=tags).version)

    def promote(self, version: str, line: str = "", reason: str = "", who: str = "") -> None:
        """Move the alias `champion` to a version, and `previous` to the champion it takes the place of; log the move.

        A private line of cycles ("tiny") has its own two aliases, `champion-tiny` and `previous-tiny`. `who` defaults to
        the user of this process. A version that is champion already moves nothing, but its move is logged where a kill
        came between the two.
        """
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_model_version(self._model, version)
        except MlflowException as e:
            _raise_unless_absent(e)
            raise TrackingError(f"there is no version {version} of {self._model}") from e
        if not Path(found.source).is_dir():
            raise TrackingError(f"version {version} cannot be champion: its folder {found.source} is gone")
        before, earlier = self._alias(_alias(CHAMPION, line)), self.previous(line)
        same = before is not None and str(before.version) == version
        if same and [move["version"] for move in self.moves(line)][-1:] == [version]:
            return
        if before is not None and not same:
            self._client.set_registered_model_alias(self._model, _alias(PREVIOUS, line), before.version)
        self._client.set_registered_model_alias(self._model, _alias(CHAMPION, line), version)
        move = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": who or _user(),
            "reason": reason[:1000],
            "line": line,
            "version": version,
            "from": "" if before is None else (earlier or "") if same else str(before.tags.get("cycle", "")),
            "to": str(found.tags.get("cycle", "")),
        }
        key = f"{MOVE}{move['time'].replace(':', '-').replace('+', '_')}.{uuid.uuid4().hex[:6]}"
        self._client.set_registered_model_tag(self._model, key, json.dumps(move))

    def rollback(self, line: str = "", reason: str = "", who: str = "") -> str:
        """Move `champion` back to `previous` and return that version; TrackingError where there is none."""
        before = self._alias(_alias(PREVIOUS, line))
        if before is None:
            raise TrackingError("no policy was champion before this one")
        self.promote(str(before.version), line, reason, who)
        return str(before.version)

    def champion(self, line: str = "") -> str | None:
        """Return the title of the champion's cycle, None before the first promotion."""
        found = self._alias(_alias(CHAMPION, line))
        return None if found is None else str(found.tags.get("cycle", ""))

    def previous(self, line: str = "") -> str | None:
        """Return the title of the cycle that was champion before, None where none was."""
        found = self._alias(_alias(PREVIOUS, line))
        return None if found is None else str(found.tags.get("cycle", ""))

    def moves(self, line: str = "") -> list[dict[str, str]]:
        """Return all moves of a line's champion, the oldest first: time (UTC), who, reason, version, from, to (cycles)."""
        from mlflow.exceptions import MlflowException

        try:
            tags = self._client.get_registered_model(self._model).tags
        except MlflowException as e:
            _raise_unless_absent(e)
            return []
        rows = [json.loads(value) for key, value in sorted(tags.items()) if key.startswith(MOVE)]
        return [row for row in rows if row["line"] == line]

    def version_of(self, title: str) -> str:
        """Return the newest registered version of a cycle's policy; TrackingError where there is none."""
        found = [int(version) for version, cycle, _ in self.policies() if cycle == title]
        if not found:
            raise TrackingError(f"no policy of {title} is registered; a cycle registers its own at its end")
        return str(max(found))

    def policies(self) -> list[tuple[str, str, Path]]:
        """Return (version, title of its cycle, folder) of all registered policies; a folder may be gone."""
        found = self._client.search_model_versions(f"name = '{self._model}'", max_results=10_000)
        return [(str(v.version), str(v.tags.get("cycle", "")), Path(v.source)) for v in found]

    def champion_score(self, line: str = "") -> float | None:
        """Return the champion's KScore on the report half, as registered; None without a champion or its score."""
        found = self._alias(_alias(CHAMPION, line))
        score = None if found is None else found.tags.get("score.after")
        return None if score is None else float(score)

    def policy_folder(self, version: str = CHAMPION) -> Path:
        """Return the folder of a registered policy, by version number or alias; TrackingError where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            if version.isdigit():
                found = self._client.get_model_version(self._model, version)
            else:
                found = self._client.get_model_version_by_alias(self._model, version)
        except MlflowException as e:
            _raise_unless_absent(e)
            raise TrackingError(f"no policy '{version}' is registered; `genevolve evolve` registers one a cycle") from e
        folder = Path(found.source)
        if not folder.is_dir():
            raise TrackingError(f"policy '{version}' is registered, but its folder {folder} is gone")
        return folder

    def _alias(self, alias: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version_by_alias(self._model, alias)
        except MlflowException as e:
            _raise_unless_absent(e)
            return None


def _raise_unless_absent(error: Any) -> None:
    """Raise MLflow's error again unless it says that there is no such thing: a locked database is not an empty registry."""
    if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        raise error


def _alias(alias: str, line: str) -> str:
    return f"{alias}-{line}" if line else alias


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
