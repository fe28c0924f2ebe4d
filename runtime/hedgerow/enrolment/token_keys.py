"""Keys on PKCS#11 tokens: made there, and used there. Needs python-pkcs11.

A key is named by a URI (RFC 7512): `pkcs11:token=LABEL;object=NAME`. `?module-path=` or PYKCS11LIB names the token's module;
`?pin-source=file:PATH` or HEDGEROW_TOKEN_PIN its PIN.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import os
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from hedgerow.errors import ConfigError, HedgerowError
from hedgerow.pki import certificates

SCHEME: Final = "pkcs11:"
PIN: Final = "HEDGEROW_TOKEN_PIN"
MODULE: Final = "PYKCS11LIB"
_BEGIN: Final = "-----BEGIN PKCS#11 PROVIDER URI-----"
_END: Final = "-----END PKCS#11 PROVIDER URI-----"
_TPM: Final = "tpm2-software.github.io"
"""Manufacturer that tpm2-pkcs11 names."""

_sessions: Final[dict[tuple[str, str], Any]] = {}
"""Open sessions by module and token: a process can log in at a token once. As many as the process names: one or two."""


class TokenUnusable(HedgerowError):
    """A token, or a key on it, cannot be used."""

    code = "token-unusable"


class KeyOnToken(ec.EllipticCurvePrivateKey):
    """A private key on a token, as the library of certificates takes one.

    Args:
        private: the token's private key.
        public: its public half.
    """

    def __init__(self, private: Any, public: ec.EllipticCurvePublicKey) -> None:
        self._private = private
        self._public = public

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return its public half."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """Its curve."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """Its size in bits."""
        return self._public.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Sign on the token: ECDSA with SHA-256."""
        import pkcs11

        prehashed = isinstance(signature_algorithm.algorithm, Prehashed)
        digest = bytes(data) if prehashed else hashlib.sha256(data).digest()
        raw = _translated(lambda: self._private.sign(digest, mechanism=pkcs11.Mechanism.ECDSA))
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        """Not offered: the key only signs."""
        raise NotImplementedError

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        """Not possible: the key stays on the token."""
        raise NotImplementedError

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        """Not possible: the key stays on the token."""
        raise NotImplementedError

    def __copy__(self) -> KeyOnToken:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyOnToken:
        return copy.copy(self)


def open_key(uri: str, *, make: bool = True) -> KeyOnToken:
    """Open a key on a token.

    Args:
        make: make it if it is not there: ECDSA on P-256, which cannot be exported.
    Raises:
        ConfigError: the URI is invalid, or something that it needs is missing.
        TokenUnusable: the token refuses, or has no such key.
    """
    named, query = _parse(uri)
    try:
        import pkcs11
    except ImportError as error:
        raise ConfigError(
            "Keys on tokens need python-pkcs11, which is not installed",
            remedy="Run `pip install 'hedgerow[pkcs11]'`, or use a key in a file.",
        ) from error
    module = query.get("module-path") or os.environ.get(MODULE)
    if module is None:
        raise ConfigError(
            "The token's module is not known", remedy=f"Set {MODULE}, or add ?module-path=PATH to the URI."
        )
    label, pin = named["object"], _pin(query)

    def find() -> KeyOnToken:
        library = pkcs11.lib(module)
        session = _sessions.get((module, named["token"]))
        if session is None:
            token = library.get_token(token_label=named["token"])
            session = _sessions[module, named["token"]] = token.open(rw=True, user_pin=pin)
        kinds = pkcs11.constants.ObjectClass
        made = list(session.get_objects({pkcs11.Attribute.LABEL: label, pkcs11.Attribute.CLASS: kinds.PRIVATE_KEY}))
        if not made and not make:
            raise TokenUnusable(f"The token has no key {label!r}", remedy="`pkcs11-tool -O` lists keys.")
        private = made[0] if made else _make(session, label, tpm=library.manufacturer_id == _TPM)
        public = session.get_key(label=label, object_class=kinds.PUBLIC_KEY)
        point = bytes(public[pkcs11.Attribute.EC_POINT])
        point = (
            point[2:] if point[:1] == b"\x04" and len(point) == 67 else point
        )  # without the DER head of an octet string
        return KeyOnToken(private, ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))

    found: KeyOnToken = _translated(find)
    return found


def _make(session: Any, label: str, *, tpm: bool) -> Any:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
    parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
    flags = pkcs11.MechanismFlag
    uses = flags.SIGN | flags.VERIFY
    if tpm:
        uses |= flags.ENCRYPT | flags.DECRYPT  # tpm2-pkcs11 makes no keys that only sign
    # OpenSSL's provider finds the public half of a key by its id.
    _, private = parameters.generate_keypair(store=True, label=label, id=label.encode(), capabilities=uses)
    return private


def reference(uri: str) -> bytes:
    """Return the PEM by which OpenSSL's pkcs11-provider finds a key on a token, in place of a key's file.

    The provider knows module and PIN from its own configuration, and refuses a URI with a query. The whole URI follows, for `named_in`.
    """
    path = uri.partition("?")[0]
    der = _der(0x30, _der(0x1A, b"PKCS#11 Provider URI v1.0") + _der(0x0C, f"{path};type=private".encode()))
    return f"{_BEGIN}\n{base64.encodebytes(der).decode()}{_END}\n{uri}\n".encode()


def named_in(text: str) -> str | None:
    """Return the URI that a `reference` was made of; None if the text is something else."""
    return text.rpartition(f"{_END}\n")[2].strip() if _BEGIN in text else None


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def why_not_in_tls(uri: str, key: KeyOnToken) -> str | None:
    """Return why TLS of this Python cannot use a key on a token; None if it can."""
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "check")]), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    )
    made = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    with tempfile.TemporaryDirectory(prefix="hedgerow-") as folder:
        (Path(folder) / "tls.crt").write_bytes(certificates.pem(made))
        (Path(folder) / "tls.key").write_bytes(reference(uri))
        try:
            ssl.create_default_context().load_cert_chain(Path(folder) / "tls.crt", Path(folder) / "tls.key")
        except (OSError, ssl.SSLError) as error:
            return f"{ssl.OPENSSL_VERSION}, which this Python uses, has no provider that opens it ({error})"
    return None


def request_of(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a certificate signing request, PEM. The name in it does not count: the region decides it."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hedgerow")])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


def _parse(uri: str) -> tuple[dict[str, str], dict[str, str]]:
    path, _, query = uri.removeprefix(SCHEME).partition("?")
    named = {key: unquote(value) for key, _, value in (part.partition("=") for part in path.split(";"))}
    if not (uri.startswith(SCHEME) and named.get("token") and named.get("object")):
        raise ConfigError(f"{uri[:80]!r} names no key on a token", remedy="Write `pkcs11:token=LABEL;object=NAME`.")
    return named, {key: values[0] for key, values in parse_qs(query).items()}


def _pin(query: dict[str, str]) -> str:
    source = query.get("pin-source", "")
    if source:
        try:
            return Path(source.removeprefix("file:")).read_text("utf-8").splitlines()[0]
        except (OSError, IndexError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The PIN in {source} cannot be read: {error}", remedy="Put it on the first line."
            ) from error
    pin = os.environ.get(PIN)
    if pin is None:
        raise ConfigError("The token needs a PIN", remedy=f"Set {PIN}, or add ?pin-source=file:PATH to the URI.")
    return pin


def _translated(call: Any) -> Any:
    try:
        return call()
    except HedgerowError:
        raise
    except Exception as error:  # a vendor's module may raise anything
        raise TokenUnusable(
            f"The token cannot be used: {str(error) or type(error).__name__}",
            remedy=f"Check that it is plugged in, its label, its module ({MODULE}) and the PIN. `pkcs11-tool -O` lists keys.",
        ) from error
