"""Provides all certificates that a topology needs, for `hedgerow pki apply` and demos."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from hedgerow.pki.entry import CertificateEntry
from hedgerow.pki.folder import Passphrase, Pki
from hedgerow.pki.names import PkiError
from hedgerow.pki.provide import Provided, provide, surplus
from hedgerow.topology.identities import authorities, needed
from hedgerow.topology.model import REGION_AUTHORITY, Topology


@dataclass(frozen=True, slots=True)
class Certified:
    """Outcome of `certify`.

    Attributes:
        created: the root and authorities that were created.
        certificates: outcome for each certificate that the topology needs.
        surplus: valid certificates that the topology does not name; they are left alone.
        expiring: authorities that expire soon.
        lists: authorities whose revocation list was renewed.
    """

    created: list[str]
    certificates: list[Provided]
    surplus: list[CertificateEntry]
    expiring: list[CertificateEntry]
    lists: list[str]


def certify(
    topology: Topology,
    pki: Pki,
    life: timedelta | None,
    *,
    init: bool = False,
    passphrase: Passphrase = lambda: None,
    without: Collection[str] = (),
    list_life: timedelta | None = None,
    dry_run: bool = False,
) -> Certified:
    """Issue or renew certificates so that every identity in a topology has a valid one.

    Args:
        life: how long new certificates are valid; None, and for operators always: as usual for their role.
        init: create a missing root and authorities; these may only certify the topology's hosts.
        passphrase: of the root's key; called only if the key is created or used.
        without: authorities managed elsewhere, with everything they certify.
        list_life: how long revocation lists are valid from now on; None: as long as before.
        dry_run: only report what would be done.
    Raises: PkiError: an authority is missing and `init` is not set, or it cannot be created.
    """
    hosts = {name: names for name, names in authorities(topology).items() if name not in without}
    pki.check_region(topology.region.name)
    made = pki.missing([name for name in (REGION_AUTHORITY, *hosts) if name not in without])
    if not pki.root.exists:
        made.insert(0, "root")
    if made and not init:
        raise PkiError(
            f"There is no {'root' if made[0] == 'root' else 'authority'} yet: {pki.folder} lacks {', '.join(made)}",
            remedy="Add --init to create what is missing, where the root's key is; or name the right --folder. "
            "For an authority that is kept elsewhere: --without NAME.",
        )
    if not dry_run and made:
        made = pki.init(topology.region.name, list(hosts), passphrase, hosts)
    wanted = [one.wanted for one in needed(topology) if one.wanted.who.authority not in without]
    return Certified(
        made,
        list(provide(pki, wanted, life, dry_run=dry_run)),
        [entry for entry in surplus(pki, wanted) if entry.folder.parent.parent.name not in without],
        [entry for entry in pki.signers() if entry.is_short(pki.now())] if pki.root.exists else [],
        pki.renew_lists(list_life, dry_run=dry_run),
    )
