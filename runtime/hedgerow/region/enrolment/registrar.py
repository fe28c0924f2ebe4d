"""Answers machines that ask to be nodes. Each answer is on the store's disk before it is given.

Rules:
- A machine is its key. The same key gets the same answer, however often it asks.
- Whoever asks first needs a claim, and each machine uses it once; a claim that is stolen and used shows in `hedgerow node pending`.
- Nobody is approved but by a person or by a rule of the region's configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hedgerow.enrolment.answer import Answer
from hedgerow.enrolment.grant import site_of
from hedgerow.enrolment.places import Places, read_places
from hedgerow.enrolment.request import EnrolmentRefused, EnrolmentRequest, read_request
from hedgerow.errors import CommandError, ConfigError, HedgerowError
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import Identity, IdentityKind
from hedgerow.region.config import EnrolmentSection
from hedgerow.region.enrolment.approval import choose_place, make_grant
from hedgerow.region.enrolment.rules import MAKER, Rules
from hedgerow.region.enrolment.store import APPROVED, PENDING, REJECTED, EnrolmentStore, StoredClaim, StoredMachine
from hedgerow.region.store.audit import SERVICE, Actor, save_audit
from hedgerow.region.store.database.database import Database, StoreRefused

log = structlog.get_logger(__name__)

_FIRST_PAUSE_S: Final = 2.0
_PAUSE_S: Final = 10.0
_LATER_PAUSE_S: Final = 60.0
"""Pauses before a pending machine asks again: at first, in the first hour, and later."""
_NOTED_EVERY_S: Final = 60.0
_ASKED_BEFORE: Final = "It asked before the region's store was put back to a backup: a person decides"


class Registrar:
    """Decides about requests. One thread uses it.

    Args:
        database: opened with `alongside`.
        region: its name.
        config: the section `enrolment` of the region's configuration.
    """

    def __init__(self, database: Database, region: str, config: EnrolmentSection) -> None:
        self._database = database
        self._region = region
        self._config = config
        self._store = EnrolmentStore(database)
        self._rules = Rules(config)
        self._read: tuple[tuple[int, int], Places] | None = None
        ((restored_at,),) = database.rows("SELECT coalesce(max(at), 0) FROM restoration")
        self._restored_at = float(restored_at)

    def answer(self, site: str, client: str, payload: bytes, now: float) -> Answer:
        """Answer a request.

        Args:
            site, client: from its topic.
            now: Unix seconds.
        Raises:
            EnrolmentRefused: it is not valid, or its claim doesn't let it in.
            RegionStoreError: the store does not work.
        """
        request = read_request(payload, client, self._region, site)
        machine = self._store.machine(request.fingerprint)
        if machine is None:
            return _answer(self._decide(self._admitted(request, now), now, new=True), now)
        if machine.site != site and not _was_moved_from(machine, site):
            raise EnrolmentRefused("another-site", f"This machine has asked at {machine.site}")
        if now - machine.seen_at > _NOTED_EVERY_S:
            with self._database.transaction():
                self._store.seen(machine.fingerprint, now)
        if machine.state == PENDING:
            machine = self._decide(machine, now)
        elif machine.state == APPROVED:
            machine = self._renewed(machine, now)
        return _answer(machine, now)

    def _admitted(self, request: EnrolmentRequest, now: float) -> StoredMachine:
        """Return a machine that asks for the first time; it is not stored yet.

        Raises: EnrolmentRefused: it has no claim that lets it in.
        """
        site, total, by_site = request.body.site, *self._store.pending()
        if by_site.get(site, 0) >= self._config.pending_per_site or total >= self._config.pending:
            raise EnrolmentRefused(
                "too-many-pending", f"{by_site.get(site, 0)} machines are pending at {site}, {total} in all",
                remedy="Approve or reject some: `hedgerow node pending`.",
            )  # fmt: skip
        certified = self._rules.manufacturer(request, datetime.fromtimestamp(now, UTC))
        if certified is not None:
            self._require_unused(certified)
        ident = certified or self._claim(request, now).id
        return StoredMachine(
            request.fingerprint, site, ident, request.body.csr, request.body.machine, PENDING, now, now
        )

    def _insert(self, machine: StoredMachine, now: float) -> None:
        """Store a machine that asks for the first time, and count the use of its claim. Within the caller's transaction.

        Raises: EnrolmentRefused: its claim has been used meanwhile.
        """
        if machine.claim.startswith(MAKER):
            self._require_unused(machine.claim)
        elif not self._store.use_claim(machine.claim):
            raise _used(machine.claim)
        self._store.add_machine(machine)
        detail = {"fingerprint": machine.fingerprint, "site": machine.site, "claim": machine.claim}
        save_audit(self._database, Actor(SERVICE), "enrolment-asked", now, **detail)
        log.info("enrolment-asked", site=machine.site, fingerprint=machine.fingerprint, claim=machine.claim)

    def _require_unused(self, certified: str) -> None:
        """Raises: EnrolmentRefused: a machine that asked with this manufacturer's certificate is pending or a node."""
        for other in self._store.with_claim(certified):
            if other.state != REJECTED:
                shown = other.fingerprint[:16]
                raise EnrolmentRefused(
                    "certificate-used",
                    f"Another key asked with the certificate of {certified.removeprefix(MAKER)} before: {shown}, {other.state}",
                    remedy=f"If the machine was reset, reject that one, and try again: `hedgerow node reject {shown}`.",
                )

    def _claim(self, request: EnrolmentRequest, now: float) -> StoredClaim:
        """Return the claim that lets a machine ask.

        Raises: EnrolmentRefused: there is none.
        """
        ident = request.body.claim
        claim = None if ident is None else self._store.claim(ident)
        if claim is None or not request.has_claim(bytes.fromhex(claim.public_key)):
            raise EnrolmentRefused("no-claim", "No claim lets this machine ask")
        if claim.revoked_at is not None:
            raise EnrolmentRefused("claim-revoked", f"The claim {claim.id} was revoked")
        if now >= claim.expires_at:
            raise EnrolmentRefused("claim-expired", f"The claim {claim.id} has expired")
        if claim.site != request.body.site:
            raise EnrolmentRefused("claim-of-another-site", f"The claim {claim.id} is for {claim.site}")
        if claim.used >= claim.uses:
            raise _used(claim.id)
        return claim

    def _decide(self, machine: StoredMachine, now: float, *, new: bool = False) -> StoredMachine:
        """Approve a machine if a rule does, and store it if it is new: in one transaction, since each waits for the disk."""
        rule, place, signed, reason = self._by_rule(machine, now)
        try:
            with self._database.transaction():
                if new:
                    self._insert(machine, now)
                if signed is None:
                    return replace(machine, reason=reason)
                return approve(self._database, machine, place, signed, Actor(SERVICE, f"rule {rule}"), now, rule=rule)
        except StoreRefused:  # a person has just given that place to another machine
            if new:
                with self._database.transaction():
                    self._insert(machine, now)
            return machine
        except CommandError:  # a person has just decided about this machine
            return self._store.machine(machine.fingerprint) or machine

    def _by_rule(self, machine: StoredMachine, now: float) -> tuple[str, str, tuple[str, str] | None, str]:
        """Return the rule that approves a machine, its place, its signed grant, None if there is none, and why not."""
        claim = self._store.claim(machine.claim)
        rule = self._rules.match(machine, claim, self._store)
        if rule is None or self._config.pki is None:
            return "", "", None, machine.reason
        if machine.claim.startswith(MAKER) and self._store.with_claim(machine.claim, other_than=machine.fingerprint):
            return rule, "", None, "a machine with this certificate was rejected before: this takes a person"
        if machine.asked_at < self._restored_at:  # it may have been rejected after the backup that was put back
            return rule, "", None, _ASKED_BEFORE
        try:
            places = self._places()
            wanted = claim.place if claim is not None else None
            taken = self._store.taken(machine.site) | self._store.forgotten(machine.site)  # those take a person
            place = choose_place(places, machine.site, wanted, taken)
            labels, life = (dict(claim.labels) if claim is not None else {}), timedelta(days=self._config.days)
            return rule, place, make_grant(self._pki(now), places, machine.site, place, machine.csr, labels, life), ""
        except HedgerowError as error:  # a person can still approve it, or mend what is wrong
            log.warning("enrolment-not-approved", rule=rule, fingerprint=machine.fingerprint, error=str(error))
            return rule, "", None, str(error)

    def _renewed(self, machine: StoredMachine, now: float) -> StoredMachine:
        """Return what a machine gets that asks again: with another certificate if that is due, or if its place has changed.

        What has expired and cannot be renewed here takes a person: the machine is then answered as pending.
        """
        granted = Granted.of(machine)
        if not (granted.moved or granted.is_due(now)):
            return machine
        expired_s = now - granted.ends
        if expired_s > self._config.grace_days * 86_400:
            return replace(
                machine,
                state=PENDING,
                reason=f"its certificate expired {expired_s / 86_400:.0f} days ago, more than `grace_days`: approve it again",
            )
        try:
            if self.is_revoked(machine, granted, now):
                raise CommandError(
                    f"the certificate of {granted.place} was revoked",
                    code="revoked",
                    remedy=f"`hedgerow node reject {machine.fingerprint[:16]}`; or, if it may go on, `hedgerow node approve`.",
                )
            renewed = self.renew(machine, granted, now)
        except HedgerowError as error:
            log.warning("enrolment-not-renewed", fingerprint=machine.fingerprint, error=str(error), remedy=error.remedy)
            return (
                machine
                if expired_s < 0
                else replace(machine, state=PENDING, reason=f"its certificate expired: {error}")
            )
        with self._database.transaction():
            if not self._store.decide(renewed, was=machine.state):  # a person has rejected it meanwhile
                return self._store.machine(machine.fingerprint) or machine
            if granted.moved or expired_s > 0:
                detail = {
                    "fingerprint": machine.fingerprint,
                    "node": f"{machine.site}/{machine.node}",
                    "was": granted.place,
                }
                save_audit(self._database, Actor(SERVICE), "enrolment-renewed", now, **detail)
        return renewed

    def is_revoked(self, machine: StoredMachine, granted: Granted, now: float) -> bool:
        """Whether somebody revoked its certificate, as far as the service can know, and has not said here what becomes of it."""
        key, (site, node) = x509.load_pem_x509_csr(machine.csr.encode()).public_key(), granted.place.split("/")
        assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - checked when it asked
        return self._config.pki is not None and self._pki(now).was_revoked(Identity(IdentityKind.NODE, site, node), key)

    def renew(self, machine: StoredMachine, granted: Granted, now: float) -> StoredMachine:
        """Return a machine with another grant for the place that it has. Raises: HedgerowError: the service cannot sign it."""
        if self._config.pki is None:
            raise CommandError(
                "the service has no authority's key",
                code="no-authority",
                remedy=f"Sign where the key is: `hedgerow node approve {machine.fingerprint[:16]} --folder pki`.",
            )
        places, claim = self._places(), self._store.claim(machine.claim)
        place = choose_place(places, machine.site, machine.node, ())
        labels = dict(claim.labels) if claim is not None else {}
        life = timedelta(days=self._config.days)
        grant, signature = make_grant(
            self._pki(now), places, machine.site, place, machine.csr, labels, life, was_at=granted.site
        )
        return replace(machine, grant=grant, signature=signature)

    def _places(self) -> Places:
        if self._config.places is None:
            raise ConfigError("`enrolment: {places}` is not set", remedy="Name the file that `topology render` writes.")
        file = self._config.places
        try:
            state = file.stat()
        except OSError:
            return read_places(file)  # raises with the reason
        version = (state.st_mtime_ns, state.st_size)
        if self._read is None or self._read[0] != version:  # a thousand places take longer to read than to sign for one
            self._read = version, read_places(file)
        return self._read[1]

    def _pki(self, now: float) -> Pki:
        assert self._config.pki is not None  # noqa: S101 - the callers have checked
        return Pki(self._config.pki, lambda: datetime.fromtimestamp(now, UTC))


def approve(
    database: Database,
    machine: StoredMachine,
    place: str,
    grant: tuple[str, str],
    by: Actor,
    now: float,
    *,
    rule: str = "",
) -> StoredMachine:
    """Store that a machine is approved, with what it gets, and the entry in the audit log. Within the caller's transaction."""
    made = replace(
        machine,
        state=APPROVED,
        decided_at=now,
        node=place,
        who=by.name,
        reason=by.why,
        rule=rule,
        grant=grant[0],
        signature=grant[1],
    )
    if not EnrolmentStore(database).decide(made, was=machine.state):
        raise CommandError(
            f"{machine.fingerprint[:16]} was decided about meanwhile",
            code="decided",
            remedy="See `hedgerow node pending`.",
        )
    detail = {"fingerprint": machine.fingerprint, "node": f"{machine.site}/{place}", "claim": machine.claim}
    save_audit(database, by, "enrolment-approved", now, **detail, **({"rule": rule} if rule else {}))
    log.info("enrolment-approved", node=f"{machine.site}/{place}", fingerprint=machine.fingerprint, who=by.name)
    return made


@dataclass(frozen=True, slots=True)
class Granted:
    """What a machine was granted last.

    Attributes:
        place: SITE/NODE.
        moved: whether it has another place now.
        begins, ends: validity of its certificate, Unix seconds.
    """

    place: str
    moved: bool
    begins: float
    ends: float

    @classmethod
    def of(cls, machine: StoredMachine) -> Granted:
        """Return what an approved machine was granted."""
        grant = orjson.loads(machine.grant)
        own = x509.load_pem_x509_certificates(grant["certificate"].encode())[0]
        place = grant["node"].partition("/")[2]
        # An authority's certificates begin a day before they are made, for clocks that are behind.
        begins = own.not_valid_before_utc.timestamp() + 86_400
        return cls(place, place != f"{machine.site}/{machine.node}", begins, own.not_valid_after_utc.timestamp())

    @property
    def site(self) -> str:
        """Its site."""
        return self.place.partition("/")[0]

    def is_due(self, now: float) -> bool:
        """Whether less than a third of the certificate's life is left."""
        return self.ends - now < (self.ends - self.begins) / 3


def _used(claim: str) -> EnrolmentRefused:
    return EnrolmentRefused("claim-used", f"The claim {claim} has been used as often as it may be")


def _was_moved_from(machine: StoredMachine, site: str) -> bool:
    """Whether a machine may still ask at a site that it is not at any more: it cannot know yet."""
    return machine.state == APPROVED and (" " in machine.signature or site_of(machine.grant) == site)


def _answer(machine: StoredMachine, now: float) -> Answer:
    if machine.state == APPROVED:
        signature, _, release = machine.signature.partition(" ")
        return Answer(state="approved", grant=machine.grant, signature=signature, release=release)
    if machine.state == REJECTED:
        return Answer(state="rejected", code="rejected", detail=machine.reason)
    waited_s = now - machine.asked_at
    pause_s = _FIRST_PAUSE_S if waited_s < 60 else _PAUSE_S if waited_s < 3600 else _LATER_PAUSE_S
    return Answer(state="pending", code="pending", detail=machine.reason, again_s=pause_s)
