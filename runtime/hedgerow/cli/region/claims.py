"""`hedgerow claim`: makes, lists and revokes claims, with which machines ask to be nodes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli.base.console import echo, plural, print_json
from hedgerow.cli.base.tables import print_table
from hedgerow.cli.region.options import ServiceOptions, StoreOptions, on_service, on_store, region_config
from hedgerow.errors import ConfigError


@on_service
def create(
    options: ServiceOptions,
    site: Annotated[str, typer.Argument(metavar="SITE", help="The site at which it lets machines ask.")],
    place: Annotated[
        str | None,
        typer.Option("--place", metavar="NODE", help="The only node that it may become; default: any that is free."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", min=1, max=100_000, help="How many machines may use it, once each.")
    ] = 1,
    hours: Annotated[
        float, typer.Option("--hours", min=0.01, max=2160, help="Hours for which machines may use it.")
    ] = 24,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="A label for its nodes' configuration; repeatable."),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker", metavar="URL", help="Where they ask, if not at the site's broker: `region`, or mqtts://…."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the token to this file, for its owner only.")
    ] = None,
) -> None:
    """Make a claim: a token with which machines ask to be nodes of a site. It is shown once.

    Examples:
      hedgerow claim create hall --place gateway --out claim.txt --why "the new gateway"
      hedgerow claim create hall --count 50 --hours 8 --label batch=2026-12

    Whoever has the token may ask, but somebody must still approve: `hedgerow node pending` shows who asked. The region's store keeps
    only what verifies the token.
    """
    from hedgerow.enrolment.claim import Claim
    from hedgerow.enrolment.places import read_places
    from hedgerow.pki.files import make_folder, write
    from hedgerow.region.enrolment.handlers import root_of

    labels = dict(_label(text) for text in label or ())
    config = region_config(options.store.config)
    if config.enrolment.places is None:
        raise ConfigError(
            "The region's configuration has no `enrolment: {places: FILE}`",
            remedy="Mark nodes with `enrols: true` in the topology, render it, and use the region.yaml that it writes.",
        )
    places = read_places(config.enrolment.places)
    known = places.sites.get(site)
    if known is None or (place is not None and place not in known.nodes):
        raise ConfigError(
            f"The topology has no place {site}{'/' + place if place and known else ''}",
            remedy="Sites: " + ", ".join(list(places.sites)[:20]) + ".",
        )
    where = places.broker if broker == "region" else broker or known.broker
    if not where:
        raise ConfigError(
            f"No machine can ask at {'the region' if broker == 'region' else site}",
            remedy="Set `enrolment_port` there in the topology, or use --broker.",
        )
    claim = Claim.new(places.region, site, where, root_of(config))
    args = {
        "id": claim.id,
        "site": site,
        "place": place,
        "public_key": claim.public.hex(),
        "uses": count,
        "hours": hours,
    }
    reply = options.request("claim-create", args | {"labels": labels})
    if out is not None:
        make_folder(out.absolute().parent)
        write(out, f"{claim.token()}\n".encode(), private=True)
    if options.store.json:
        print_json(reply | ({"file": str(out)} if out is not None else {"token": claim.token()}))
        return
    echo(f"Claim {claim.id}: {plural(count, 'machine')} at {site}, until {_time(reply['expires_at'])}.", err=True)
    echo(f"Its token is in {out}." if out is not None else claim.token())


@on_store
def list_(options: StoreOptions) -> None:
    """List the claims; not their tokens, which nobody can show again.

    Examples:
      hedgerow claim list
    """
    from hedgerow.region.enrolment.store import EnrolmentStore

    now = time.time()
    with options.open() as database:
        claims = EnrolmentStore(database).claims()
    found: list[dict[str, Any]] = [
        {
            "claim": one.id,
            "site": one.site,
            "place": one.place,
            "state": _state(one, now),
            "used": one.used,
            "uses": one.uses,
            "expires_at": one.expires_at,
            "labels": dict(one.labels),
            "who": one.by.name,
            "why": one.by.why,
        }
        for one in claims
    ]
    if options.json:
        print_json(found)
        return
    rows = [
        (one["claim"], f"{one['site']}/{one['place'] or '*'}", one["state"], f"{one['used']} of {one['uses']}",
         _time(one["expires_at"]), one["who"], one["why"])
        for one in found
    ]  # fmt: skip
    print_table(("CLAIM", "PLACE", "STATE", ">USED", "UNTIL", "WHO", "WHY"), rows, omit_first=("WHY", "WHO"))
    echo(f"{plural(len(found), 'claim')}.")


@on_service
def revoke(
    options: ServiceOptions, claim: Annotated[str, typer.Argument(metavar="CLAIM", help="Id of the claim.")]
) -> None:
    """Revoke a claim: nobody can ask with it any more. Machines that have asked stay pending, or nodes.

    Examples:
      hedgerow claim revoke 8f14e45fceea167a --why "the laptop was stolen"
    """
    reply = options.request("claim-revoke", {"id": claim})
    if options.store.json:
        print_json(reply)
        return
    echo(f"Revoked {reply['claim']}.")
    for fingerprint in reply["pending"]:
        echo(f"{fingerprint[:16]} has asked with it and is pending: hedgerow node reject {fingerprint[:16]}")


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not a label", remedy="Use KEY=VALUE.")
    return key, value


def _state(claim: Any, now: float) -> str:
    if claim.revoked_at is not None:
        return "revoked"
    return "expired" if now >= claim.expires_at else "used" if claim.used >= claim.uses else "open"


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
