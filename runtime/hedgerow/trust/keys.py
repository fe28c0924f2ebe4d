"""Signing keys: files with a passphrase, and tokens over PKCS#11.

A private key is `NAME.pem` (PKCS#8), its public half `NAME.pub` beside it. A key on a token is named
`hsm:ID?label=TOKEN` (ECDSA on P-256 or P-384); the environment variable PYKCS11LIB names its module.

A passphrase or PIN is typed, or comes from a file or the environment; never from the command line, which is public.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import CryptoSigner, HSMSigner, Key, Signature, Signer, SSlibKey

from hedgerow.pki.files import make_folder, write
from hedgerow.trust.errors import KeyUnusable
from hedgerow.trust.roles import named

TOKEN: Final = "hsm:"  # noqa: S105  # the beginning of a name
PASSPHRASE: Final = "HEDGEROW_TRUST_PASSPHRASE"  # noqa: S105  # a variable's name
PIN: Final = "HEDGEROW_TRUST_PIN"

Ask = Callable[[str], str]
"""Prompts a person for a secret; takes the prompt."""


@dataclass(frozen=True)
class Secrets:
    """Sources of passphrases and PINs.

    Attributes:
        known: passphrases to try, in order.
        pins: PINs; only the first is used, since tokens lock after a few wrong ones.
        ask: prompts a person if all else fails; None: not interactive.
    """

    known: Sequence[str] = ()
    pins: Sequence[str] = ()
    ask: Ask | None = None

    @classmethod
    def gather(cls, file: Path | None = None, ask: Ask | None = None) -> Secrets:
        """Gather secrets from a file (a passphrase or PIN per line), the environment and a person.

        Raises: KeyUnusable: the file cannot be read.
        """
        lines = _lines(file) if file is not None else []
        passphrase, pin = os.environ.get(PASSPHRASE), os.environ.get(PIN)
        return cls([*lines, *([passphrase] if passphrase else [])], [*([pin] if pin else []), *lines], ask)

    def passphrases(self, name: str) -> Iterator[str]:
        """Yield passphrases to try, the last one from a person."""
        yield from self.known
        if self.ask is not None:
            yield self.ask(f"Passphrase of {name}")

    def pin(self, name: str) -> str:
        """Return the PIN of a token. Raises: KeyUnusable: there is none."""
        if self.pins:
            return self.pins[0]
        if self.ask is None:
            raise KeyUnusable(f"{name} needs a PIN", remedy=f"Set {PIN}, or put it in a file: --passphrase-file.")
        return self.ask(f"PIN of {name}")


def make_key(path: Path, passphrase: str | None) -> Key:
    """Create an Ed25519 key pair: `path`, readable by its owner only, and its public half next to it.

    Raises:
        KeyUnusable: the file exists, or has the name of a public half.
        PkiError: it cannot be written.
    """
    if path.suffix == ".pub":
        raise KeyUnusable(f"{path} is the name of a public key", remedy="Name the private key: NAME.pem.")
    for file in (path, public_half(path)):
        if file.exists():
            raise KeyUnusable(f"{file} exists already", remedy="Choose another name; keys are never overwritten.")
    make_folder(path.parent)
    private = ed25519.Ed25519PrivateKey.generate()
    protection: KeySerializationEncryption = (
        BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    )
    write(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection), private=True)
    public = private.public_key()
    write(public_half(path), public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return named(SSlibKey.from_crypto(public), path.stem)


def public_half(path: Path) -> Path:
    """Path of a key's public half."""
    return path.with_suffix(".pub")


def read_public(name: str, secrets: Secrets | None = None) -> Key:
    """Read a public key from a `.pub`, a private key's file, or a token, which may need a PIN.

    Raises: KeyUnusable: it is not a key, or cannot be read.
    """
    if name.startswith(TOKEN):
        return named(_token_key(name, secrets or Secrets()), name)
    path = Path(name)
    if path.suffix != ".pub" and public_half(path).exists():
        path = public_half(path)
    data = _read(path)
    if b"PRIVATE KEY" in data:
        return named(open_signer(name, secrets or Secrets()).public_key, path.stem)
    try:
        public = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(
            f"{path} holds no public key", remedy="Use the `.pub` that `hedgerow trust key` created next to the key."
        ) from error
    if not isinstance(public, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise KeyUnusable(f"{path} is of an unsupported kind", remedy="Use Ed25519, ECDSA or RSA keys.")
    try:
        return named(SSlibKey.from_crypto(public), path.stem)
    except ValueError as error:
        raise KeyUnusable(f"{path} is of an unsupported kind: {error}") from error


def open_signer(name: str, secrets: Secrets) -> Signer:
    """Open a private key for signing.

    Args:
        name: a file, or `hsm:…`.
    Raises:
        KeyUnusable: it cannot be read, its passphrase is unknown, or the token has no such key.
    """
    if name.startswith(TOKEN):
        public = _token_key(name, secrets)
        return _TokenSigner(HSMSigner.from_priv_key_uri(_uri(name), public, lambda _: secrets.pin(name)), name)
    data = _read(Path(name))
    if b"ENCRYPTED" not in data:
        return _signer(data, None, name)
    tried = 0
    for passphrase in secrets.passphrases(name):
        tried += 1
        try:
            return _signer(data, passphrase, name)
        except _WrongPassphrase:
            continue
    raise KeyUnusable(
        f"{name} has a passphrase, and {'none was given' if not tried else 'the given ones do not open it'}",
        remedy=f"Type it, set {PASSPHRASE}, or put it in a file: --passphrase-file.",
    )


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnusable(
            f"The passphrase file {file} cannot be read: {getattr(error, 'strerror', None) or error}",
            remedy="Give a text file with one passphrase or PIN per line, readable by this user.",
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnusable(
            f"The key {path} cannot be read: {error.strerror}",
            remedy="Check that it is the right file, that its stick is plugged in, and that this user may read it.",
        ) from error


class _WrongPassphrase(Exception):  # noqa: N818, RUF100
    pass


def _signer(data: bytes, passphrase: str | None, name: str) -> Signer:
    try:
        private = load_pem_private_key(data, passphrase.encode() if passphrase is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if passphrase is not None:
            raise _WrongPassphrase from error
        raise KeyUnusable(f"{name} holds no private key", remedy="Give a PEM file (PKCS#8).") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise KeyUnusable(f"{name} is of an unsupported kind", remedy="Use Ed25519, ECDSA or RSA keys.")
    try:
        return CryptoSigner(private)
    except ValueError as error:
        raise KeyUnusable(f"{name} is of an unsupported kind: {error}") from error


class _TokenSigner(Signer):
    """A key on a token; turns its failures into `KeyUnusable`."""

    def __init__(self, signer: HSMSigner, name: str) -> None:
        self._signer = signer
        self._name = name

    @property
    def public_key(self) -> Key:
        return self._signer.public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: object = None) -> Signer:
        raise NotImplementedError

    def sign(self, payload: bytes) -> Signature:
        try:
            return self._signer.sign(payload)
        except KeyUnusable:
            raise
        except Exception as error:  # a vendor's module may raise anything
            raise _unusable(self._name, error) from error


def _token_key(name: str, secrets: Secrets) -> SSlibKey:
    ident, _, label = name.removeprefix(TOKEN).partition("?label=")
    try:
        number = int(ident) if ident else None
    except ValueError as error:
        raise KeyUnusable(
            f"{name} does not name a key on a token", remedy="Write `hsm:ID` or `hsm:ID?label=TOKEN`."
        ) from error
    try:
        _, public = HSMSigner.import_(number, label or None, lambda _: secrets.pin(name))
    except KeyUnusable:
        raise
    except UnsupportedLibraryError as error:
        raise KeyUnusable(
            f"{name}: {error}", remedy="Install PKCS#11 support: `pip install 'hedgerow[pkcs11]'`."
        ) from error
    except Exception as error:  # a vendor's module may raise anything
        raise _unusable(name, error) from error
    return public


def _uri(name: str) -> str:
    """The name as the signing library reads it, with the label escaped."""
    ident, _, label = name.removeprefix(TOKEN).partition("?label=")
    return f"{TOKEN}{ident or HSMSigner.SCHEME_KEYID}" + (f"?{urlencode({'label': label})}" if label else "")


def _unusable(name: str, error: Exception) -> KeyUnusable:
    return KeyUnusable(
        f"{name} cannot be used: {str(error) or type(error).__name__}",
        remedy="Check that the token is plugged in, that PYKCS11LIB is its module's path, and the PIN. `pkcs11-tool -O` lists keys.",
    )
