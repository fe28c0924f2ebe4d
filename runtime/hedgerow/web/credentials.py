"""Credentials for one web server, read again for each use."""

from __future__ import annotations

import base64
from pathlib import Path

import orjson

from hedgerow.errors import ConfigError, keep_secret


def authorization_from(file: Path | None, host: str) -> str:
    """Return the value of the `Authorization` header; "": none.

    Args:
        file: `USER:PASSWORD`, a token, or Docker's `config.json`.
        host: HOST[:PORT] of the server, for Docker's file.
    Raises: ConfigError: the file cannot be read.
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
    return f"Basic {base64.b64encode(line.encode()).decode()}" if ":" in line else f"Bearer {line}" if line else ""
