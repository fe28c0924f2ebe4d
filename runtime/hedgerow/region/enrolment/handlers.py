"""Handles operators' requests about claims and machines. Each runs in a transaction of the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hedgerow.enrolment.claim import CLAIM_ID
from hedgerow.enrolment.grant import verify_grant
from hedgerow.enrolment.places import read_places
from hedgerow.errors import CommandError
from hedgerow.labels import check_labels
from hedgerow.pki.folder import Pki
from hedgerow.region.config import RegionConfig
from hedgerow.region.enrolment.approval import choose_place, make_grant
from hedgerow.region.enrolment.registrar import Granted, Registrar, approve
from hedgerow.region.enrolment.store import APPROVED, PENDING, REJECTED, EnrolmentStore, StoredClaim, StoredMachine
from hedgerow.region.store.audit import Actor, save_audit
from hedgerow.region.store.database.database import Database
from hedgerow.topics import is_name

_MOST_CLAIMS: Final = 10_000
_LONGEST_HOURS: Final = 24 * 90
_SHORTEST_PREFIX: Final = 4


@dataclass(frozen=True, slots=True)
class EnrolmentOperation:
    """A request and its context."""

    database: Database
    config: RegionConfig
    args: Mapping[str, Any]
    by: Actor
    now: float

    @property
    def store(self) -> EnrolmentStore:
        """The tables."""
        return EnrolmentStore(self.database)

    def audit(self, action: str, **detail: Any) -> None:
        """Add an entry to the audit log."""
        save_audit(self.database, self.by, action, self.now, **detail)


def _create(operation: EnrolmentOperation) -> Any:
    args, store = operation.args, operation.store
    ident, site, place = str(args["id"]), str(args["site"]), args["place"]
    uses, hours, labels = int(args["uses"]), float(args["hours"]), dict(args["labels"])
    check_labels(labels)
    if not (CLAIM_ID.fullmatch(ident) and is_name(site) and (place is None or is_name(place))):
        raise CommandError("The claim is invalid", remedy="Use `hedgerow claim create`.")
    if len(bytes.fromhex(str(args["public_key"]))) != 32 or not 0 < hours <= _LONGEST_HOURS or not 0 < uses <= 100_000:
        raise CommandError(
            "The claim is invalid", remedy=f"Give 1 to 100,000 uses, and at most {_LONGEST_HOURS} hours."
        )
    if place is not None and uses != 1:
        raise CommandError("A claim for one place is for one machine", remedy="Leave --count or --place out.")
    if len(store.claims()) >= _MOST_CLAIMS:
        raise CommandError(f"There are {_MOST_CLAIMS} claims", remedy="One claim may be for many machines: --count.")
    expires_at = operation.now + hours * 3600
    public = str(args["public_key"])
    store.add_claim(StoredClaim(ident, site, place, public, uses, 0, operation.now, expires_at, labels, operation.by))
    operation.audit(
        "claim-created", claim=ident, site=site, place=place, uses=uses, expires_at=expires_at, labels=labels
    )
    return {"claim": ident, "site": site, "place": place, "uses": uses, "expires_at": expires_at}


def _revoke(operation: EnrolmentOperation) -> Any:
    ident = str(operation.args["id"])
    if operation.store.claim(ident) is None:
        raise CommandError(f"There is no claim {ident}", code="no-claim", remedy="`hedgerow claim list` lists them.")
    if operation.store.revoke_claim(ident, operation.now):
        operation.audit("claim-revoked", claim=ident)
    waiting = [one.fingerprint for one in operation.store.machines(PENDING) if one.claim == ident]
    return {"claim": ident, "pending": waiting}


def _approve(operation: EnrolmentOperation) -> Any:
    machine = find_machine(operation.store, str(operation.args["machine"]))
    wanted, grant = operation.args["place"], operation.args.get("grant")
    if machine.state == APPROVED and machine.node == (wanted or machine.node) and grant is None:
        granted = Granted.of(machine)
        registrar = Registrar(operation.database, operation.config.region.name, operation.config.enrolment)
        if granted.moved or granted.is_due(operation.now) or registrar.is_revoked(machine, granted, operation.now):
            renewed = registrar.renew(machine, granted, operation.now)
            approve(
                operation.database,
                machine,
                str(machine.node),
                (renewed.grant, renewed.signature),
                operation.by,
                operation.now,
            )
        return {"node": f"{machine.site}/{machine.node}", "fingerprint": machine.fingerprint, "again": True}
    if machine.state == REJECTED or (machine.state == APPROVED and machine.node != wanted):
        raise _decided(machine)
    if machine.state == PENDING and wanted in operation.store.taken(machine.site):
        raise CommandError(
            f"{machine.site}/{wanted} has a machine already", code="place-taken", remedy="Choose another place."
        )
    if grant is None:
        place, signed = _sign(operation, machine, wanted)
    else:
        place, signed = str(wanted), (str(grant["text"]), str(grant["signature"]))
        _check_grant(operation, machine, place, signed)
    approve(operation.database, machine, place, signed, operation.by, operation.now)
    return {"node": f"{machine.site}/{place}", "fingerprint": machine.fingerprint, "again": False}


def _sign(operation: EnrolmentOperation, machine: StoredMachine, wanted: Any) -> tuple[str, tuple[str, str]]:
    config = operation.config.enrolment
    if config.pki is None or config.places is None:
        raise CommandError(
            "The service has no authority's key",
            code="no-authority",
            remedy="Sign where the key is: `hedgerow node approve MACHINE --folder pki --places places.json`.",
        )
    places, claim = read_places(config.places), operation.store.claim(machine.claim)
    place = choose_place(
        places, machine.site, wanted or (claim.place if claim else None), operation.store.taken(machine.site)
    )
    pki = Pki(config.pki, lambda: datetime.fromtimestamp(operation.now, UTC))
    labels = dict(claim.labels) if claim else {}
    life = timedelta(days=config.days)
    return place, make_grant(pki, places, machine.site, place, machine.csr, labels, life)


def _check_grant(operation: EnrolmentOperation, machine: StoredMachine, place: str, signed: tuple[str, str]) -> None:
    """Check what an operator signed, so that the machine does not refuse it.

    Raises: BadGrant, CommandError: it is not for this machine and place.
    """
    root = root_of(operation.config)
    key = x509.load_pem_x509_csr(machine.csr.encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - checked when it asked
    text, signature = signed
    grant = verify_grant(text, signature.partition(" ")[0], root, key, machine.site)
    if grant.node != f"{operation.config.region.name}/{machine.site}/{place}":
        raise CommandError(f"The grant is for {grant.node}", remedy="Use `hedgerow node approve`.")


def root_of(config: RegionConfig) -> x509.Certificate:
    """Return the region's root certificate, which the service trusts at its broker.

    Raises: CommandError: its configuration names none.
    """
    file = config.broker.tls.ca_file
    if file is not None:
        for one in x509.load_pem_x509_certificates(file.read_bytes()):
            if one.subject == one.issuer:
                return one
    raise CommandError(
        "The region's root certificate is not known",
        code="no-root",
        remedy="Set `broker: {tls: {ca_file: …/trust.crt}}` in region.yaml.",
    )


def _reject(operation: EnrolmentOperation) -> Any:
    """Reject a pending machine, or take its place from an approved one, whose certificate must then be revoked."""
    machine = find_machine(operation.store, str(operation.args["machine"]))
    by, had = operation.by, machine.state == APPROVED
    if machine.state != REJECTED:
        rejected = replace(
            machine,
            state=REJECTED,
            decided_at=operation.now,
            who=by.name,
            reason=by.why or "a person rejected it",
            grant="",
            signature="",
        )
        operation.store.decide(rejected)
        detail = {"fingerprint": machine.fingerprint, "site": machine.site, "claim": machine.claim}
        operation.audit("enrolment-withdrawn" if had else "enrolment-rejected", **detail, node=machine.node)
    return {
        "fingerprint": machine.fingerprint,
        "site": machine.site,
        "revoke": f"{machine.site}/{machine.node}" if machine.node is not None else None,
    }


def _decided(machine: StoredMachine) -> CommandError:
    what = f"approved as {machine.site}/{machine.node}" if machine.state == APPROVED else "rejected"
    return CommandError(
        f"{machine.fingerprint[:16]} was {what} by {machine.who}",
        code="decided",
        remedy=f"To take its place from it: `hedgerow node reject {machine.fingerprint[:16]}`."
        if machine.state == APPROVED
        else "It may ask again with another key: in another folder, with a new claim.",
    )


def find_machine(store: EnrolmentStore, text: str) -> StoredMachine:
    """Return the machine whose fingerprint begins with a text.

    Raises: CommandError: there is none, or several.
    """
    prefix = text.replace(":", "").lower()
    found = []
    if len(prefix) >= _SHORTEST_PREFIX and all(char in "0123456789abcdef" for char in prefix):
        found = store.machines(prefix=prefix)
    if len(found) == 1:
        return found[0]
    raise CommandError(
        f"{len(found)} machines have a fingerprint that begins with {text[:80]}"
        if found
        else f"No machine {text[:80]} has asked",
        code="unknown-machine",
        remedy="`hedgerow node pending` lists them; give at least four digits of the fingerprint.",
    )


EnrolmentAction = Callable[[EnrolmentOperation], Any]

ACTIONS: Final[Mapping[str, EnrolmentAction]] = {
    "claim-create": _create,
    "claim-revoke": _revoke,
    "node-approve": _approve,
    "node-reject": _reject,
}
"""What operators may request, by verb."""
