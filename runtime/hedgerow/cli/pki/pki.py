"""`hedgerow pki`: create, issue, renew, revoke and show certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from hedgerow.cli.base.console import echo, plural, print_error, print_json, style
from hedgerow.cli.base.options import Json, with_options
from hedgerow.cli.base.tables import alert, print_table

if TYPE_CHECKING:
    from hedgerow.pki.entry import CertificateEntry
    from hedgerow.pki.folder import Pki

Folder = Annotated[Path, typer.Option("--folder", metavar="DIR", help="Folder of certificates and keys.")]
AskPassphrase = Annotated[bool, typer.Option("--passphrase", help="Prompt for the passphrase of the root's key.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Read the passphrase of the root's key from the first line of this file."),
]
ListDays = Annotated[
    float | None,
    typer.Option(
        min=1,
        max=730,
        help="Days that revocation lists are valid, from now on; 30 at first. A broker refuses every client when its list has "
        "expired. With more days, whoever keeps new lists from a broker can use a revoked certificate there for longer.",
    ),
]
Reason = Annotated[
    str,
    typer.Option(
        metavar="REASON",
        help="key-compromise, superseded, cessation-of-operation, affiliation-changed or unspecified.",
    ),
]


class FolderOptions(NamedTuple):
    """Folder of certificates and keys, and the source of the root key's passphrase.

    Attributes:
        prompt: whether to prompt for the passphrase.
        passphrase_file: a file whose first line is the passphrase.
        json: whether to print JSON.
    """

    folder: Path
    prompt: bool
    passphrase_file: Path | None
    json: bool

    def open(self) -> Pki:
        """Open the folder, which may be empty."""
        return open_folder(self.folder)

    def passphrase(self, *, new: bool = False) -> Callable[[], bytes | None]:
        """Return a function that gets the passphrase when it is needed.

        It is never the value of an option, which the process list would show.
        """

        def get() -> bytes | None:
            from hedgerow.pki.files import read
            from hedgerow.pki.names import PkiError

            if self.passphrase_file is not None:
                passphrase = (read(self.passphrase_file).splitlines() or [b""])[0]
                if not passphrase:
                    raise PkiError(
                        f"{self.passphrase_file} has no passphrase on its first line",
                        remedy="Put the passphrase there.",
                    )
                return passphrase
            if self.prompt:
                typed: str = typer.prompt(
                    "Passphrase of the root's key", hide_input=True, confirmation_prompt=new, err=True
                )
                return typed.encode()
            return None

        return get


def _folder_options(
    folder: Folder = Path("pki"),
    passphrase: AskPassphrase = False,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> FolderOptions:
    return FolderOptions(folder, passphrase, passphrase_file, json)


on_folder = with_options(_folder_options)
"""Adds the options shared by verbs that may need the root's key."""


@on_folder
def init(
    options: FolderOptions,
    region: Annotated[str, typer.Option(metavar="NAME", help="Name of the region; part of every certificate.")],
    site: Annotated[list[str] | None, typer.Option(metavar="SITE", help="A site; repeatable.")] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN|NETWORK", help="Hosts that brokers of these new sites may have; default: any. Repeatable."
        ),
    ] = None,
) -> None:
    """Create the root, the region's authority and an authority for each site.

    Examples:
      hedgerow pki init --region plant-7 --site hall-2 --site hall-3 --passphrase
      hedgerow pki init --region plant-7 --site hall-4 --host hall-4.lan --host 10.4.0.0/16

    Whatever exists is kept: run it again to add a site. That needs the root's key; daily work does not, so take the key off
    the machine. With --host, a stolen authority cannot certify brokers on other hosts.
    """
    folder, pki = options.folder, options.open()
    created = pki.init(region, site or (), options.passphrase(new=not pki.root.exists), host or ())
    if options.json:
        print_json({"folder": str(folder), "made": created, "root_key": str(pki.root.key_file)})
        return
    echo(f"Created {', '.join(created)} in {folder}." if created else f"Nothing to create: {folder} has all of it.")
    if pki.root.key_file.exists():
        print_root_key_warning(pki.root.key_file)
        echo("You need it again only to add a site, and to renew or revoke an authority.")


def print_root_key_warning(key_file: Path) -> None:
    """Tell the operator to take the root's key offline."""
    echo(
        f"Move {key_file} off this machine, onto two USB sticks kept apart: with it, anyone can impersonate any identity."
    )


def issue(
    who: Annotated[
        str,
        typer.Argument(metavar="WHO", help="SITE/NODE, AUTHORITY/broker, SITE (for its bridge) or NAME@AUTHORITY."),
    ],
    host: Annotated[
        list[str] | None, typer.Option(metavar="NAME|IP", help="Host by which clients reach a broker; repeatable.")
    ] = None,
    role: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Role to state in the certificate, such as sensor or operator.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="Days that it is valid; 30 by default, half a day for an operator.", min=0)
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Hours that it is valid, instead of --days.", min=0)] = None,
    allow_wildcard: Annotated[
        bool,
        typer.Option(
            "--allow-wildcard",
            help="Let --host begin with `*.`. The broker's key is then good for every name there: whoever steals it can "
            "impersonate any other broker of that domain.",
        ),
    ] = False,
    folder: Folder = Path("pki"),
    json: Json = False,
) -> None:
    """Issue a certificate with a new key.

    Examples:
      hedgerow pki issue hall-2/broker --host broker.hall-2.lan --host 10.7.0.2
      hedgerow pki issue hall-2/gateway
      hedgerow pki issue hall-2/pump-3 --role sensor
      hedgerow pki issue hall-2
      hedgerow pki issue anna@region --role operator
      hedgerow pki issue ben@hall-2 --role operator --hours 2

    The common name is the client's user name on the broker: SITE/NODE, SITE for a bridge, NAME@AUTHORITY. For a broker it
    is the first host name. The site's authority signs; for a bridge, the region's. The authority's key must be on this
    machine; the root's key is not needed.
    """
    from hedgerow.pki.certificates import usual_life
    from hedgerow.pki.names import parse

    pki = open_folder(folder)
    if days is not None and hours is not None:
        raise typer.BadParameter("use --days or --hours, not both")
    chosen = None if days is None and hours is None else timedelta(days=days or 0, hours=hours or 0)
    life = usual_life(role) if chosen is None else chosen
    if life < timedelta(minutes=1):
        raise typer.BadParameter("a certificate must be valid for at least a minute")
    entry = pki.issue(parse(who), life, role=role, hosts=host or (), allow_wildcard=allow_wildcard)
    for name in entry.hosts:
        if "*" in name:
            echo(
                f"{style('warning:', fg='yellow', bold=True)} {entry.name} can impersonate every host of {name}: "
                "name single hosts if you can.",
                err=True,
            )
    if json:
        print_json(as_json(entry))
        return
    echo(
        f"{entry.name} ({entry.role}): certificate valid until {entry.ends:%Y-%m-%d %H:%M} UTC, serial {entry.serial}."
    )
    echo(f"{entry.folder}/: tls.crt, tls.key (secret), trust.crt, trust.crl")
    if entry.ends - _now() < life - timedelta(minutes=1):
        echo("It expires earlier than requested, with its authority: see `hedgerow pki renew --authority`.")


@on_folder
def renew(
    options: FolderOptions,
    who: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WHO...]", help="Identities to renew; by default all whose certificate expires soon."),
    ] = None,
    within_days: Annotated[
        float | None,
        typer.Option(
            help="Renew what expires within this many days; default: what has less than a third of its life left.",
            min=0,
        ),
    ] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Create new private keys too.")] = False,
    authority: Annotated[
        str | None,
        typer.Option(metavar="AUTHORITY", help="Renew a site's authority, or `region`; needs the root's key."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN|NETWORK", help="With --authority: hosts that its brokers may have from now on. Repeatable."
        ),
    ] = None,
    list_days: ListDays = None,
) -> None:
    """Renew certificates that expire soon, or the ones you name.

    Examples:
      hedgerow pki renew
      hedgerow pki renew --within-days 10
      hedgerow pki renew hall-2/gateway --new-key
      hedgerow pki renew --authority hall-2 --passphrase
      hedgerow pki renew --authority hall-2 --host hall-2.lan --passphrase

    Safe to run from a timer: it does nothing if nothing is due and replaces each file atomically, and a certificate that
    cannot be renewed does not hold up the others. Revoked certificates are not renewed. Revocation lists are renewed too,
    once a third of their life has passed. Exits with 1 if any renewal fails.
    """
    from hedgerow.pki.entry import Renewal
    from hedgerow.pki.names import PkiError, parse

    pki = options.open()
    if not pki.authorities():
        raise PkiError(
            f"There is nothing to renew in {options.folder}: no authority is there",
            remedy="Name the right --folder. From a timer, use an absolute path.",
        )
    if authority is not None:
        outcome = Renewal([pki.renew_authority(authority, options.passphrase(), host or ())], [])
    elif host:
        raise typer.BadParameter("--host needs --authority")
    else:
        within = None if within_days is None else timedelta(days=within_days)
        outcome = pki.renew([parse(one) for one in who or ()], within, new_key=new_key)
    renewed, failed = outcome
    lists = pki.renew_lists(None if list_days is None else timedelta(days=list_days))
    if options.json:
        print_json(
            {
                "renewed": [as_json(entry) for entry in renewed],
                "failed": [str(error) for error in failed],
                "lists": lists,
            }
        )
    else:
        for entry in renewed:
            echo(f"{entry.name}: valid until {entry.ends:%Y-%m-%d %H:%M} UTC, in {entry.folder}/")
        print_lists(pki, lists)
        if not renewed and not failed and not lists:
            echo("Nothing to renew.")
        for error in failed:
            print_error(error)
    if failed:
        raise typer.Exit(1)


def print_lists(pki: Pki, names: Iterable[str]) -> None:
    """Tell the operator where renewed revocation lists must go."""
    for name in names:
        known = pki.authority(name).revocations()
        assert known is not None  # noqa: S101 - it was just written
        echo(
            f"Revocation list of {name}: valid until {known.next_update_utc:%Y-%m-%d %H:%M} UTC. Copy "
            f"{pki.folder / name}/issued/*/trust.crl, then `kill -HUP` the broker."
        )


@on_folder
def revoke(
    options: FolderOptions,
    who: Annotated[str | None, typer.Argument(metavar="[WHO]", help="Identity whose certificates to revoke.")] = None,
    reason: Reason = "unspecified",
    authority: Annotated[
        str | None, typer.Option(metavar="AUTHORITY", help="Revoke a whole authority instead; needs the root's key.")
    ] = None,
) -> None:
    """Revoke all valid certificates of an identity, and list the files to distribute to brokers.

    Examples:
      hedgerow pki revoke hall-2/gateway --reason key-compromise
      hedgerow pki revoke --authority hall-2 --reason key-compromise --passphrase-file root.pass
    """
    from hedgerow.pki.certificates import REASONS
    from hedgerow.pki.names import parse

    if (who is None) == (authority is None):
        raise typer.BadParameter("name either WHO or --authority")
    if reason not in REASONS:
        raise typer.BadParameter(f"--reason must be one of {', '.join(REASONS)}")
    pki, signer = options.open(), authority or parse(who or "").authority
    if authority is not None:
        count = pki.revoke_authority(authority, reason, options.passphrase())
    else:
        count = pki.revoke(parse(who or ""), reason)
    lists = pki.lists(signer) if authority is None else [*pki.trusted(signer), *pki.lists(signer)]
    if options.json:
        print_json(
            {
                "revoked": who or authority,
                "certificates": count,
                "reason": reason,
                "distribute": [str(path) for path in lists],
            }
        )
        return
    echo(f"{who or authority}: {plural(count, 'certificate')} revoked, {reason}.")
    echo("Copy these files to their machines, brokers first:")
    for path in sorted(lists, key=lambda path: (path.parent.name != "broker", path.parent)):
        echo(f"  {path}")
    if authority is None:
        echo(
            "Then `kill -HUP` each broker: Mosquitto reloads certificates and revocation lists, and refuses new connections\n"
            "by revoked clients. Open connections stay open until you restart the broker. With `persistence true`, sessions\n"
            "survive the restart."
        )
        return
    echo("Then restart each broker: a reload does not drop revocation lists read before.")
    echo(
        f"To replace the authority, move {options.folder / authority} away, run `hedgerow pki init --site {authority}`, and "
        "issue its certificates again."
    )


def show(folder: Folder = Path("pki"), json: Json = False) -> None:
    """List all certificates and when they expire.

    Examples:
      hedgerow pki show
      hedgerow pki show --folder /etc/hedgerow/pki --json

    Certificates that are revoked, expired, or have less than a quarter of their life left are red. Revocation lists are named
    if they have expired or will soon. Exits with 1 if any certificate or list has expired.
    """
    from hedgerow.pki.inspect import list_troubles

    now, pki = _now(), open_folder(folder)
    entries = list(pki.show())
    lists = [
        trouble
        for signer in pki.authorities()
        if (known := signer.revocations()) is not None
        for trouble in list_troubles(now, signer.revocations_file, [known])
    ]
    any_expired = any(entry.ends <= now and entry.revoked is None for entry in entries)
    any_expired |= any(trouble.fatal for trouble in lists)
    if json:
        print_json([{**as_json(entry), "left_s": (entry.ends - now).total_seconds()} for entry in entries])
    else:
        rows = [
            (entry.name, entry.kind, entry.role, f"{entry.ends:%Y-%m-%d %H:%M}", _left(entry, now)) for entry in entries
        ]
        print_table(("WHO", "KIND", "ROLE", "EXPIRES (UTC)", "LEFT"), rows, omit_first=("ROLE", "KIND"))
    for trouble in lists:
        echo(alert(trouble.detail), err=True)
        echo(f"  → {trouble.remedy}", err=True)
    if any_expired:
        raise typer.Exit(1)


def _left(entry: CertificateEntry, now: datetime) -> str:
    left = entry.ends - now
    if entry.revoked is not None:
        text = f"revoked: {entry.revoked}"
    elif left <= timedelta():
        text = "expired"
    elif now < entry.begins:
        text = "not valid yet: check the clock"
    else:
        text = plural(left.days, "day") if left.days else plural(left.seconds // 3600, "hour")
        if not entry.is_short(now):
            return text
    return alert(text)


def as_json(entry: CertificateEntry) -> dict[str, Any]:
    """Return a certificate's JSON fields."""
    from dataclasses import asdict

    return {**asdict(entry), "folder": str(entry.folder), "begins": entry.begins, "ends": entry.ends}


def open_folder(folder: Path) -> Pki:
    """Open a folder of certificates, which may be empty."""
    from hedgerow.pki.folder import Pki

    return Pki(folder, _now)


def _now() -> datetime:
    return datetime.now(UTC)
