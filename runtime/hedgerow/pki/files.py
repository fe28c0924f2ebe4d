"""Files of keys and certificates.

Rules:
- A reader sees the old file or the new one, complete, even after a power cut: write aside, fsync, rename, fsync the
  folder. Who writes holds a lock (`locked`), so what a killed call left aside is known to be nobody's, and replaced.
- A file gets its folder's owner, so that a timer of root can renew what a service reads.
- A private key is never readable by others, not even briefly: it is created with 0600, in a folder of 0700.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hedgerow import disk
from hedgerow.pki.names import PkiError

Key = ec.EllipticCurvePrivateKey


def write(path: Path, data: bytes, *, private: bool = False, sync_folder: bool = True) -> None:
    """Replace a file's content with `data`.

    Args:
        private: readable by its owner only.
        sync_folder: sync the folder too; if not, the caller does it once for several files.
    Raises: PkiError: it cannot be written; the old file is unchanged.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.unlink(missing_ok=True)
        file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(file, "wb") as out:
                if os.geteuid() == 0:
                    owner = path.parent.stat()
                    os.fchown(out.fileno(), owner.st_uid, owner.st_gid)
                os.fchmod(out.fileno(), 0o600 if private else 0o644)
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            aside.replace(path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        if sync_folder:
            disk.sync(path.parent)
    except OSError as error:
        raise PkiError(
            f"{path} cannot be written: {error.strerror}", remedy="Free disk space, or let this user write there."
        ) from error


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Create a folder and its parents. Raises: PkiError: it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if private:
            folder.chmod(0o700)
    except OSError as error:
        raise PkiError(
            f"{folder} cannot be created: {error.strerror}",
            remedy="Let this user write there, or name another --folder.",
        ) from error


def read(path: Path) -> bytes:
    """Read a file. Raises: PkiError: it does not exist, or is not readable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PkiError(
            f"{path} cannot be read: {error.strerror}",
            remedy="Check that it is the right --folder, and that this user may read it.",
        ) from error


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Read the certificates of a PEM file, at least one. Raises: PkiError: it cannot be read or holds none."""
    try:
        return x509.load_pem_x509_certificates(read(path))
    except ValueError as error:
        raise PkiError(f"{path} holds no certificate: {error}", remedy="Give a PEM file.") from error


def read_key(path: Path, passphrase: bytes | None = None) -> Key:
    """Read a private key. Raises: PkiError: it cannot be read, or the passphrase is wrong."""
    data = read(path)
    encrypted = b"ENCRYPTED" in data
    if encrypted and passphrase is None:
        raise PkiError(f"{path} has a passphrase", remedy="Give it with --passphrase or --passphrase-file.")
    try:
        key = serialization.load_pem_private_key(data, passphrase if encrypted else None)
    except (ValueError, TypeError) as error:
        what = "the passphrase is wrong, or the file is damaged" if encrypted else "it holds no private key"
        raise PkiError(f"{path} cannot be read: {what}", remedy="Give the right passphrase, or a PEM file.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{path} is not an ECDSA key", remedy="Use keys that `hedgerow pki` created.")
    return key


def write_key(path: Path, key: Key, passphrase: bytes | None = None) -> None:
    """Write a private key, encrypted if a passphrase is given."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        protection = serialization.BestAvailableEncryption(passphrase)
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    write(path, data, private=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other changes: two renewals at once would partly undo each other."""
    make_folder(folder)
    try:
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise PkiError(
            f"{folder} cannot be written: {error.strerror}", remedy="Run this as the folder's owner."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
