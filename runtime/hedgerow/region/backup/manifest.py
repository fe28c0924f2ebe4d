"""A backup's folder: its files with their checksums, and where it comes from.

manifest.json                 written last: a folder without it is no backup
store/store.db                the store, if it is SQLite; else store/TABLE.copy and store/columns.json
repository/…                  the repository of models, without keys
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hedgerow.errors import HedgerowError

MANIFEST: Final = "manifest.json"
STORE: Final = "store"
REPOSITORY: Final = "repository"
_CHUNK: Final = 1 << 20

Advance = Callable[[int], None]
"""Called with the bytes done since the last call."""


class BackupError(HedgerowError):
    """A backup cannot be made or restored; nothing was changed."""

    code = "backup"


class BackupFile(BaseModel):
    """A file of a backup."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sha256: str
    size: int


class BackupManifest(BaseModel):
    """What a backup holds.

    Attributes:
        at: when the store was read, in Unix seconds.
        version: the Hedgerow that made it.
        dialect: of the store.
        migrations: those that the store had.
        files: by path in the backup's folder.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_: Literal["hedgerow.backup/1"] = "hedgerow.backup/1"
    region: str
    at: float
    version: str
    dialect: Literal["sqlite", "postgres"]
    migrations: list[int]
    files: dict[str, BackupFile]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def read_manifest(folder: Path) -> BackupManifest:
    """Read a backup's manifest. Raises: BackupError: the folder is no complete backup."""
    try:
        manifest = BackupManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise BackupError(
            f"{folder} is not a complete backup: {MANIFEST}: {error.strerror}",
            remedy="Give the folder that `hedgerow region backup` made.",
        ) from error
    except ValidationError as error:
        raise BackupError(
            f"{folder}/{MANIFEST} is invalid or of a newer version: {error.errors()[0]['msg']}",
            remedy="Use the version that made it, or another backup.",
        ) from error
    for name in manifest.files:
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and path.parts[:1] in ((STORE,), (REPOSITORY,))
        if not inside or "\0" in name:
            raise BackupError(f"{folder}/{MANIFEST} names a file outside it: {name!r}", remedy="Do not use it.")
    return manifest


def verify_files(folder: Path, manifest: BackupManifest, advance: Advance) -> None:
    """Check that all files are as they were written.

    Raises: BackupError: one is missing or differs.
    """
    for name in sorted(f"{STORE}/{path.name}" for path in (folder / STORE).glob("*")):
        if name not in manifest.files:
            raise BackupError(f"{folder}/{MANIFEST} has no checksum of {name}", remedy="Use another backup.")
    for name, expected in manifest.files.items():
        if (folder / name).exists() and not (folder / name).is_file():  # a pipe would never end
            raise BackupError(f"{folder}/{name} is no file", remedy="Use another backup.")
        try:
            found = digest(folder / name, advance)
        except OSError as error:
            raise BackupError(
                f"{folder}/{name} cannot be read: {error.strerror}", remedy="Use another backup."
            ) from error
        if found != expected:
            raise BackupError(
                f"{folder}/{name} is damaged: {found.size:,} bytes, sha256 {found.sha256[:12]}…, instead of "
                f"{expected.size:,} bytes, {expected.sha256[:12]}…",
                remedy="Use another backup, or another copy of this one.",
            )


def digest(path: Path, advance: Advance) -> BackupFile:
    """Return a file's size and checksum."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        for chunk in _chunks(file.read):
            sha256.update(chunk)
            size += len(chunk)
            advance(len(chunk))
    return BackupFile(sha256=sha256.hexdigest(), size=size)


def copy_file(source: Path, target: Path, advance: Advance) -> BackupFile:
    """Copy a file to disk. Returns: its size and checksum."""
    sha256, size = hashlib.sha256(), 0
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with source.open("rb") as file, target.open("wb") as out:
        for chunk in _chunks(file.read):
            out.write(chunk)
            sha256.update(chunk)
            size += len(chunk)
            advance(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    return BackupFile(sha256=sha256.hexdigest(), size=size)


def _chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := read(_CHUNK):
        yield chunk
