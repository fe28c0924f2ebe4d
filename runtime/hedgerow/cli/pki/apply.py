"""`hedgerow pki apply`: all certificates that a topology needs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow.cli.base.console import plural, print_json
from hedgerow.cli.base.tables import print_table
from hedgerow.cli.pki.pki import (
    FolderOptions,
    as_json,
    on_folder,
)
from hedgerow.cli.topology.topology import File

if TYPE_CHECKING:
    from hedgerow.pki.provide import Provided
    from hedgerow.topology.certify import Certified

_WOULD: Final = {"issued": "to issue", "renewed": "to renew", "changed": "to change"}


@on_folder
def apply(
    options: FolderOptions,
    file: File,
    init: Annotated[
        bool, typer.Option("--init", help="Make the root and authorities that are missing; needs the root's key.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    days: Annotated[float, typer.Option(help="Days that new certificates count.", min=0.01)] = 30,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", metavar="AUTHORITY", help="Somebody else's, with all it certifies; may be given again."
        ),
    ] = None,
) -> None:
    """See to it that everybody in a topology has a certificate that counts: brokers, bridges, nodes, sensors, people.

    Examples:
      hedgerow pki apply topology.yaml --init --passphrase
      hedgerow pki apply topology.yaml --dry-run
      hedgerow pki apply topology.yaml

    What is missing is issued; what has less than a third of its life left is renewed, for as long as it was made for; a
    broker that is reached otherwise now, or somebody with another role, gets the same key certified anew; all else stays. Run
    it after each change of the topology, and by a timer. Brokers are certified for the host that the topology says, and
    with --init a site's authority may certify no other.

    Where the key of an authority is not in the folder, its certificates are left to whoever has it. Certificates that the
    topology does not name are told and left. Exits with 1 if somebody has none that counts.
    """
    from hedgerow.topology.certify import certify
    from hedgerow.topology.load import load_alone
    from hedgerow.topology.model import REGION_AUTHORITY

    if init and REGION_AUTHORITY in (without or ()):
        raise typer.BadParameter("--init makes the region's authority: leave out --without region")
    topology, folder, pki = load_alone(file), options.folder, options.open()
    done = certify(
        topology,
        pki,
        timedelta(days=days),
        init=init,
        passphrase=options.passphrase(new=not pki.root.exists),
        without=without or (),
        dry_run=dry_run,
    )
    if options.json:
        print_json(_as_json(done, folder, dry_run=dry_run))
    else:
        _print(done, folder, dry_run=dry_run)
        if not dry_run and pki.root.key_file.exists():
            typer.echo(
                f"Take {pki.root.key_file} off this machine, onto two sticks in two drawers: whoever has it is everybody."
            )
    if any(one.did == "failed" for one in done.certificates):
        raise typer.Exit(1)


def _as_json(done: Certified, folder: Path, *, dry_run: bool) -> dict[str, Any]:
    certificates = [
        {
            "name": str(one.who),
            "role": one.role,
            "did": one.did,
            "why": one.why or None,
            "remedy": one.remedy or None,
            "certificate": None if one.entry is None else as_json(one.entry),
        }
        for one in done.certificates
    ]
    return {
        "folder": str(folder),
        "dry_run": dry_run,
        "made": done.made,
        "certificates": certificates,
        "surplus": [as_json(entry) for entry in done.surplus],
        "ending": [as_json(entry) for entry in done.ending],
    }


def _print(done: Certified, folder: Path, *, dry_run: bool) -> None:
    if done.made:
        typer.echo(f"{'To make' if dry_run else 'Made'} {', '.join(done.made)} in {folder}.")
    rows = [_row(one, dry_run=dry_run) for one in done.certificates if one.did not in ("kept", "elsewhere", "failed")]
    if rows:
        print_table(("WHO", "ROLE", "WHAT", "UNTIL (UTC)", ""), rows, spare=("ROLE",))
    counts: dict[str, int] = {}
    for one in done.certificates:
        counts[one.did] = counts.get(one.did, 0) + 1
    words = _WOULD if dry_run else {}
    parts = [f"{count} {words.get(did, did)}" for did, count in counts.items()]
    typer.echo(f"{plural(len(done.certificates), 'certificate')}: {', '.join(parts)}.")
    if away := sorted({one.who.authority for one in done.certificates if one.did == "elsewhere"}):
        typer.echo(f"Elsewhere, since their keys are not here: what {', '.join(away)} certifies.")
    for entry in done.surplus:
        _remark(
            f"{entry.name} is not in the topology", f"`hedgerow pki revoke {entry.name}`, if it shall count no longer."
        )
    for entry in done.ending:
        remedy = f"`hedgerow pki renew --authority {entry.name}`, where the root's key is."
        if entry.kind == "root":
            remedy = "Begin a new folder before that, and bring its files to everybody."
        _remark(f"{entry.name} ends on {entry.ends:%Y-%m-%d}", remedy)
    for one in done.certificates:
        if one.did == "failed":
            typer.echo(f"{typer.style('error:', fg='red', bold=True)} {one.why}", err=True)
            typer.echo(f"  → {one.remedy}", err=True)


def _row(one: Provided, *, dry_run: bool) -> tuple[str, ...]:
    ends = "" if dry_run or one.entry is None else f"{one.entry.ends:%Y-%m-%d %H:%M}"
    hosts = ", ".join(one.entry.hosts) if one.entry is not None and not dry_run else ""
    return str(one.who), one.role, _WOULD[one.did] if dry_run else one.did, ends, one.why or hosts


def _remark(text: str, remedy: str) -> None:
    typer.echo(f"{typer.style('remark:', fg='yellow')} {text}", err=True)
    typer.echo(f"  → {remedy}", err=True)
