"""A certificate as `show` lists it: its identity, role and validity."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from hedgerow.pki import certificates, names
from hedgerow.pki.names import PkiError


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateEntry:
    """A certificate as `show` lists it.

    Attributes:
        name: the identity; an authority's name, or "root".
        kind: "root", "authority", or the kind of identity.
        role: as the certificate states it.
        folder: where its files are.
        revoked: the reason for its revocation; None if it is not revoked.
    """

    name: str
    kind: str
    role: str
    folder: Path
    serial: str
    begins: datetime
    ends: datetime
    hosts: list[str] = field(default_factory=list)
    revoked: str | None = None

    @classmethod
    def of(
        cls, name: str, kind: str, certificate: x509.Certificate, folder: Path, revoked: dict[int, str]
    ) -> CertificateEntry:
        """Create the entry of a certificate.

        Args:
            revoked: reasons of its signer's revocations, by serial.
        """
        return cls(
            name=name,
            kind=kind,
            role=certificates.role_of(certificate),
            folder=folder,
            serial=f"{certificate.serial_number:x}",
            begins=certificate.not_valid_before_utc,
            ends=certificate.not_valid_after_utc,
            hosts=certificates.hosts_of(certificate),
            revoked=revoked.get(certificate.serial_number),
        )

    @classmethod
    def of_identity(
        cls, authority: str, certificate: x509.Certificate, folder: Path, revoked: dict[int, str]
    ) -> CertificateEntry:
        """Create the entry of a certificate that an authority has issued."""
        broker = bool(certificates.hosts_of(certificate))
        who = names.of(authority, folder.name, certificates.common_name(certificate), broker=broker)
        return cls.of(str(who), who.kind, certificate, folder, revoked)

    def is_short(self, now: datetime) -> bool:
        """Whether less than a quarter of its life is left, so that it should have been renewed."""
        return (self.ends - now) < (self.ends - self.begins) / 4


class Renewal(NamedTuple):
    """Outcome of a renewal.

    Attributes:
        renewed: the new certificates.
        failed: errors of those that were not renewed.
    """

    renewed: list[CertificateEntry]
    failed: list[PkiError]
