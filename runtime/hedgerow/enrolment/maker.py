"""A manufacturer's certificate: it proves which machine asks, in place of a claim. IEEE 802.1AR calls it an IDevID.

Its key stays what it is: the machine makes another one to be a node. Nothing else tells the machine where to ask, so site, broker and
the region's root are given with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hedgerow.enrolment.request import MAX_CERTIFICATES
from hedgerow.enrolment.token_keys import SCHEME, open_key
from hedgerow.errors import ConfigError
from hedgerow.pki import certificates, files
from hedgerow.topics import is_name

_REMEDY: Final = "Give the machine's certificate first, then those that certify it, without the manufacturer's root."


@dataclass(frozen=True, slots=True)
class MakerProof:
    """What a machine asks with that has a manufacturer's certificate.

    Attributes:
        broker: where to ask.
        root: the region's root certificate.
        certificates: the machine's own, and those that certify it.
        key: of the machine's own.
    """

    region: str
    site: str
    broker: str
    root: x509.Certificate
    certificates: Sequence[x509.Certificate]
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """Sign with the certificate's key."""
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


def read_maker_proof(certificate: Path, key: str, site: str, broker: str, root: Path) -> MakerProof:
    """Read a manufacturer's certificate and its key.

    Args:
        certificate: PEM: the machine's own, and those that certify it.
        key: a PEM file, or `pkcs11:…`.
        root: file with the region's root certificate.
    Raises:
        ConfigError: they do not fit each other, or the region would refuse them.
        PkiError: a file cannot be read.
        TokenUnusable: the token refuses, or has no such key.
    """
    chain, region_root = files.read_certificates(certificate), files.read_certificates(root)[0]
    region = certificates.region_of(region_root)
    if region_root.subject != region_root.issuer or not is_name(region):
        raise ConfigError(
            f"{root} is not the root of a region", remedy="Give `root.crt` of the region's folder of certificates."
        )
    if not broker.startswith("mqtts://"):
        raise ConfigError(f"{broker[:80]!r} is not an address of a broker with TLS", remedy="Write mqtts://HOST:PORT.")
    if not is_name(site):
        raise ConfigError(f"{site[:80]!r} is not a name of a site", remedy="Give the site as the topology names it.")
    if not 0 < len(chain) <= MAX_CERTIFICATES:
        raise ConfigError(f"{certificate} has {len(chain)} certificates; at most {MAX_CERTIFICATES}", remedy=_REMEDY)
    private = open_key(key, make=False) if key.startswith(SCHEME) else files.read_key(Path(key))
    if private.public_key() != chain[0].public_key():
        raise ConfigError(f"{key} is not the key of the first certificate in {certificate}", remedy=_REMEDY)
    return MakerProof(region, site, broker, region_root, chain, private)
