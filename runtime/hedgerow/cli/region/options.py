"""Options shared by verbs that read a region's store or send requests to its service."""

from __future__ import annotations

import os
import pwd
import re
import socket
import sys
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hedgerow.cli.base.options import As, Json, StoreConfig, StoreUrl, Why, with_options
from hedgerow.errors import ConfigError
from hedgerow.terminal import supports_redraw

if TYPE_CHECKING:
    from hedgerow.region.config import RegionConfig
    from hedgerow.region.store.database.database import Database

_CONFIG: Final = Path("region.yaml")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class StoreOptions(NamedTuple):
    """Location of a region's store.

    Attributes:
        url: URL of the store; None: see `config`.
        config: the region's configuration, which names the store; None: region.yaml.
        json: whether to print JSON.
    """

    url: str | None
    config: Path | None
    json: bool

    def open(self) -> closing[Database]:
        """Open the store for reading. Raises: ConfigError, StoreError: see `open_store`."""
        return closing(open_store(self.url, self.config))


class ServiceOptions(NamedTuple):
    """Location of a region's store, and the audit log's fields for a request to its service.

    Attributes:
        why: reason of the request.
        who: its author, by the operating system.
        claims: another name that the author gives; "" for none.
    """

    store: StoreOptions
    why: str
    who: str
    claims: str

    def request(self, verb: str, args: dict[str, Any]) -> Any:
        """Send a request to the service and return its reply.

        Raises: CommandError: it refuses, or does not reply.
        """
        from hedgerow.region.rollouts.requests import send_request

        with closing(open_store(self.store.url, self.store.config, requests=True)) as database, _waiting():
            return send_request(database, verb, args, who=self.who, why=self.why, claims=self.claims)


def _store_options(store: StoreUrl = None, config: StoreConfig = None, json: Json = False) -> StoreOptions:
    return StoreOptions(store, config, json)


def _service_options(
    why: Why = "", as_: As = None, store: StoreUrl = None, config: StoreConfig = None, json: Json = False
) -> ServiceOptions:
    return ServiceOptions(StoreOptions(store, config, json), why, operating_user(), as_ or "")


on_store = with_options(_store_options)
"""Adds the options that locate the store."""

on_service = with_options(_service_options)
"""Adds the options that locate the store, and the author and reason of a request."""


def open_store(store: str | None, config: Path | None, *, requests: bool = False) -> Database:
    """Open the store named by --store, by a configuration file, or by region.yaml in the current folder.

    Args:
        requests: also allow requests to the service, which are rows in the store.
    Raises:
        ConfigError: no store is named, or the file is invalid.
        StoreError: the store cannot be read.
    """
    from hedgerow.region.store.database.open import open_database

    if store is None:
        store = region_config(config, "No store is named, and there").store.url
    return open_database(store, write=False, alongside=requests)


def region_config(config: Path | None, without: str = "There") -> RegionConfig:
    """Read the region's configuration: the named file, or region.yaml in the current folder.

    Args:
        without: begins the error if there is none.
    Raises: ConfigError: there is none, or it is invalid.
    """
    from hedgerow.region.config import load

    if config is None and not _CONFIG.exists():
        raise ConfigError(f"{without} is no {_CONFIG} here", remedy="Use --store STORE or --config FILE.")
    return load(config or _CONFIG)


def _waiting() -> AbstractContextManager[object]:
    """Show on a terminal that the command is waiting for a reply."""
    if not supports_redraw(sys.stderr):
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("Waiting for the region's service…")


def operating_user() -> str:
    """Return the user of this process; not from the environment, where anyone can write anything."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def author(entry: dict[str, Any]) -> str:
    """Format who did something, with what they claim marked as such."""
    claims = entry.get("claims")
    return f"{entry['who']} (claims {claims})" if claims else str(entry["who"])


def short_ref(ref: dict[str, Any] | None) -> str:
    """Format a model version with a shortened digest; None is a model that is withdrawn."""
    if ref is None:
        return "none"
    return f"{ref['name']} {ref['version']} ({short_digest(ref['digest'])})"


def short_digest(digest: str) -> str:
    """Shorten a digest to 12 hexadecimal digits."""
    return digest.removeprefix("sha256:")[:12]


def parse_time(text: str | None, now: float) -> float | None:
    """Parse a time, such as `15m` (ago) or 2026-11-23T08:00Z, into Unix seconds. Raises: ConfigError: it is invalid."""
    if text is None:
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip()):
        return now - float(match[1]) * _UNITS[match[2]]
    try:
        at = datetime.fromisoformat(text.strip())
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{text!r} is not a time", remedy="Use 90s, 15m, 1h or 7d (ago), or 2026-11-23 or 2026-11-23T08:00Z."
        ) from error
