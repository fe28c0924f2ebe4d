"""`hedgerow node pending|approve|reject`: machines that ask to be nodes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli.base.console import echo, human_readable, plural, print_json
from hedgerow.cli.base.tables import print_table
from hedgerow.cli.region.options import ServiceOptions, StoreOptions, on_service, on_store, open_store, region_config

Machine = Annotated[
    str, typer.Argument(metavar="MACHINE", help="The beginning of its fingerprint, as `hedgerow enrol` shows it there.")
]


@on_store
def pending(
    options: StoreOptions,
    every: Annotated[bool, typer.Option("--all", help="Also those that were approved or rejected.")] = False,
) -> None:
    """List the machines that ask to be nodes, with what they say of themselves, which proves nothing.

    Examples:
      hedgerow node pending
      hedgerow node pending --all --json

    Compare the fingerprint with what `hedgerow enrol` shows on the machine before you approve it. Those that are *expired* are nodes
    that came back after their certificate had expired, and that the service does not renew by itself: approve them again.
    """
    from dataclasses import replace

    from hedgerow.region.enrolment.registrar import Granted
    from hedgerow.region.enrolment.store import APPROVED, PENDING, EnrolmentStore

    with options.open() as database:
        machines = EnrolmentStore(database).machines()
    # Approved ones whose certificate expired, and that ask: if the service could renew it, it would have.
    back = {one.fingerprint for one in machines if one.state == APPROVED and Granted.of(one).ends < one.seen_at}
    machines = [
        replace(one, state="expired") if one.fingerprint in back else one
        for one in machines
        if every or one.state == PENDING or one.fingerprint in back
    ]
    if options.json:
        print_json(
            [
                {
                    "fingerprint": one.fingerprint,
                    "site": one.site,
                    "state": one.state,
                    "node": one.node,
                    "claim": one.claim,
                    "machine": dict(one.machine),
                    "asked_at": one.asked_at,
                    "seen_at": one.seen_at,
                    "who": one.who,
                    "reason": one.reason,
                    "rule": one.rule,
                }
                for one in machines
            ]
        )
        return
    rows = [
        (one.fingerprint[:16], f"{one.site}/{one.node or '?'}", one.state, _ago(one.asked_at), one.claim,
         human_readable(dict(one.machine)))
        for one in machines
    ]  # fmt: skip
    print_table(("MACHINE", "PLACE", "STATE", ">ASKED", "CLAIM", "SAYS"), rows, omit_first=("CLAIM",))
    echo(f"{plural(len(machines), 'machine')}.")


@on_service
def approve(
    options: ServiceOptions,
    machine: Machine,
    place: Annotated[
        str | None,
        typer.Option(
            "--place", metavar="NODE", help="The node that it becomes; default: the claim's, or the first that is free."
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Folder of certificates with the key of the site's authority; default: the service signs.",
        ),
    ] = None,
    days: Annotated[
        float, typer.Option("--days", min=0.01, help="With --folder: days that its certificate is valid.")
    ] = 30,
) -> None:
    """Approve a machine: it gets a certificate, its configuration and labels when it asks next.

    Examples:
      hedgerow node approve 5f2ab09c --why "gateway of hall, seen on site"
      hedgerow node approve 5f2ab09c --place gateway --folder pki

    The site's authority signs: in the folder that --folder names, or by the region's service, if its configuration has
    `enrolment: {pki: …}`. Approve an approved machine again, with --folder, to renew its certificate.
    """
    args: dict[str, Any] = {"machine": machine, "place": place}
    if folder is not None:
        args = _signed(options, machine, place, folder, days)
    reply = options.request("node-approve", args)
    if options.store.json:
        print_json(reply)
    elif reply["again"]:
        echo(f"{reply['fingerprint'][:16]} is {reply['node']} already.")
    else:
        echo(f"{reply['fingerprint'][:16]} becomes {reply['node']} when it asks next.")


def _signed(options: ServiceOptions, machine: str, place: str | None, folder: Path, days: float) -> dict[str, Any]:
    from contextlib import closing

    from hedgerow.enrolment.grant import site_of
    from hedgerow.enrolment.places import read_places
    from hedgerow.errors import CommandError, ConfigError
    from hedgerow.pki.folder import Pki
    from hedgerow.region.enrolment.approval import choose_place, make_grant
    from hedgerow.region.enrolment.handlers import find_machine
    from hedgerow.region.enrolment.store import APPROVED, REJECTED, EnrolmentStore

    config = region_config(options.store.config)
    if config.enrolment.places is None:
        raise ConfigError(
            "`enrolment: {places}` is not set", remedy="Use the region.yaml that `topology render` writes."
        )
    places = read_places(config.enrolment.places)
    with closing(open_store(options.store.url, options.store.config)) as database:
        store = EnrolmentStore(database)
        found = find_machine(store, machine)
        claim = store.claim(found.claim)
        taken = store.taken(found.site) - {found.node or ""}
    if found.state == REJECTED:
        raise CommandError(
            f"{machine} was rejected by {found.who}", code="decided", remedy="Let it ask with another key."
        )
    wanted = place or found.node or (claim.place if claim else None)
    chosen = (
        found.node
        if found.state == APPROVED and found.node is not None
        else choose_place(places, found.site, wanted, taken)
    )
    pki = Pki(folder, lambda: datetime.now(UTC))
    labels = dict(claim.labels) if claim else {}
    was_at = site_of(found.grant) if found.grant else None
    text, signature = make_grant(
        pki, places, found.site, chosen, found.csr, labels, timedelta(days=days), was_at=was_at
    )
    return {"machine": found.fingerprint, "place": chosen, "grant": {"text": text, "signature": signature}}


@on_service
def reject(options: ServiceOptions, machine: Machine) -> None:
    """Reject a machine: it is told so, and may ask again only with another key and claim.

    An approved machine loses its place, which another may then have; revoke its certificate too.

    Examples:
      hedgerow node reject 5f2ab09c --why "nobody knows it"
    """
    reply = options.request("node-reject", {"machine": machine})
    if options.store.json:
        print_json(reply)
    else:
        echo(f"Rejected {reply['fingerprint'][:16]} at {reply['site']}.")
        if reply["revoke"] is not None:
            echo(f"It has a certificate. Revoke it: hedgerow pki revoke {reply['revoke']}")


def _ago(at: float) -> str:
    from hedgerow.region.store.liveness import format_duration

    return format_duration(max(0.0, time.time() - at))
