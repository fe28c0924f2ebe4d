"""Provides requested certificates: issues missing ones and renews those that expire soon.

Idempotent. A failure is reported and does not stop the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple

from hedgerow.pki.certificates import usual_life
from hedgerow.pki.entry import CertificateEntry
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import Identity, PkiError

Action = Literal["issued", "renewed", "changed", "kept", "elsewhere", "enrols", "failed"]


class CertificateRequest(NamedTuple):
    """A certificate to provide.

    Attributes:
        role: what it is, for people to read.
        hosts: addresses of a broker; empty for all other identities.
        enrols: whether its machine makes the key and enrols: then it gets no first certificate here.
    """

    who: Identity
    role: str
    hosts: tuple[str, ...] = ()
    enrols: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    """Outcome for a requested certificate.

    Attributes:
        action: "elsewhere" if its authority's key is not here, so that it cannot be issued here; "enrols" if its machine has
            not enrolled yet.
        entry: the current certificate; None if there is none.
        why: why it was changed, or could not be provided.
        remedy: what to do about that; "" if nothing.
    """

    who: Identity
    role: str
    action: Action
    entry: CertificateEntry | None = None
    why: str = ""
    remedy: str = ""


def provide(
    pki: Pki, wanted: Iterable[CertificateRequest], life: timedelta | None, *, dry_run: bool = False
) -> Iterator[Provided]:
    """Provide certificates one by one; each is written before its outcome is yielded.

    Args:
        life: how long new ones are valid; None, and for operators always: as usual for their role. Renewals keep the life
            they were requested with.
        dry_run: only report what would be done, with the current entry.
    """
    for one in wanted:
        try:
            yield _provide(pki, one, life, dry_run=dry_run)
        except PkiError as error:
            yield Provided(who=one.who, role=one.role, action="failed", why=str(error), remedy=error.remedy)


def _provide(pki: Pki, one: CertificateRequest, life: timedelta | None, *, dry_run: bool) -> Provided:
    who, entry = one.who, pki.find(one.who)
    signer = pki.authority(who.authority)
    if signer.exists and not signer.key_file.exists():
        return Provided(who=who, role=one.role, action="elsewhere", entry=entry)
    if one.enrols and (entry is None or entry.revoked is not None):
        return Provided(who=who, role=one.role, action="enrols")
    if entry is not None and entry.revoked is not None:
        raise PkiError(
            f"{who} was revoked: {entry.revoked}",
            remedy=f"To give it a new key and certificate: `hedgerow pki issue {who}`; else remove it from the file.",
        )
    action, why = _due(pki, one, entry)
    # Keep hosts that were added by hand: an address, a former name.
    hosts = tuple(dict.fromkeys((*one.hosts, *(entry.hosts if entry is not None else ()))))
    if action != "kept" and signer.exists:  # it may not exist in a dry run
        pki.check_hosts(who.authority, hosts)
    if not dry_run and action == "issued":
        usual = usual_life(one.role)
        entry = pki.issue(who, usual if life is None or one.role == "operator" else life, role=one.role, hosts=hosts)
    elif not dry_run and action != "kept":
        entry = pki.amend(who, one.role, hosts)
    return Provided(who=who, role=one.role, action=action, entry=entry, why=why)


def _due(pki: Pki, one: CertificateRequest, entry: CertificateEntry | None) -> tuple[Action, str]:
    if entry is None:
        return "issued", ""
    if missing := [host for host in one.hosts if host not in entry.hosts]:
        return "changed", f"now reached as {', '.join(missing)}"
    if entry.role != one.role:
        return "changed", f"was {entry.role}"
    return ("renewed", "") if pki.is_due(one.who) else ("kept", "")


def surplus(pki: Pki, wanted: Iterable[CertificateRequest]) -> Iterator[CertificateEntry]:
    """Yield valid certificates that were not requested and whose authority's key is here."""
    known = {str(one.who) for one in wanted}
    for signer in pki.authorities():
        for home in pki.homes(signer.name) if signer.key_file.exists() else ():
            with suppress(PkiError):  # a damaged one is reported where it is requested
                entry = pki.entry(home)
                if entry.name not in known and entry.revoked is None and entry.ends > pki.now():
                    yield entry
