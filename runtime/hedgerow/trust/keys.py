"""Keys that sign: files with a passphrase, and tokens over PKCS#11.

A private key is `NAME.pem` (PKCS#8), its public half `NAME.pub` beside it. A key on a token is named
`hsm:ID?label=TOKEN` (ECDSA on P-256 or P-384); its module is what the environment variable PYKCS11LIB says.

A passphrase or PIN is typed, or comes from a file or the environment; never from the command line, which others see.
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
"""Asks a person for a secret; given the words to ask with."""


@dataclass(frozen=True)
class Secrets:
    """How to come by passphrases and PINs.

    Attributes:
        known: passphrases to try, in order.
        pins: PINs, likewise; only the first is used, since tokens lock themselves after a few wrong ones.
        ask: asks a person, if all else fails; None: nobody is there.
    """

    known: Sequence[str] = ()
    pins: Sequence[str] = ()
    ask: Ask | None = None

    @classmethod
    def here(cls, file: Path | None = None, ask: Ask | None = None) -> Secrets:
        """From a file (each line a passphrase or PIN), the environment, a person.

        Raises: KeyUnusable: the file cannot be read.
        """
        lines = _lines(file) if file is not None else []
        passphrase, pin = os.environ.get(PASSPHRASE), os.environ.get(PIN)
        return cls([*lines, *([passphrase] if passphrase else [])], [*([pin] if pin else []), *lines], ask)

    def passphrases(self, name: str) -> Iterator[str]:
        """One after the other, the last from a person."""
        yield from self.known
        if self.ask is not None:
            yield self.ask(f"Passphrase of {name}")

    def pin(self, name: str) -> str:
        """The PIN of a token. Raises: KeyUnusable: there is none."""
        if self.pins:
            return self.pins[0]
        if self.ask is None:
            raise KeyUnusable(f"{name} needs a PIN", remedy=f"Put it into {PIN}, or into a file: --passphrase-file.")
        return self.ask(f"PIN of {name}")


def make_key(path: Path, passphrase: str | None) -> Key:
    """Make a key pair (Ed25519): `path`, for its owner alone, and the public half beside it.

    Raises:
        KeyUnusable: there is one already, or the name is that of a public half.
        PkiError: it cannot be written.
    """
    if path.suffix == ".pub":
        raise KeyUnusable(f"{path} would be a public key's name", remedy="Name the private one: NAME.pem.")
    for file in (path, public_half(path)):
        if file.exists():
            raise KeyUnusable(f"{file} is there already", remedy="Choose another name; a key is never written over.")
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
    """Where the public half of a key is."""
    return path.with_suffix(".pub")


def read_public(name: str, secrets: Secrets | None = None) -> Key:
    """A public key: of a `.pub`, of a private key's file, or on a token, which may want a PIN.

    Raises: KeyUnusable: it is none, or cannot be read.
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
            f"{path} holds no public key", remedy="Give the `.pub` that `hedgerow trust key` made beside the key."
        ) from error
    if not isinstance(public, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise KeyUnusable(f"{path} is of a kind that signs nothing here", remedy="Use Ed25519, ECDSA or RSA keys.")
    try:
        return named(SSlibKey.from_crypto(public), path.stem)
    except ValueError as error:
        raise KeyUnusable(f"{path} is of a kind that signs nothing here: {error}") from error


def open_signer(name: str, secrets: Secrets) -> Signer:
    """A private key, ready to sign.

    Args:
        name: a file, or `hsm:…`.
    Raises:
        KeyUnusable: it cannot be read, its passphrase is not known, or there is no such key on the token.
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
        f"{name} has a passphrase, and {'none was given' if not tried else 'what was given does not open it'}",
        remedy=f"Type it, put it into {PASSPHRASE}, or into a file: --passphrase-file.",
    )


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnusable(
            f"The file of passphrases {file} cannot be read: {getattr(error, 'strerror', None) or error}",
            remedy="Give a text file with a passphrase or PIN a line, and let this user read it.",
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnusable(
            f"The key {path} cannot be read: {error.strerror}",
            remedy="Is it the right file, is its stick plugged in, and may this user read it?",
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
        raise KeyUnusable(f"{name} is of a kind that signs nothing here", remedy="Use Ed25519, ECDSA or RSA keys.")
    try:
        return CryptoSigner(private)
    except ValueError as error:
        raise KeyUnusable(f"{name} is of a kind that signs nothing here: {error}") from error


class _TokenSigner(Signer):
    """A key on a token; its failures in our words."""

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
        except Exception as error:  # a vendor's module raises what it likes
            raise _unusable(self._name, error) from error


def _token_key(name: str, secrets: Secrets) -> SSlibKey:
    ident, _, label = name.removeprefix(TOKEN).partition("?label=")
    try:
        number = int(ident) if ident else None
    except ValueError as error:
        raise KeyUnusable(
            f"{name} names no key of a token", remedy="Write `hsm:ID` or `hsm:ID?label=TOKEN`."
        ) from error
    try:
        _, public = HSMSigner.import_(number, label or None, lambda _: secrets.pin(name))
    except KeyUnusable:
        raise
    except UnsupportedLibraryError as error:
        raise KeyUnusable(
            f"{name}: {error}", remedy="Install what speaks PKCS#11: `pip install 'hedgerow[pkcs11]'`."
        ) from error
    except Exception as error:  # a vendor's module raises what it likes
        raise _unusable(name, error) from error
    return public


def _uri(name: str) -> str:
    """The name as the signing library reads it: the label's signs escaped."""
    ident, _, label = name.removeprefix(TOKEN).partition("?label=")
    return f"{TOKEN}{ident or HSMSigner.SCHEME_KEYID}" + (f"?{urlencode({'label': label})}" if label else "")


def _unusable(name: str, error: Exception) -> KeyUnusable:
    return KeyUnusable(
        f"{name} cannot be used: {str(error) or type(error).__name__}",
        remedy="Is the token plugged in, PYKCS11LIB its module's path, and the PIN right? `pkcs11-tool -O` lists keys.",
    )
