"""Approves machines: chooses a place, has the site's authority certify the key, and signs the grant.

Used by the region's service, if it has the authority's key, and by `hedgerow node approve` where the key is. Killed at any point, it
may leave a certificate in the folder that nobody has; the next approval of the same machine takes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta

from cryptography import x509

from hedgerow.enrolment.grant import NodeGrant, release_grant, sign_grant
from hedgerow.enrolment.places import Places
from hedgerow.errors import CommandError
from hedgerow.pki.files import read
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import Identity, IdentityKind


def choose_place(places: Places, site: str, wanted: str | None, taken: Collection[str]) -> str:
    """Return the place for a machine: the wanted one, or the site's first that is free.

    Raises: CommandError: there is no such place, or none is free.
    """
    known = places.sites.get(site)
    if known is None or not known.nodes:
        raise CommandError(
            f"The topology has no places at {site}", code="no-place",
            remedy="Name its nodes in the topology, with `enrols: true`, and render it again.",
        )  # fmt: skip
    if wanted is not None and wanted not in known.nodes:
        raise CommandError(
            f"There is no place {site}/{wanted}", code="no-place",
            remedy=f"Places there: {', '.join(list(known.nodes)[:20])}.",
        )  # fmt: skip
    free = [name for name in ([wanted] if wanted is not None else known.nodes) if name not in taken]
    if not free:
        raise CommandError(
            f"{site}/{wanted} has a machine already"
            if wanted
            else f"All {len(known.nodes)} places at {site} are taken",
            code="place-taken",
            remedy="Choose another place, or add nodes to the topology.",
        )
    return free[0]


def make_grant(
    pki: Pki,
    places: Places,
    site: str,
    place: str,
    csr: str,
    labels: Mapping[str, str],
    life: timedelta,
    *,
    was_at: str | None = None,
) -> tuple[str, str]:
    """Certify a machine's key for a place, and return its signed grant and the signature.

    Args:
        was_at: the site that the machine knows itself at; None: this one. If it is another, and the key of its authority is there, the
            signature is followed by a space and that authority's release.
    Raises:
        PkiError: the authority cannot certify it.
        BadGrant: the configuration is too large.
    """
    what = places.sites[site].nodes[place]
    entry = pki.certify(Identity(IdentityKind.NODE, site, place), x509.load_pem_x509_csr(csr.encode()), life)
    grant = NodeGrant(
        node=f"{places.region}/{site}/{place}",
        certificate=read(entry.folder / "tls.crt").decode(),
        trust=read(entry.folder / "trust.crt").decode(),
        revocations=read(entry.folder / "trust.crl").decode(),
        configuration=what.configuration,
        files=what.files,
        missing=what.missing,
        labels=dict(labels),
        broker=places.sites[site].broker or places.broker,
    )
    text, signature = sign_grant(grant, pki.authority(site).key())
    if was_at not in (None, site) and (pki.folder / str(was_at) / "ca.key").exists():
        signature = f"{signature} {release_grant(text, pki.authority(str(was_at)).key())}"
    return text, signature
