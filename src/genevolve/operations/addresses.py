"""Where Prefect and MLflow answer on this machine, and who it is that answers there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from genevolve.errors import SettingsError
from genevolve.operations.daemons import MLFLOW, SERVER, ServeError, State

HOST = "127.0.0.1"
PREFECT_PORT, MLFLOW_PORT = "GENEVOLVE_PREFECT_PORT", "GENEVOLVE_MLFLOW_PORT"
API = "PREFECT_API_URL"


def prefect_api() -> str:
    """Return $PREFECT_API_URL, else the address on this machine that `make serve` uses or has used."""
    return os.environ.get(API) or _address(SERVER, PREFECT_PORT, 4200, "/api")


def prefect_is_elsewhere() -> bool:
    """Return whether $PREFECT_API_URL names a server that is not for us to start."""
    return (urlsplit(os.environ.get(API) or "").hostname or HOST) not in (HOST, "localhost", "::1")


def mlflow_ui() -> str:
    """Return the address of MLflow's pages on this machine."""
    return _address(MLFLOW, MLFLOW_PORT, 5000)


def _address(name: str, variable: str, default: int, path: str = "") -> str:
    if variable not in os.environ and (daemon := State.read().alive(name)) is not None:
        return daemon.url
    return f"http://{HOST}:{_port(variable, default)}{path}"


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not (text.isdigit() and 0 < int(text) < 65536):
        raise SettingsError(f"{variable} is {text!r}: a port is a number from 1 to 65535")
    return int(text)


def listens(url: str) -> bool:
    """Return whether anything takes connections at a URL's host and port."""
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or HOST, parts.port or 80), timeout=2):
            return True
    except OSError:
        return False


def prefect_version(api: str) -> str | None:
    """Return the version of the Prefect server at `api`; None where nothing, or something else, answers."""
    said = call(f"{api}/admin/version")
    return said if isinstance(said, str) and call(f"{api}/health") is True else None


def mlflow_version(url: str) -> str | None:
    """Return the version of the MLflow server at `url`; None where nothing, or something else, answers."""
    version = text(f"{url}/version")
    return version if version and text(f"{url}/health") == "OK" else None


def mlflow_is_ours(url: str, place: str) -> bool:
    """Return whether the MLflow server at `url` shows our experiment, the one whose files lie in `place`."""
    from genevolve.store import experiment

    found = call(f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={experiment()}")
    there = found.get("experiment", {}).get("artifact_location", "") if isinstance(found, dict) else ""
    return str(there).removeprefix("file://") == place


def refuse_stranger(url: str, what: str, variable: str) -> None:
    """Raise ServeError when a port is taken by something that is not `what`."""
    if listens(url):
        port = urlsplit(url).port
        raise ServeError(f"port {port} is taken by something that is not {what}; free it, or set {variable} to another")


def text(url: str, seconds: float = 3.0) -> str | None:
    """Return what a GET answers, stripped; None for any failure."""
    import httpx

    try:
        answer = httpx.get(url, timeout=seconds, trust_env=False, headers=_login(url))
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
        return None
    return answer.text[:10_000].strip() if answer.status_code == 200 else None


def call(url: str, body: Mapping[str, Any] | None = None, seconds: float = 5.0) -> Any:
    """Return the JSON that a GET, or with `body` a POST, answers; None for any failure."""
    import httpx

    try:
        if body is None:
            answer = httpx.get(url, timeout=seconds, trust_env=False, headers=_login(url))
        else:
            answer = httpx.post(url, json=body, timeout=seconds, trust_env=False, headers=_login(url))
        return answer.json() if answer.is_success else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None


def _login(url: str) -> dict[str, str]:
    """Return the headers that a Prefect server behind a login asks for, for that server alone."""
    import base64

    if not url.startswith(prefect_api()):
        return {}
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if pair := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
