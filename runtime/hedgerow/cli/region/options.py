"""What verbs share that look into a region's store, or ask its service for something."""

from __future__ import annotations

import getpass
import socket
import sys
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hedgerow.cli.base.options import As, Json, StoreConfig, StoreUrl, Why, with_options
from hedgerow.errors import ConfigError
from hedgerow.terminal import supports_redraw

if TYPE_CHECKING:
    from hedgerow.region.store.database.database import Database

_CONFIG: Final = Path("region.yaml")


class StoreOptions(NamedTuple):
    """Where a region's store is.

    Attributes:
        url: the store's.
        config: the file that names it, where `url` does not.
        json: whether to answer in JSON.
    """

    url: str | None
    config: Path | None
    json: bool

    def open(self) -> closing[Database]:
        """The store, to be read. Raises: ConfigError, StoreError: see `open_store`."""
        return closing(open_store(self.url, self.config))


class ServiceOptions(NamedTuple):
    """Where a region's store is, and who asks its service, and why.

    Attributes:
        store: where it is.
        why, who: for the audit log.
    """

    store: StoreOptions
    why: str
    who: str

    def ask(self, verb: str, args: dict[str, Any]) -> Any:
        """Ask the service for something, and wait for its answer.

        Raises: CommandError: it refuses, or does not answer.
        """
        from hedgerow.region.rollouts.requests import send_request

        with closing(open_store(self.store.url, self.store.config, to_ask=True)) as database, _waiting():
            return send_request(database, verb, args, who=self.who, why=self.why)


def _store_options(store: StoreUrl = None, config: StoreConfig = None, json: Json = False) -> StoreOptions:
    return StoreOptions(store, config, json)


def _service_options(
    why: Why = "", as_: As = None, store: StoreUrl = None, config: StoreConfig = None, json: Json = False
) -> ServiceOptions:
    return ServiceOptions(StoreOptions(store, config, json), why, as_ or _who())


on_store = with_options(_store_options)
"""Gives a verb the options that say where the store is."""

on_service = with_options(_service_options)
"""Gives a verb the options that say where the store is, who asks, and why."""


def open_store(store: str | None, config: Path | None, *, to_ask: bool = False) -> Database:
    """The store a tool is to read: the option, else that of the file, else that of region.yaml here.

    Args:
        to_ask: whether it is to ask the service for something, which is to write a line into it.
    Raises:
        ConfigError: none is named, or the file is wrong.
        StoreError: it cannot be read.
    """
    from hedgerow.region.config import load
    from hedgerow.region.store.database.open import open_database

    if store is None:
        if config is None and not _CONFIG.exists():
            raise ConfigError(
                f"No store is named, and there is no {_CONFIG} here", remedy="Give --store STORE or --config FILE."
            )
        store = load(config or _CONFIG).store.url
    return open_database(store, write=False, alongside=to_ask)


def _waiting() -> AbstractContextManager[object]:
    """Shows on a terminal that an answer is waited for."""
    if not supports_redraw(sys.stderr):
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("The region's service is asked…")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def short(ref: dict[str, Any]) -> str:
    """A model's version, as people say it."""
    return f"{ref['name']} {ref['version']} ({short_digest(ref['digest'])})"


def short_digest(digest: str) -> str:
    """A digest's beginning, enough to tell it from others."""
    return digest.removeprefix("sha256:")[:12]
