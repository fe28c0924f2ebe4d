"""Manufacturers of machines, with authorities below them, whose certificates may be wrong in any part."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tests.enrolment.machines import Machine

from hedgerow.enrolment.request import RequestBody, encode_request
from hedgerow.pki import certificates, files

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def signing(key: Any) -> Any:
    return lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))


def named(serial: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, serial)] if serial else [])


@dataclass
class Manufacturer:
    """Certifies machines when it makes them."""

    key: Key = field(default_factory=new_key)

    def __post_init__(self) -> None:
        self.root = certificates.root("maker", self.key, datetime.now(UTC))

    def certify(
        self,
        serial: str,
        key: Any = None,
        *,
        begins: timedelta = timedelta(days=-1),
        ends: timedelta = timedelta(days=999),
        by: tuple[x509.Certificate, Key] | None = None,
        authority: bool = False,
        path_length: int | None = None,
    ) -> tuple[Any, x509.Certificate]:
        """Return a machine's key and certificate, or an authority's.

        Args:
            by: an authority below the manufacturer's root.
        """
        key, (issuer, signer) = key or new_key(), by or (self.root, self.key)
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(named(serial)).issuer_name(issuer.subject)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        if authority:
            builder = builder.add_extension(x509.BasicConstraints(True, path_length), critical=True)
        return key, builder.not_valid_before(now + begins).not_valid_after(now + ends).sign(signer, hashes.SHA256())

    def request(
        self, machine: Machine, serial: str = "SN-1", *, device: Any = None, chain: Any = (), **how: Any
    ) -> bytes:
        """Return a request of a machine that this manufacturer made; `device` is its key and certificate if it has them."""
        key, own = device or self.certify(serial, **how)
        return asks(machine, key, [own, *chain])

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "makers.pem").write_bytes(self.root.public_bytes(Encoding.PEM))
        return folder / "makers.pem"


def asks(machine: Machine, key: Any, chain: list[x509.Certificate], **changes: Any) -> bytes:
    """Return a request with a manufacturer's certificate, whoever's; `key` signs as the certificate's."""
    body = RequestBody.model_validate(
        {
            "schema": "hedgerow.enrol/1", "client": machine.client, "region": "north", "site": "hall",
            "csr": machine.csr(), "machine": {"serial": "forged"}, **changes,
        }
    )  # fmt: skip
    return encode_request(body, machine.prove, maker=signing(key), certificates=chain)


def write_device(folder: Path, key: Key, *chain: x509.Certificate) -> tuple[Path, Path]:
    """Write a machine's certificate and key as its manufacturer delivers them."""
    files.write(folder / "device.crt", certificates.pem(*chain))
    files.write_key(folder / "device.key", key)
    return folder / "device.crt", folder / "device.key"
