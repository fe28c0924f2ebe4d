"""`hedgerow pki`: who is who on the brokers, by certificates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from hedgerow.cli.base.console import plural, print_error, print_json
from hedgerow.cli.base.options import Json, with_options
from hedgerow.cli.base.tables import alert, print_table

if TYPE_CHECKING:
    from hedgerow.pki.entry import CertificateEntry
    from hedgerow.pki.folder import Pki

Folder = Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where the certificates and keys are.")]
AskPassphrase = Annotated[bool, typer.Option("--passphrase", help="Ask for the passphrase of the root's key.")]
PassphraseFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Take the passphrase of the root's key from this file's first line.")
]
Reason = Annotated[
    str,
    typer.Option(
        metavar="REASON",
        help="key-compromise, superseded, cessation-of-operation, affiliation-changed or unspecified.",
    ),
]


class FolderOptions(NamedTuple):
    """Where certificates and keys are, and how to come by the passphrase of the root's key.

    Attributes:
        folder: where they are.
        ask: whether to ask for the passphrase.
        file: what has it on its first line.
        json: whether to answer in JSON.
    """

    folder: Path
    ask: bool
    file: Path | None
    json: bool

    def open(self) -> Pki:
        """The identity system in the folder, which may be empty."""
        return open_folder(self.folder)

    def passphrase(self, *, new: bool = False) -> Callable[[], bytes | None]:
        """How to come by it, when it is needed. Never an option's value: others would see it in the process list."""

        def get() -> bytes | None:
            from hedgerow.pki.files import read
            from hedgerow.pki.names import PkiError

            if self.file is not None:
                words = (read(self.file).splitlines() or [b""])[0]
                if not words:
                    raise PkiError(f"{self.file} has no passphrase", remedy="Put it on the first line.")
                return words
            if self.ask:
                said: str = typer.prompt(
                    "Passphrase of the root's key", hide_input=True, confirmation_prompt=new, err=True
                )
                return said.encode()
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
"""Gives a verb the options of all verbs that may need the root's key."""


@on_folder
def init(
    options: FolderOptions,
    region: Annotated[str, typer.Option(metavar="NAME", help="The region; it stands in every certificate.")],
    site: Annotated[list[str] | None, typer.Option(metavar="SITE", help="A site; may be given many times.")] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN|NETWORK", help="Where brokers of these new sites may be; any, if left out."),
    ] = None,
) -> None:
    """Make the root, the region's authority and those of sites.

    Examples:
      hedgerow pki init --region plant-7 --site hall-2 --site hall-3 --passphrase
      hedgerow pki init --region plant-7 --site hall-4 --host hall-4.lan --host 10.4.0.0/16

    What is there stays: run it again to add a site. The root's key is needed for that, and for nothing that happens every
    day, so take it off the machine. With --host, an authority that is stolen cannot certify brokers elsewhere.
    """
    folder, pki = options.folder, options.open()
    made = pki.init(region, site or (), options.passphrase(new=not pki.root.exists), host or ())
    if options.json:
        print_json({"folder": str(folder), "made": made, "root_key": str(pki.root.key_file)})
        return
    typer.echo(f"Made {', '.join(made)} in {folder}." if made else f"Nothing to make: all of it is in {folder}.")
    if pki.root.key_file.exists():
        typer.echo(
            f"Take {pki.root.key_file} off this machine now, onto two sticks in two drawers: whoever has it is everybody.\n"
            "It is needed again only for a new site, and to renew or revoke an authority."
        )


def issue(
    who: Annotated[
        str, typer.Argument(metavar="WHO", help="SITE/NODE, AUTHORITY/broker, SITE (its bridge) or NAME@AUTHORITY.")
    ],
    host: Annotated[
        list[str] | None, typer.Option(metavar="NAME|IP", help="How clients reach a broker; may be given many times.")
    ] = None,
    role: Annotated[
        str | None, typer.Option(metavar="ROLE", help="What it is, for people to read: sensor, operator…")
    ] = None,
    days: Annotated[float | None, typer.Option(help="Days it counts; 30 if left out.", min=0)] = None,
    hours: Annotated[float | None, typer.Option(help="Hours it counts, instead.", min=0)] = None,
    folder: Folder = Path("pki"),
    json: Json = False,
) -> None:
    """Issue a certificate, with a key of its own.

    Examples:
      hedgerow pki issue hall-2/broker --host broker.hall-2.lan --host 10.7.0.2
      hedgerow pki issue hall-2/gateway
      hedgerow pki issue hall-2/pump-3 --role sensor
      hedgerow pki issue hall-2
      hedgerow pki issue anna@region --role operator --hours 12

    The common name is the user name on the broker: SITE/NODE, SITE for its bridge, NAME@AUTHORITY. A broker's is its
    first host name. The site's authority signs, for a bridge the region's; its key must be here, the root's need not.
    """
    from hedgerow.pki.names import parse

    pki = open_folder(folder)
    if days is not None and hours is not None:
        raise typer.BadParameter("give --days or --hours, not both")
    life = timedelta(hours=hours) if hours is not None else timedelta(days=30 if days is None else days)
    if life < timedelta(minutes=1):
        raise typer.BadParameter("a certificate must count for a minute at least")
    entry = pki.issue(parse(who), life, role=role, hosts=host or ())
    if json:
        print_json(as_json(entry))
        return
    typer.echo(
        f"{entry.name} ({entry.role}) has a certificate until {entry.ends:%Y-%m-%d %H:%M} UTC, serial {entry.serial}."
    )
    typer.echo(f"{entry.folder}/: tls.crt, tls.key (a secret), trust.crt, trust.crl")
    if entry.ends - _now() < life - timedelta(minutes=1):
        typer.echo("It ends sooner than asked for, since its authority does: `hedgerow pki renew --authority`.")


@on_folder
def renew(
    options: FolderOptions,
    who: Annotated[list[str] | None, typer.Argument(metavar="[WHO...]", help="Which; all that end soon.")] = None,
    within_days: Annotated[
        float | None, typer.Option(help="What ends within so many days; else what has less than a third left.", min=0)
    ] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make new private keys too.")] = False,
    authority: Annotated[
        str | None,
        typer.Option(metavar="AUTHORITY", help="Renew a site's authority, or `region`; needs the root's key."),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN|NETWORK", help="With --authority: where its brokers may be from now on."),
    ] = None,
) -> None:
    """Renew certificates that end soon, or those that are named.

    Examples:
      hedgerow pki renew
      hedgerow pki renew --within-days 10
      hedgerow pki renew hall-2/gateway --new-key
      hedgerow pki renew --authority hall-2 --passphrase
      hedgerow pki renew --authority hall-2 --host hall-2.lan --passphrase

    Safe in a timer: it does nothing when nothing is due, replaces each file as a whole, and one certificate that cannot
    be renewed holds up no other. A certificate that was revoked is not renewed. Exits with 1 if one could not be.
    """
    from hedgerow.pki.entry import Renewal
    from hedgerow.pki.names import parse

    pki = options.open()
    if authority is not None:
        outcome = Renewal([pki.renew_authority(authority, options.passphrase(), host or ())], [])
    elif host:
        raise typer.BadParameter("--host goes with --authority")
    else:
        within = None if within_days is None else timedelta(days=within_days)
        outcome = pki.renew([parse(one) for one in who or ()], within, new_key=new_key)
    renewed, failed = outcome
    if options.json:
        print_json({"renewed": [as_json(entry) for entry in renewed], "failed": [str(error) for error in failed]})
    else:
        for entry in renewed:
            typer.echo(f"{entry.name}: until {entry.ends:%Y-%m-%d %H:%M} UTC, {entry.folder}/")
        if not renewed and not failed:
            typer.echo("Nothing to renew.")
        for error in failed:
            print_error(error)
    if failed:
        raise typer.Exit(1)


@on_folder
def revoke(
    options: FolderOptions,
    who: Annotated[str | None, typer.Argument(metavar="[WHO]", help="Whose certificates count no longer.")] = None,
    reason: Reason = "unspecified",
    authority: Annotated[
        str | None, typer.Option(metavar="AUTHORITY", help="A whole authority instead; needs the root's key.")
    ] = None,
) -> None:
    """Revoke somebody's certificates, all that still count, and say what to do so that brokers know.

    Examples:
      hedgerow pki revoke hall-2/gateway --reason key-compromise
      hedgerow pki revoke --authority hall-2 --reason key-compromise --passphrase-file root.pass
    """
    from hedgerow.pki.certificates import REASONS
    from hedgerow.pki.names import parse

    if (who is None) == (authority is None):
        raise typer.BadParameter("name one: WHO, or --authority")
    if reason not in REASONS:
        raise typer.BadParameter(f"--reason is one of {', '.join(REASONS)}")
    pki, signer = options.open(), authority or parse(who or "").authority
    if authority is not None:
        count = pki.revoke_authority(authority, reason, options.passphrase())
    else:
        count = pki.revoke(parse(who or ""), reason)
    lists = pki.lists(signer)
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
    typer.echo(f"{who or authority}: {plural(count, 'certificate')} revoked, {reason}.")
    typer.echo("Now bring these to their machines; those of the brokers first:")
    for path in sorted(lists, key=lambda path: path.parent.name != "broker"):
        typer.echo(f"  {path}")
    typer.echo(
        "Then restart each broker: it keeps lists that it has read before."
        if authority is not None
        else "Then `kill -HUP` each broker: Mosquitto reads certificates and lists anew, and refuses new connections.\n"
        "One that is open stays open: restart the broker to end it. With `persistence true`, sessions are kept."
    )
    if authority is not None:
        typer.echo(
            f"To begin anew, move {options.folder / authority} away; then `init --site {authority}`, and issue all anew."
        )


def show(folder: Folder = Path("pki"), json: Json = False) -> None:
    """Show all certificates, and how long they count.

    Examples:
      hedgerow pki show
      hedgerow pki show --folder /etc/hedgerow/pki --json

    Red is what is revoked, has ended, or has less than a quarter of its life left. Exits with 1 if any has ended.
    """
    now, entries = _now(), list(open_folder(folder).show())
    ended = any(entry.ends <= now and entry.revoked is None for entry in entries)
    if json:
        print_json([{**as_json(entry), "left_s": (entry.ends - now).total_seconds()} for entry in entries])
    else:
        rows = [
            (entry.name, entry.kind, entry.role, f"{entry.ends:%Y-%m-%d %H:%M}", _left(entry, now)) for entry in entries
        ]
        print_table(("WHO", "KIND", "ROLE", "ENDS (UTC)", "LEFT"), rows, spare=("ROLE", "KIND"))
    if ended:
        raise typer.Exit(1)


def _left(entry: CertificateEntry, now: datetime) -> str:
    left = entry.ends - now
    if entry.revoked is not None:
        told = f"revoked: {entry.revoked}"
    elif left <= timedelta():
        told = "ended"
    elif now < entry.begins:
        told = "not valid yet: is the clock right?"
    else:
        told = plural(left.days, "day") if left.days else plural(left.seconds // 3600, "hour")
        if not entry.is_short(now):
            return told
    return alert(told)


def as_json(entry: CertificateEntry) -> dict[str, Any]:
    """A certificate as JSON has it."""
    from dataclasses import asdict

    return {**asdict(entry), "folder": str(entry.folder), "begins": entry.begins, "ends": entry.ends}


def open_folder(folder: Path) -> Pki:
    """The identity system in a folder, which may be empty."""
    from hedgerow.pki.folder import Pki

    return Pki(folder, _now)


def _now() -> datetime:
    return datetime.now(UTC)
