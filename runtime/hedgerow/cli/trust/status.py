"""`hedgerow trust status` and `refresh`: roles, expiry and published models, and a new timestamp for nodes."""

from __future__ import annotations

import textwrap
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hedgerow.cli.base.console import echo, plural, print_json
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import alert, print_table
from hedgerow.cli.trust.options import RepositoryFolder, RepositoryOptions, on_repository

if TYPE_CHECKING:
    from hedgerow.trust.status import RepositoryStatus


@on_repository
def refresh(options: RepositoryOptions) -> None:
    """Sign the timestamp again, so that nodes see new metadata and know it is current.

    Examples:
      hedgerow trust refresh
      hedgerow trust refresh --repository /srv/models --json

    The region's service does this by itself. It needs only the online key, and does nothing if nothing is due.
    """
    changed = options.repository.refresh_timestamp()
    timestamp = options.repository.timestamp()
    expires = timestamp.signed.expires if timestamp else None
    if options.json:
        version = timestamp.signed.version if timestamp else None
        print_json({"changed": changed, "timestamp": version, "expires": expires})
        return
    echo(f"{'Refreshed' if changed else 'Nothing was due'}; valid for nodes until {expires:%Y-%m-%d %H:%M} UTC.")


def status(
    repository: RepositoryFolder = Path("models"),
    explain: Annotated[bool, typer.Option("--explain", help="Explain the roles.")] = False,
    json: Json = False,
) -> None:
    """Show roles and their keys, when metadata expires, published models, and changes that wait for signatures.

    Examples:
      hedgerow trust status
      hedgerow trust status --explain
      hedgerow trust status --repository /srv/models --json

    Exits with 1 if nodes refuse any of its metadata.
    """
    from hedgerow.trust.repository import Repository
    from hedgerow.trust.status import read_status

    now = time.time()
    current = read_status(Repository.open(repository), now)
    if json:
        print_json({**asdict(current), "problems": current.problems})
    else:
        if explain:
            print_roles()
        _print_status(current, now)
    if current.problems:
        raise typer.Exit(1)


def print_roles() -> None:
    """Print what each role is for."""
    from hedgerow.trust.roles import EXPLANATIONS

    for role, text in EXPLANATIONS.items():
        first, *rest = textwrap.wrap(text, 98)
        echo(f"{role:<10} {first}")
        for line in rest:
            echo(f"{'':<10} {line}")
    echo()


def _print_status(current: RepositoryStatus, now: float) -> None:
    rows = []
    for role in current.roles:
        keys = f"{role.threshold} of {', '.join(key.name for key in role.keys)}"
        rows.append((role.role, keys, str(role.version or "-"), _validity(role.problem, role.expires_at, now)))
    print_table(("ROLE", "SIGNED BY", ">VERSION", "VALID"), rows)
    models = [
        (one.name, one.version, role.role, one.selector or "all nodes", one.digest[:19] + "…")
        for role in current.roles
        for one in role.published
    ]
    pipelines = [
        (one.name, one.version, role.role, one.selector or "all nodes", one.digest[:19] + "…")
        for role in current.roles
        for one in role.published_pipelines
    ]
    for what, published in (("MODEL", models), ("PIPELINES", pipelines)):
        if published:
            echo()
            print_table((what, "VERSION", "OWNER", "FOR", "DIGEST"), published, names=2, omit_first=("DIGEST",))
    for change in current.staged:
        echo(
            f"\n{change.role} {change.version} waits for {plural(change.missing, 'signature')} "
            f"from {', '.join(change.waits_for)}: hedgerow trust sign --key KEY"
        )
    for role_name in current.unseen:
        echo(
            f"\nNodes do not see the newest metadata of {role_name} yet. "
            "Where the online key is, run: hedgerow trust refresh"
        )


def _validity(problem: str | None, expires_at: float | None, now: float) -> str:
    if problem:
        return alert(problem)
    if expires_at is None:
        return "nothing signed yet"
    return (
        f"until {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d}, {plural(int((expires_at - now) // 86_400), 'day')}"
    )
