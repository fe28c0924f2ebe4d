"""Machines that enrol, made by hand, so that each part of a request may be wrong."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hedgerow.enrolment.claim import Claim
from hedgerow.enrolment.request import RequestBody, encode_request, fingerprint


@dataclass
class Machine:
    """A machine with a key of its own."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    client: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key.public_key())

    def prove(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def csr(self, key: Any = None) -> str:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hall/gate")])
        made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key or self.key, hashes.SHA256())
        return made.public_bytes(Encoding.PEM).decode()

    def request(
        self, with_claim: Claim | None, /, *, site: str = "hall", says: Mapping[str, str] | None = None, **changes: Any
    ) -> bytes:
        """Return a request; `changes` are those of its body, unchecked."""
        fields = {
            "schema": "hedgerow.enrol/1",
            "schema_": "hedgerow.enrol/1",
            "client": self.client,
            "region": "north",
            "site": site,
            "claim": None if with_claim is None else with_claim.id,
            "csr": self.csr(),
            "machine": dict(says or {"hostname": "gw"}),
        }
        body = RequestBody.model_construct(**fields | changes)
        return encode_request(body, self.prove, None if with_claim is None else with_claim.sign)
