"""Where a service is, as the environment says: URL, key, prices and limits. A key shows itself in no text (ours)."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from pydantic import SecretStr

from genevolve.errors import GenEvolveError, SettingsError

OPENAI_KEY = "OPENAI_API_KEY"
"""The vendor's own variable, read where a chat service's GENEVOLVE_NAME_KEY is not set."""


class ServiceError(GenEvolveError):
    """A service will answer nothing more: a wrong key, no credit, an unknown model. It ends the command."""


@dataclass(frozen=True)
class Endpoint:
    """One configured service. Its name is its line in the ledger and the middle of its variables: GENEVOLVE_NAME_URL."""

    name: str
    url: str
    """Base URL without a slash at its end, e.g. https://api.example.org/v1"""
    key: SecretStr | None = None
    header: str = "authorization"
    """Which header carries the key; 'authorization' puts 'Bearer ' before it."""
    concurrency: int = 32
    """Calls of one process under way at the same time."""
    rate: float = 50.0
    """Calls a second, all processes of the machine together; 0: no limit."""
    tokens_per_minute: float = 0.0
    """Tokens a minute, prompt and answer, all processes together; 0: no limit."""
    usd_in: float = 0.0
    """Dollars a million prompt tokens."""
    usd_out: float = 0.0
    """Dollars a million answered tokens."""
    usd_call: float = 0.0
    """Dollars a call, beside its tokens."""

    def variable(self, field: str) -> str:
        return variable(self.name, field)

    @classmethod
    def from_environment(
        cls,
        name: str,
        *,
        url: str = "",
        key: str = "",
        header: str = "authorization",
        concurrency: int = 32,
        rate: float = 50.0,
        usd_call: float = 0.0,
        environment: Mapping[str, str] | None = None,
    ) -> Endpoint:
        """Read GENEVOLVE_{NAME}_URL, _KEY, _CONCURRENCY, _RATE, _TPM, _USD_IN, _USD_OUT and _USD_CALL.

        `url`, `concurrency`, `rate` and `usd_call` are defaults; `key` names the vendor's own variable (OPENAI_API_KEY),
        read where ours is not set.
        Raises SettingsError, one sentence naming the variable, for what is missing or wrong.
        """
        found = {k: v.strip() for k, v in (os.environ if environment is None else environment).items() if v.strip()}
        urls = variable(name, "URL")
        if not (found.get(urls) or url):
            raise SettingsError(
                f"{urls} is not set: it says where the {name} service is, e.g. http://127.0.0.1:8000/v1."
            )
        secret = key_of(found, variable(name, "KEY")) or (key_of(found, key) if key else None)

        def value(field: str, default: float, least: float) -> float:
            return number(found, variable(name, field), least, default)

        return cls(
            name,
            base_url(found.get(urls) or url, urls, secret),
            secret,
            header,
            int(value("CONCURRENCY", concurrency, 1)),
            value("RATE", rate, 0),
            value("TPM", 0, 0),
            value("USD_IN", 0, 0),
            value("USD_OUT", 0, 0),
            value("USD_CALL", usd_call, 0),
        )

    @property
    def free(self) -> bool:
        """Return whether no call costs anything: a server of the user's own."""
        return not (self.usd_in or self.usd_out or self.usd_call)

    @property
    def uncounted(self) -> bool:
        """Return whether calls may cost what no budget hears of: none has a price, and the server is not the user's own."""
        return self.free and not _near(httpx.URL(self.url).host)

    def headers(self) -> dict[str, str]:
        if self.key is None:
            return {}
        text = self.key.get_secret_value()
        return {self.header: f"Bearer {text}" if self.header == "authorization" else text}

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """Return the dollars of one call."""
        return self.usd_call + (tokens_in * self.usd_in + tokens_out * self.usd_out) / 1e6


def variable(name: str, field: str) -> str:
    return f"GENEVOLVE_{name.upper()}_{field}"


def key_of(values: Mapping[str, str], name: str) -> SecretStr | None:
    """Return the key that a variable holds, None where it is empty; raise SettingsError for what cannot be one."""
    key = values.get(name, "").strip()
    if not key:
        return None
    if not re.fullmatch(r"[\x21-\x7e]{1,500}", key):
        raise SettingsError(f"{name} holds spaces or characters that no key has.")
    return SecretStr(key)


def base_url(text: str, name: str, key: SecretStr | None) -> str:
    """Return a checked base URL. A key goes over https, or over http to this machine or a private address."""
    try:
        url = httpx.URL(text.strip().rstrip("/"))
    except httpx.InvalidURL:
        raise SettingsError(f"{name} is not a URL.") from None
    if url.userinfo or url.query or url.fragment or not url.host or url.scheme not in ("http", "https"):
        raise SettingsError(f"{name} must be like https://host/path, without credentials or query.")
    if key is not None and url.scheme == "http" and not _near(url.host):
        raise SettingsError(
            f"{name} must begin with https:// (http:// only on this machine or a private address): the key goes there."
        )
    return str(url)


def _near(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_private and not address.is_unspecified


def number(values: Mapping[str, str], name: str, least: float, default: float | None = None) -> float:
    """Return the number a variable holds, from `least` to 1e9; `default` where it is not set."""
    if name not in values and default is not None:
        return default
    try:
        value = float(values[name])
    except (KeyError, ValueError):
        raise SettingsError(f"{name} must be a number.") from None
    if not least <= value <= 1e9:
        raise SettingsError(f"{name} must be a number from {least:g}.")
    return value
