"""Rules by which machines are approved, and manufacturers whose certificates stand in place of a claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

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
        remedy = "Check `enrolment: {manufacturers: FILE}` and the machine's certificate."
        if not all(one.not_valid_before_utc <= now <= one.not_valid_after_utc for one in request.certificates):
            raise EnrolmentRefused(
                "certificate-expired", "Its manufacturer's certificate is not valid now", remedy=remedy
            )
        try:
            _check_chain(request.certificates, _roots(self._config.manufacturers))
            serial = serial_of(own)
        except (InvalidSignature, x509.InvalidVersion, *certificates.UNREADABLE) as error:
            raise EnrolmentRefused(
                "unknown-manufacturer", f"Its manufacturer's certificate proves nothing: {error}", remedy=remedy
            ) from error
        key = own.public_key()
        try:
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise InvalidSignature
            key.verify(request.maker, request.signed, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, *certificates.UNREADABLE) as error:
            raise EnrolmentRefused(
                "bad-proof", "The request does not prove that the machine has the key of its manufacturer's certificate"
            ) from error
        return MAKER + serial


_LONGEST_SERIAL: Final = 64
MAKER: Final = "maker:"
"""Begins what the store has in place of a claim for machines that show a manufacturer's certificate."""


def serial_of(certificate: x509.Certificate) -> str:
    """Return the serial number of a machine, which its manufacturer's certificate names (IEEE 802.1AR §8.6).

    Raises: ValueError: it is not one that a person could compare.
    """
    found = certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    text = str(found[0].value) if found else f"{certificate.serial_number:x}"
    if len(text) > _LONGEST_SERIAL or not text.isprintable() or text != text.strip():
        raise ValueError(f"its serial number is not plain text of up to {_LONGEST_SERIAL} characters")
    return text


def _check_chain(chain: Sequence[x509.Certificate], roots: Iterable[x509.Certificate]) -> None:
    """Check that each certificate is signed by the next one, and the last one by a root.

    Raises: InvalidSignature, ValueError, TypeError: it is not, or an issuer may not issue.
    """
    below, *issuers = chain
    if certificates.is_authority(below):
        raise ValueError("it is an authority's, not a machine's")
    for depth, issuer in enumerate(issuers):
        if not _may_issue(issuer, depth):
            raise ValueError("an issuer is no authority, or not for so many below it")
        below.verify_directly_issued_by(issuer)
        below = issuer
    for root in roots:
        try:
            below.verify_directly_issued_by(root)
        except (InvalidSignature, *certificates.UNREADABLE):
            continue
        if _may_issue(root, len(issuers)):
            return
    raise ValueError("no known manufacturer issued it")


def _may_issue(authority: x509.Certificate, below: int) -> bool:
    """Whether it is an authority's that may have so many authorities below it."""
    if not certificates.is_authority(authority):
        return False
    longest = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return longest is None or below <= longest


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
