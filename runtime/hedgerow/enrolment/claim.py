"""Claims: what lets a machine ask to be a node. The token is shown once; the region keeps only what verifies it.

A token has all that a machine needs to ask: where, and the root that the broker's certificate must have. What is secret in it is an
Ed25519 key, which signs the machine's request. It is never sent, so nobody on the way can use it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

import msgpack
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from hedgerow.bus.connect import parse_broker_url
from hedgerow.errors import ConfigError, HedgerowError
from hedgerow.pki.certificates import UNREADABLE
from hedgerow.text import refusal
from hedgerow.topics import is_name

LONGEST_TOKEN: Final = 8192
_HEAD: Final = "hc1."
_CHECK_BYTES: Final = 4
_LONGEST_URL: Final = 300
CLAIM_ID: Final = re.compile(r"[0-9a-f]{16}")


class BadClaim(HedgerowError):
    """A token is not the token of a claim, or was changed on its way."""

    code = "bad-claim"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim as its token has it.

    Attributes:
        id: names it in the region; not secret.
        broker: where to ask.
        root: the region's root certificate.
        seed: its private key, 32 bytes.
    """

    id: str
    region: str
    site: str
    broker: str
    root: x509.Certificate
    seed: bytes = field(repr=False)

    @classmethod
    def new(cls, region: str, site: str, broker: str, root: x509.Certificate) -> Claim:
        """Create a claim with a new key."""
        return cls(secrets.token_hex(8), region, site, broker, root, secrets.token_bytes(32))

    @property
    def public(self) -> bytes:
        """What verifies its signatures, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Sign with the claim's key."""
        return self._key.sign(data)

    @property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    def token(self) -> str:
        """Return the token: letters, digits, `.`, `-` and `_`."""
        root = self.root.public_bytes(Encoding.DER)
        packed = msgpack.packb([self.id, self.region, self.site, self.broker, root, self.seed])
        check = hashlib.sha256(packed).digest()[:_CHECK_BYTES]
        return _HEAD + base64.urlsafe_b64encode(packed + check).decode().rstrip("=")


def read_claim(token: str) -> Claim:
    """Read a token.

    Raises: BadClaim: it is not one, is incomplete, or has a mistake.
    """
    token = token.strip()
    if not token.startswith(_HEAD) or len(token) > LONGEST_TOKEN:
        raise _bad("it does not begin with `hc1.`" if len(token) <= LONGEST_TOKEN else "it is too long")
    try:
        coded = token.removeprefix(_HEAD)
        data = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"it is not base64: {error}") from error
    packed, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if hashlib.sha256(packed).digest()[:_CHECK_BYTES] != check:
        raise _bad("a part is missing or changed")
    try:
        ident, region, site, broker, root, seed = msgpack.unpackb(packed)
        if not (isinstance(ident, str) and CLAIM_ID.fullmatch(ident) and isinstance(seed, bytes) and len(seed) == 32):
            raise _bad("its claim is not one")
        if not (isinstance(region, str) and isinstance(site, str) and is_name(region) and is_name(site)):
            raise _bad("its region or site is not a name")
        if not (isinstance(broker, str) and broker.startswith("mqtts://") and len(broker) <= _LONGEST_URL) or refusal(
            broker
        ):
            raise _bad("its broker is not an address of one with TLS")
        parse_broker_url(broker)
        return Claim(ident, region, site, broker, x509.load_der_x509_certificate(root), seed)
    except (*UNREADABLE, msgpack.UnpackException, RecursionError, ConfigError) as error:
        raise _bad("its content is not that of a claim") from error


def _bad(why: str) -> BadClaim:
    return BadClaim(
        f"This is not the token of a claim: {why}",
        remedy="Copy all of what `hedgerow claim create` printed, best into a file; a token that is lost cannot be shown again.",
    )
