"""Is a configured chat service there, and does it know the model? One free question (GET /models), for `genevolve doctor`."""

from __future__ import annotations

from genevolve.services.endpoint import Endpoint

SECONDS = 5.0
MOST_BYTES = 2 * 2**20


def look(endpoint: Endpoint, model: str) -> tuple[bool, str]:
    """Return (whether nothing speaks against a call, what was found in a few words). Never raises, never shows the key."""
    import httpx

    near = httpx.URL(endpoint.url).host in ("localhost", "127.0.0.1", "::1")
    body = bytearray()
    try:
        with (
            httpx.Client(timeout=SECONDS, trust_env=not near) as wire,
            wire.stream("GET", f"{endpoint.url}/models", headers=endpoint.headers()) as got,
        ):
            for chunk in got.iter_bytes():
                body += chunk
                if len(body) > MOST_BYTES:
                    break
    except httpx.HTTPError as e:
        return False, f"does not answer ({type(e).__name__})"
    if got.status_code in (401, 403):
        return False, f"refuses the key (HTTP {got.status_code})"
    if got.status_code != 200:
        return True, f"answers; lists no models (HTTP {got.status_code})"  # not every server has this list
    known = _names(bytes(body))
    if not known or model in known or f"models/{model}" in known:
        return True, "answers" + (", knows the model" if known else ", lists no models")
    return False, f"answers, but its {len(known)} models do not include '{model}'"


def _names(body: bytes) -> set[str]:
    import json

    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return set()
    rows = value.get("data") if isinstance(value, dict) else None
    return {str(r["id"]) for r in rows if isinstance(r, dict) and "id" in r} if isinstance(rows, list) else set()
