"""Chunks of a repository: content by its digest, `blobs/sha256/ab/HEX`.

They are not signed themselves: the signed manifest has the digest of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from hedgerow.models.bundle.manifest import File, Manifest, digest_of
from hedgerow.pki.files import make_folder, write
from hedgerow.trust.errors import BadRepository


def put_chunks(repository: Path, bundle: Path, manifest: Manifest, progress: Callable[[int], None]) -> tuple[int, int]:
    """Add the chunks of a bundle's files to a repository; intact ones that exist already stay.

    Args:
        progress: called with the number of bytes just processed.
    Returns: the number of chunks added, and their bytes.
    Raises: BadRepository: a file of the bundle does not match its manifest.
    """
    added = size = 0
    for file in {file.path: file for file in manifest.files()}.values():
        for digest, data in _chunks_of(bundle, file):
            path = blob_path(repository, digest)
            if not (path.exists() and digest_of(path.read_bytes()) == digest):
                make_folder(path.parent)
                write(path, data)
                added, size = added + 1, size + len(data)
            progress(len(data))
    return added, size


def blob_path(folder: Path, digest: str) -> Path:
    """Path of a chunk in a repository."""
    kind, _, value = digest.partition(":")
    return folder / "blobs" / kind / value[:2] / value


def _chunks_of(folder: Path, file: File) -> Iterator[tuple[str, bytes]]:
    try:
        with (folder / file.path).open("rb") as source:
            whole = hashlib.sha256()
            for chunk in file.chunks:
                data = source.read(chunk.size)
                whole.update(data)
                if digest_of(data) != chunk.digest:
                    raise _changed(folder, file)
                yield chunk.digest, data
            if source.read(1) or f"sha256:{whole.hexdigest()}" != file.digest:
                raise _changed(folder, file)
    except OSError as error:
        raise BadRepository(
            f"{folder / file.path} cannot be read: {error.strerror}", remedy="Build the bundle again."
        ) from error


def _changed(folder: Path, file: File) -> BadRepository:
    return BadRepository(
        f"{folder / file.path} does not match the manifest",
        remedy="It was changed or damaged: build the bundle again.",
    )
