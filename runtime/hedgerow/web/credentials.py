"""Credentials for one web server, read again for each use, and tokens that are given for them."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlencode

import orjson

from hedgerow.errors import ConfigError, keep_secret

LONGEST_TOKEN: Final = 64 << 10
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')


class TokenChallenge(NamedTuple):
    """Where a registry says that a token is to be had; see "Token Authentication" of the OCI distribution specification."""

    realm: str
    query: str

    @property
    def url(self) -> str:
        """Where to ask for the token."""
        return f"{self.realm}{'&' if '?' in self.realm else '?'}{self.query}"


def parse_challenge(text: str) -> TokenChallenge | None:
    """Return what a `WWW-Authenticate` header asks for; None: no token."""
    kind, _, rest = text.partition(" ")
    parameters = dict(_PARAMETER.findall(rest))
    if kind.lower() != "bearer" or not parameters.get("realm"):
        return None
    query = urlencode({key: parameters[key] for key in ("service", "scope") if key in parameters})
    return TokenChallenge(parameters["realm"], query)


def parse_token(reply: bytes) -> str:
    """Return the token in a token service's reply; "": there is none that a header can hold."""
    try:
        fields = orjson.loads(reply)
        token = fields.get("token") or fields.get("access_token")
    except (ValueError, AttributeError):
        return ""
    usable = isinstance(token, str) and token.isascii() and token.isprintable() and " " not in token
    return token if usable else ""


def authorization_from(file: Path | None, host: str) -> str:
    """Return the value of the `Authorization` header; "": none.

    Args:
        file: `USER:PASSWORD`, a token, or Docker's `config.json`.
        host: HOST[:PORT] of the server, for Docker's file.
    Raises: ConfigError: the file cannot be read, or what it has is too short.
    """
    if file is None:
        return ""
    try:
        text = file.read_text("utf-8").strip()
        if text.startswith("{"):
            hosts = orjson.loads(text).get("auths", {})
            found = hosts.get(host) or hosts.get(f"https://{host}") or {}
            keep_secret(str(found.get("auth", "")))
            return f"Basic {found['auth']}" if "auth" in found else ""
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} cannot be used: {error}",
            remedy="Put USER:PASSWORD there, a token, or Docker's config.json with `auths`.",
            outside="The credentials file of a model origin cannot be used",
        ) from error
    line = text.partition("\n")[0]
    keep_secret(line)
    keep_secret(line.partition(":")[2])
    return f"Basic {base64.b64encode(line.encode()).decode()}" if ":" in line else f"Bearer {line}" if line else ""
