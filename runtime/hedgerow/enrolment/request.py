"""Requests of machines that enrol: what a machine says of itself, and the proofs that it has the key and the claim. No files.

Rules:
- The proofs cover the whole body, and the body names the client that asks: a request that somebody else sends again is refused.
- Everything in it has a bound, and no text that could act on a terminal or break a line is accepted.
- A request is small and cheap to refuse: bounds first, then the key's proof; the region then looks for the claim.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final, Literal

import orjson
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hedgerow.errors import HedgerowError, first_problem
from hedgerow.pki.certificates import UNREADABLE
from hedgerow.text import refusal
from hedgerow.topics import is_name

MAX_REQUEST_BYTES: Final = 16_384
CLIENT: Final = re.compile(r"[0-9a-f]{32}")
"""Client ids of machines that enrol: nobody can guess one, and with it read another's answer."""
_LONGEST: Final = 120
_MOST_SAID: Final = 16
MAX_CERTIFICATES: Final = 4

Sign = Callable[[bytes], bytes]
"""Signs with a machine's key: ECDSA with SHA-256."""


class EnrolmentRefused(HedgerowError):
    """A request is refused.

    Args:
        code: reason in counters and the answer.
    """

    def __init__(self, code: str, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy or "Make a new claim for this machine: `hedgerow claim create`.")
        self.code = code


def _plain(text: str) -> str:
    if (why := refusal(text)) is not None:
        raise ValueError(why)
    return text


def _named(text: str) -> str:
    if not is_name(text):
        raise ValueError("not a valid name")
    return text


Said = Annotated[str, Field(max_length=_LONGEST), AfterValidator(_plain)]
_Name = Annotated[str, AfterValidator(_named)]


class RequestBody(BaseModel):
    """What a machine asks.

    Attributes:
        client: its client id.
        claim: id of the claim; None: the machine shows a manufacturer's certificate, or asks again.
        csr: certificate signing request, PEM. Only its key counts; the region decides the name.
        machine: what it says of itself: `serial`, `hostname`, `model` …
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_: Literal["hedgerow.enrol/1"] = Field("hedgerow.enrol/1", alias="schema")
    client: str = Field(pattern=rf"^{CLIENT.pattern}$")
    region: _Name
    site: _Name
    claim: str | None = Field(None, pattern=r"^[0-9a-f]{16}$")
    csr: str = Field(max_length=4096)
    machine: dict[_Name, Said] = Field(default_factory=dict, max_length=_MOST_SAID)


class _Envelope(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    body: str
    proof: str = Field(max_length=200)
    claim: str = Field("", max_length=200)
    maker: str = Field("", max_length=200)
    certificates: list[str] = Field(default_factory=list, max_length=MAX_CERTIFICATES)


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    """A request whose key is proved; its claim is not checked yet.

    Attributes:
        body: what it asks.
        key: the machine's public key.
        certificates: a manufacturer's, the machine's own first; empty without.
        signed: what `claim` and `maker` sign.
    """

    body: RequestBody
    key: ec.EllipticCurvePublicKey
    signed: bytes
    claim: bytes
    maker: bytes
    certificates: Sequence[x509.Certificate]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, in hexadecimal: by it people and the store name the machine."""
        return fingerprint(self.key)

    def has_claim(self, public: bytes) -> bool:
        """Whether the claim with this public key signed it."""
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(self.claim, self.signed)
        except (InvalidSignature, ValueError):
            return False
        return True


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return SHA-256 of a public key, in hexadecimal."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def encode_request(
    body: RequestBody,
    prove: Sign,
    claim: Sign | None = None,
    maker: Sign | None = None,
    certificates: Sequence[x509.Certificate] = (),
) -> bytes:
    """Encode a request.

    Args:
        prove: signs with the machine's key.
        claim: signs with the claim's key.
        maker: signs with the key of the manufacturer's certificate.
        certificates: that one, and those that certify it.
    """
    text = body.model_dump_json(by_alias=True, exclude_none=True)
    signed = _signed(text)
    envelope = {"body": text, "proof": _base64(prove(signed))}
    if claim is not None:
        envelope["claim"] = _base64(claim(signed))
    if maker is not None:
        envelope["maker"] = _base64(maker(signed))
    shown = [_base64(one.public_bytes(Encoding.DER)) for one in certificates]
    return orjson.dumps(envelope | ({"certificates": shown} if shown else {}))


def read_request(payload: bytes, client: str, region: str, site: str) -> EnrolmentRequest:
    """Read a request, and check that it comes from who it says and proves its key.

    Args:
        client, region, site: from its topic, which the broker's access list confines.
    Raises: EnrolmentRefused: it is too large, cannot be read, is somebody else's, or proves no key.
    """
    if len(payload) > MAX_REQUEST_BYTES:
        raise EnrolmentRefused("bad-request", f"{len(payload)} bytes; at most {MAX_REQUEST_BYTES}")
    try:
        envelope = _Envelope.model_validate(orjson.loads(payload))
        body = RequestBody.model_validate(orjson.loads(envelope.body))
        csr = x509.load_pem_x509_csr(body.csr.encode())
        key = csr.public_key()
        proof, claim, maker = (
            base64.b64decode(text, validate=True) for text in (envelope.proof, envelope.claim, envelope.maker)
        )
        certificates = [
            x509.load_der_x509_certificate(base64.b64decode(one, validate=True)) for one in envelope.certificates
        ]
    except ValidationError as error:
        raise EnrolmentRefused(
            "bad-request", f"The request cannot be read: {first_problem(error, 'request')}"
        ) from error
    except (*UNREADABLE, RecursionError) as error:
        raise EnrolmentRefused("bad-request", f"The request cannot be read: {error}") from error
    if (body.client, body.region, body.site) != (client, region, site):
        raise EnrolmentRefused("another-client", "The request was made for another client, site or region")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EnrolmentRefused(
            "bad-key", "The key is not an ECDSA key on P-256", remedy="Let `hedgerow enrol` make it."
        )
    signed = _signed(envelope.body)
    try:
        key.verify(proof, signed, ec.ECDSA(hashes.SHA256()))
        if not csr.is_signature_valid:
            raise InvalidSignature
    except (InvalidSignature, *UNREADABLE) as error:
        raise EnrolmentRefused("bad-proof", "The request does not prove that the machine has the key") from error
    return EnrolmentRequest(body, key, signed, claim, maker, certificates)


def _signed(body: str) -> bytes:
    return b"hedgerow enrolment request\0" + body.encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
