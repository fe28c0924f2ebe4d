"""Rules by which machines are approved, and manufacturers whose certificates stand in place of a claim."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hedgerow.enrolment.request import EnrolmentRefused, EnrolmentRequest
from hedgerow.errors import ConfigError
from hedgerow.labels import parse_selector
from hedgerow.pki import certificates
from hedgerow.region.config import EnrolmentRule, EnrolmentSection
from hedgerow.region.enrolment.store import EnrolmentStore, StoredClaim, StoredMachine


class Rules:
    """The rules of a region.

    Args:
        config: the section `enrolment` of the region's configuration.
    """

    def __init__(self, config: EnrolmentSection) -> None:
        self._config = config

    def match(self, machine: StoredMachine, claim: StoredClaim | None, store: EnrolmentStore) -> str | None:
        """Return the name of the first rule that approves a machine; None if none does.

        A serial number counts only if the manufacturer's certificate says it: what a machine says of itself proves nothing.
        """
        for rule in self._config.rules:
            if self._applies(rule, machine, claim) and store.by_rule(rule.name) < rule.count:
                return rule.name
        return None

    def _applies(self, rule: EnrolmentRule, machine: StoredMachine, claim: StoredClaim | None) -> bool:
        if machine.site not in rule.sites and rule.sites:
            return False
        if rule.labels and not (claim is not None and parse_selector(rule.labels).matches(claim.labels)):
            return False
        if rule.serials is not None:
            return claim is None and machine.claim.removeprefix(MAKER) in _lines(rule.serials)
        return claim is not None or rule.any_serial

    def manufacturer(self, request: EnrolmentRequest, now: datetime) -> str | None:
        """Return how the store names the manufacturer's certificate that a request shows; None if it shows none.

        Raises: EnrolmentRefused: it shows one that does not prove anything here.
        """
        if not request.certificates:
            return None
        if self._config.manufacturers is None:
            raise EnrolmentRefused(
                "unknown-manufacturer",
                "This region takes no manufacturer's certificates",
                remedy="Set `enrolment: {manufacturers: FILE}`, or use a claim.",
            )
        own = request.certificates[0]
        try:
            _check_chain(request.certificates, _roots(self._config.manufacturers), now)
            key = own.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise InvalidSignature
            key.verify(request.maker, request.signed, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, *certificates.UNREADABLE) as error:
            raise EnrolmentRefused(
                "unknown-manufacturer",
                f"Its manufacturer's certificate proves nothing: {error}",
                remedy="Check `enrolment: {manufacturers: FILE}` and the machine's certificate.",
            ) from error
        return MAKER + serial_of(own)


MAKER = "maker:"
"""Begins what the store has in place of a claim for machines that show a manufacturer's certificate."""


def serial_of(certificate: x509.Certificate) -> str:
    """Return the serial number of a machine, which its manufacturer's certificate names (IEEE 802.1AR §8.6)."""
    found = certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    return str(found[0].value)[:64] if found else f"{certificate.serial_number:x}"[:64]


def _check_chain(chain: Iterable[x509.Certificate], roots: Iterable[x509.Certificate], now: datetime) -> None:
    """Check that each certificate is signed by the next one, and the last one by a root.

    Raises: InvalidSignature, ValueError, TypeError: it is not, has expired, or an issuer may not issue.
    """
    own, *issuers = chain
    for one in (own, *issuers):
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise ValueError("it has expired")
    below = own
    for issuer in issuers:
        if not certificates.is_authority(issuer):
            raise ValueError("an issuer is no authority")
        below.verify_directly_issued_by(issuer)
        below = issuer
    for root in roots:
        try:
            below.verify_directly_issued_by(root)
        except (InvalidSignature, *certificates.UNREADABLE):
            continue
        if certificates.is_authority(root):
            return
    raise ValueError("no known manufacturer issued it")


def _roots(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EnrolmentRefused(
            "unknown-manufacturer", "The list of manufacturers cannot be read", remedy=f"Check {path}: {error}"
        ) from error


def _lines(path: Path) -> set[str]:
    """Return the serial numbers in a file, one a line."""
    try:
        return {line.strip() for line in path.read_text("utf-8").splitlines() if line.strip() and line[0] != "#"}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", remedy="Write a serial number on each line.") from error
