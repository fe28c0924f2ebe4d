"""`hedgerow trust status` and `refresh`: what nodes believe, and that it is the newest."""

from __future__ import annotations

import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hedgerow.cli.base.console import plural, print_json
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import alert, print_table
from hedgerow.cli.trust.options import Where, Work, on_repository

if TYPE_CHECKING:
    from hedgerow.trust.status import RepositoryStatus


@on_repository
def refresh(work: Work) -> None:
    """Let nodes see what was signed, and that it is the newest.

    Examples:
      hedgerow trust refresh
      hedgerow trust refresh --repository /srv/models --json

    The region's service does this by itself. It needs the online key alone, and does nothing where nothing is due.
    """
    changed = work.there.refresh_timestamp()
    timestamp = work.there.timestamp()
    ends = timestamp.signed.expires if timestamp else None
    if work.json:
        print_json({"changed": changed, "timestamp": timestamp.signed.version if timestamp else None, "expires": ends})
        return
    typer.echo(f"{'Refreshed' if changed else 'Nothing was due'}; nodes believe it until {ends:%Y-%m-%d %H:%M} UTC.")


def status(
    repository: Where = Path("models"),
    explain: Annotated[bool, typer.Option("--explain", help="Say what each role is for.")] = False,
    json: Json = False,
) -> None:
    """Show who may sign what, how long it counts, what is published and what waits.

    Examples:
      hedgerow trust status
      hedgerow trust status --explain
      hedgerow trust status --repository /srv/models --json

    Exits with 1 if nodes refuse something of it.
    """
    from hedgerow.trust.repository import Repository
    from hedgerow.trust.status import read_status

    now = time.time()
    seen = read_status(Repository.open(repository), now)
    if json:
        print_json({**_plain(seen), "problems": seen.problems})
    else:
        if explain:
            print_roles()
        _print_status(seen, now)
    if seen.problems:
        raise typer.Exit(1)


def print_roles() -> None:
    """What each role is for."""
    from hedgerow.trust.roles import EXPLANATIONS

    for role, text in EXPLANATIONS.items():
        first, *rest = textwrap.wrap(text, 98)
        typer.echo(f"{role:<10} {first}")
        for line in rest:
            typer.echo(f"{'':<10} {line}")
    typer.echo()


def _plain(seen: RepositoryStatus) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(seen)


def _print_status(seen: RepositoryStatus, now: float) -> None:
    rows = []
    for role in seen.roles:
        keys = f"{role.threshold} of {', '.join(key.name for key in role.keys)}"
        rows.append((role.role, keys, str(role.version or "-"), _told(role.problem, role.expires_at, now)))
    print_table(("ROLE", "SIGNED BY", ">VERSION", "COUNTS"), rows)
    models = [
        (one.name, one.version, role.role, one.selector or "all nodes", one.digest[:19] + "…")
        for role in seen.roles
        for one in role.published
    ]
    if models:
        typer.echo()
        print_table(("MODEL", "VERSION", "OWNER", "FOR", "DIGEST"), models, names=2, spare=("DIGEST",))
    for waiting in seen.staged:
        typer.echo(
            f"\n{waiting.role} {waiting.version} waits for {plural(waiting.missing, 'signature')} "
            f"of {', '.join(waiting.waits_for)}: hedgerow trust sign --key KEY"
        )
    for role_name in seen.unseen:
        typer.echo(
            f"\nNodes do not see yet what {role_name} has signed: hedgerow trust refresh, where the online key is."
        )


def _told(problem: str | None, expires_at: float | None, now: float) -> str:
    if problem:
        return alert(problem)
    if expires_at is None:
        return "signed nothing yet"
    return (
        f"until {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d}, {plural(int((expires_at - now) // 86_400), 'day')}"
    )
