"""The key of a machine that enrols: in a file."""

from __future__ import annotations

from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hedgerow.enrolment.folder import EnrolmentFolder
from hedgerow.pki import certificates, files


class NodeKey(Protocol):
    """A machine's key."""

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        """Its public half."""

    def sign(self, data: bytes) -> bytes:
        """Sign: ECDSA with SHA-256."""

    def request(self) -> str:
        """Return a certificate signing request, PEM."""


class FileKey:
    """A key in the machine's folder, made at first use.

    Args:
        folder: it must exist.
    Raises: PkiError: it cannot be read or written.
    """

    def __init__(self, folder: EnrolmentFolder) -> None:
        if not folder.key_file.exists():
            files.write_key(folder.key_file, certificates.new_key())
        self._key = files.read_key(folder.key_file)

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        """See `NodeKey`."""
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        """See `NodeKey`."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def request(self) -> str:
        """See `NodeKey`."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hedgerow")])  # the region decides the name
        made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self._key, hashes.SHA256())
        return made.public_bytes(Encoding.PEM).decode()
