"""What verbs share that ask the region's service for something: who asks, and why."""

from __future__ import annotations

import getpass
import socket
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli.region.region import open_store
from hedgerow.terminal import takes_escapes

Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why; stands in the audit log.")]
As = Annotated[str | None, typer.Option("--as", metavar="WHO", help="Who asks; by default USER@HOST.")]


def ask(verb: str, args: dict[str, Any], why: str, as_: str | None, store: str | None, config: Path | None) -> Any:
    """Ask the service for something, and wait for its answer.

    Raises: CommandError: it refuses, or does not answer.
    """
    from hedgerow.region.rollouts.requests import ask as ask_service

    database = open_store(store, config, to_ask=True)
    try:
        with _waiting():
            return ask_service(database, verb, args, who=as_ or _who(), why=why)
    finally:
        database.close()


def _waiting() -> AbstractContextManager[object]:
    """Shows on a terminal that an answer is waited for."""
    if not takes_escapes(sys.stderr):
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
    return f"{ref['name']} {ref['version']} ({ref['digest'].removeprefix('sha256:')[:12]})"
