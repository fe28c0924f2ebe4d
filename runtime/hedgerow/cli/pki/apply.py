"""`hedgerow pki apply`: issue and renew all certificates that a topology needs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hedgerow.cli.base.console import echo, plural, print_json, style
from hedgerow.cli.base.tables import print_table
from hedgerow.cli.pki.pki import FolderOptions, ListDays, as_json, on_folder, print_lists, print_root_key_warning
from hedgerow.cli.topology.topology import File

if TYPE_CHECKING:
    from hedgerow.pki.provide import Provided
    from hedgerow.topology.certify import Certified

_PLANNED: Final = {"issued": "to issue", "renewed": "to renew", "changed": "to change"}


@on_folder
def apply(
    options: FolderOptions,
    file: File,
    init: Annotated[
        bool, typer.Option("--init", help="Create a missing root or authority; needs the root's key.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    days: Annotated[
        float | None,
        typer.Option(
            help="Days that new certificates are valid, 30 by default; not those of operators: half a day.", min=0.01
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="AUTHORITY",
            help="Skip an authority managed elsewhere and all it certifies; repeatable.",
        ),
    ] = None,
    list_days: ListDays = None,
) -> None:
    """Give every identity in a topology a valid certificate: brokers, bridges, nodes, sensors, people.

    Examples:
      hedgerow pki apply topology.yaml --init --passphrase
      hedgerow pki apply topology.yaml --dry-run
      hedgerow pki apply topology.yaml

    It issues missing certificates and renews those with less than a third of their life left, for their original lifetime.
    If a broker's host or somebody's role has changed, it certifies the same key again. Revocation lists are renewed once a
    third of their life has passed. Everything else stays. Run it after each change of the topology, and from a timer.

    Operators' certificates are valid for half a day whatever --days says; longer ones are issued by `hedgerow pki issue`.
    A broker's certificate is for the host in the topology; an authority created by --init can certify no other hosts.

    If the key of an authority is not in the folder, its certificates are left alone. Certificates that the topology does
    not name are reported and kept. Exits with 1 if any identity is left without a valid certificate.
    """
    from hedgerow.topology.certify import certify
    from hedgerow.topology.load import load_alone
    from hedgerow.topology.model import REGION_AUTHORITY

    if init and REGION_AUTHORITY in (without or ()):
        raise typer.BadParameter("--init creates the region's authority: leave out --without region")
    topology, folder, pki = load_alone(file), options.folder, options.open()
    done = certify(
        topology,
        pki,
        None if days is None else timedelta(days=days),
        init=init,
        passphrase=options.passphrase(new=not pki.root.exists),
        without=without or (),
        list_life=None if list_days is None else timedelta(days=list_days),
        dry_run=dry_run,
    )
    if options.json:
        print_json(_as_json(done, folder, dry_run=dry_run))
    else:
        _print(done, folder, dry_run=dry_run)
        if not dry_run:
            print_lists(pki, done.lists)
        if not dry_run and pki.root.key_file.exists():
            print_root_key_warning(pki.root.key_file)
    if any(one.action == "failed" for one in done.certificates):
        raise typer.Exit(1)


def _as_json(done: Certified, folder: Path, *, dry_run: bool) -> dict[str, Any]:
    certificates = [
        {
            "name": str(one.who),
            "role": one.role,
            "did": one.action,
            "why": one.why or None,
            "remedy": one.remedy or None,
            "certificate": None if one.entry is None else as_json(one.entry),
        }
        for one in done.certificates
    ]
    return {
        "folder": str(folder),
        "dry_run": dry_run,
        "made": done.created,
        "lists": done.lists,
        "certificates": certificates,
        "surplus": [as_json(entry) for entry in done.surplus],
        "ending": [as_json(entry) for entry in done.expiring],
    }


def _print(done: Certified, folder: Path, *, dry_run: bool) -> None:
    if done.created:
        echo(f"{'Would create' if dry_run else 'Created'} {', '.join(done.created)} in {folder}.")
    rows = [
        _row(one, dry_run=dry_run)
        for one in done.certificates
        if one.action not in ("kept", "elsewhere", "enrols", "failed")
    ]
    if rows:
        print_table(("WHO", "ROLE", "ACTION", "EXPIRES (UTC)", ""), rows, omit_first=("ROLE",))
    counts: dict[str, int] = {}
    for one in done.certificates:
        counts[one.action] = counts.get(one.action, 0) + 1
    words = (_PLANNED if dry_run else {}) | {"enrols": "to enrol"}
    parts = [f"{count} {words.get(did, did)}" for did, count in counts.items()]
    echo(f"{plural(len(done.certificates), 'certificate')}: {', '.join(parts)}.")
    if elsewhere := sorted({one.who.authority for one in done.certificates if one.action == "elsewhere"}):
        echo(f"Skipped certificates by {', '.join(elsewhere)}: the authority's key is not on this machine.")
    for entry in done.surplus:
        _remark(f"{entry.name} is not in the topology", f"To withdraw it: `hedgerow pki revoke {entry.name}`.")
    for entry in done.expiring:
        remedy = f"`hedgerow pki renew --authority {entry.name}`, where the root's key is."
        if entry.kind == "root":
            remedy = (
                "Before then, create a new folder with `hedgerow pki init` and distribute its files to every machine."
            )
        _remark(f"{entry.name} expires on {entry.ends:%Y-%m-%d}", remedy)
    for one in done.certificates:
        if one.action == "failed":
            echo(f"{style('error:', fg='red', bold=True)} {one.why}", err=True)
            echo(f"  → {one.remedy}", err=True)


def _row(one: Provided, *, dry_run: bool) -> tuple[str, ...]:
    expires = "" if dry_run or one.entry is None else f"{one.entry.ends:%Y-%m-%d %H:%M}"
    hosts = ", ".join(one.entry.hosts) if one.entry is not None and not dry_run else ""
    return str(one.who), one.role, _PLANNED[one.action] if dry_run else one.action, expires, one.why or hosts


def _remark(text: str, remedy: str) -> None:
    echo(f"{style('remark:', fg='yellow')} {text}", err=True)
    echo(f"  → {remedy}", err=True)
