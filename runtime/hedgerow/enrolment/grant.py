"""Grants: what a machine gets when it becomes a node, signed by its site's authority. No files.

The signature covers the configuration too: neither a broker nor the region's service can give a node another one, unless it has the
authority's key. Nothing in a grant is secret.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal

import orjson
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hedgerow.errors import HedgerowError, first_problem
from hedgerow.pki import certificates
from hedgerow.pki.files import Key
from hedgerow.topics import is_name
from hedgerow.wire.fleet import LabelMap

MAX_GRANT_BYTES: Final = 512 * 1024
MAX_FILES_BYTES: Final = 256 * 1024


class BadGrant(HedgerowError):
    """A grant is not one that this machine's region gave it."""

    code = "bad-grant"


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if (
        not parts
        or path.startswith("/")
        or ".." in parts
        or any(part.startswith(".") for part in parts)
        or "\0" in path
    ):
        raise ValueError("a file outside of the node's folder")
    return path


class NodeGrant(BaseModel):
    """What makes a machine a node.

    Attributes:
        node: REGION/SITE/NODE.
        certificate: its certificate, and its authority's, PEM.
        trust: the root and the authority, PEM.
        revocations: their revocation lists, PEM.
        configuration: text of its configuration file.
        files: further files that it names, in base64, by their path beside it.
        missing: paths of those that are too large: they must be copied.
        labels: for its configuration.
        broker: where to ask from now on; "": where it asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal["hedgerow.grant/1"] = Field("hedgerow.grant/1", alias="schema")
    node: str
    certificate: str
    trust: str
    revocations: str
    configuration: str
    files: dict[Annotated[str, AfterValidator(_inside)], str] = Field(default_factory=dict)
    missing: list[Annotated[str, AfterValidator(_inside)]] = Field(default_factory=list)
    labels: LabelMap = Field(default_factory=dict)
    broker: str = Field("", max_length=300)

    @property
    def site(self) -> str:
        """The node's site."""
        return self.node.split("/")[1]

    def contents(self) -> Mapping[str, bytes]:
        """Return the content of each file.

        Raises: BadGrant: one is not base64.
        """
        try:
            return {path: base64.b64decode(data, validate=True) for path, data in self.files.items()}
        except (binascii.Error, ValueError) as error:
            raise _bad(f"a file of it cannot be read: {error}") from error


def sign_grant(grant: NodeGrant, authority: Key) -> tuple[str, str]:
    """Return a grant as text, and its signature in base64.

    Raises: BadGrant: it is too large.
    """
    text = grant.model_dump_json(by_alias=True)
    if len(text) > MAX_GRANT_BYTES:
        raise BadGrant(
            f"The configuration of {grant.node} is too large to be sent: {len(text)} bytes; at most {MAX_GRANT_BYTES}",
            remedy="Make its base file smaller.",
        )
    return text, base64.b64encode(authority.sign(_signed(text), ec.ECDSA(hashes.SHA256()))).decode()


def verify_grant(
    text: str, signature: str, root: x509.Certificate, key: ec.EllipticCurvePublicKey, site: str
) -> NodeGrant:
    """Check that a grant is for this key, and signed by the site's authority below the root; return it.

    Raises: BadGrant: it is not.
    """
    if len(text) > MAX_GRANT_BYTES:
        raise _bad("it is too large")
    try:
        grant = NodeGrant.model_validate(orjson.loads(text))
        own, authority = x509.load_pem_x509_certificates(grant.certificate.encode())
        trusted = x509.load_pem_x509_certificates(grant.trust.encode())
        authority.verify_directly_issued_by(root)
        own.verify_directly_issued_by(authority)
        signing = authority.public_key()
        if not isinstance(signing, ec.EllipticCurvePublicKey):
            raise _bad("its authority has no ECDSA key")
        signing.verify(base64.b64decode(signature, validate=True), _signed(text), ec.ECDSA(hashes.SHA256()))
    except ValidationError as error:
        raise _bad(first_problem(error, "grant")) from error
    except InvalidSignature as error:
        raise _bad("its signature is not that of the site's authority below the region's root") from error
    except (*certificates.UNREADABLE, RecursionError) as error:
        raise _bad(f"it cannot be read: {error}") from error
    region, _, address = grant.node.partition("/")
    where, _, name = address.partition("/")
    if where != site or not is_name(name) or certificates.region_of(root) != region:
        raise _bad(f"it is for {grant.node}, and the claim is for {site}")
    if certificates.common_name(authority) != site or not certificates.is_authority(authority):
        raise _bad("it is signed by another authority than the site's")
    if certificates.common_name(own) != address or own.public_key() != key:
        raise _bad("its certificate is for another node or key")
    if not certificates.is_for(own, ExtendedKeyUsageOID.CLIENT_AUTH):
        raise _bad("its certificate is not for a client")
    if not {root, authority} >= set(trusted) or not trusted:
        raise _bad("it trusts other authorities than the root and the site's")
    return grant


def release_grant(text: str, authority: Key) -> str:
    """Return the signature by which the authority of a node's site lets it go to the site of a grant, in base64."""
    return base64.b64encode(authority.sign(_released(text), ec.ECDSA(hashes.SHA256()))).decode()


def verify_release(text: str, release: str, before: NodeGrant) -> None:
    """Check that the authority of the site where a node was lets it go to the site of a grant: another one could not call it away.

    Raises: BadGrant: it does not.
    """
    authority = x509.load_pem_x509_certificates(before.certificate.encode())[1].public_key()
    assert isinstance(authority, ec.EllipticCurvePublicKey)  # noqa: S101 - checked when it was granted
    try:
        authority.verify(base64.b64decode(release, validate=True), _released(text), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, *certificates.UNREADABLE) as error:
        raise BadGrant(
            f"The grant is for another site, and the authority of {before.site} has not released this machine",
            remedy="If the machine was moved: `hedgerow enrol --state DIR --site SITE --broker URL` with its new site.",
        ) from error


def site_of(text: str) -> str:
    """Return the site that a grant is for, unverified; "" if it names none."""
    try:
        parts = str(orjson.loads(text)["node"]).split("/")
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return parts[1] if len(parts) == 3 else ""


def _released(text: str) -> bytes:
    return b"hedgerow release\0" + text.encode()


def _signed(text: str) -> bytes:
    return b"hedgerow grant\0" + text.encode()


def _bad(why: str) -> BadGrant:
    return BadGrant(
        f"The answer is not a valid grant for this machine: {why}",
        remedy="Somebody between this machine and its region may have changed it: nothing was written. Check the broker, then try again.",
    )
