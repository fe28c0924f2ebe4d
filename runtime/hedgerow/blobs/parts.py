"""A file that is being fetched: chunks are written where they belong, so that nothing lies on the disk twice.

    <file's digest>        the file, as far as it is there
    <file's digest>.there  a byte a chunk, 1: it was written

Rules:
- The second file is a hint. After a power cut it may say more than is true, so whoever believes a chunk checks it first,
  and so does whoever believes the file.
- A chunk is written before it is said to be there: a process that is killed in between has lost a chunk, no more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Final

from hedgerow.models.manifest import Chunk, File

THERE: Final = ".there"
_READ_BYTES: Final = 1 << 20


class PartialFile:
    """A file on its way.

    Args:
        folder: where it is.
        file: what it is to become.
    """

    def __init__(self, folder: Path, file: File) -> None:
        self.file = file
        self.path = folder / hex_of(file.digest)
        self._marks = self.path.with_name(self.path.name + THERE)
        sizes = [chunk.size for chunk in file.chunks]
        self.offsets = [0, *accumulate(sizes)][: len(sizes)]
        self._there = bytearray(len(sizes))
        if self.path.exists() and self._marks.exists():
            marks = self._marks.read_bytes()
            if len(marks) == len(sizes):
                self._there[:] = marks

    @property
    def exists(self) -> bool:
        """Whether anything of it is on the disk."""
        return self.path.exists()

    def create(self) -> None:
        """Make the two files, if they are not there. Raises: OSError."""
        if not self._marks.exists() or self._marks.stat().st_size != len(self._there):
            self._marks.write_bytes(bytes(self._there))
        with self.path.open("ab") as stream:
            stream.truncate(self.file.size)

    def missing(self) -> Iterator[int]:
        """Indices of the chunks that are not there."""
        return (index for index, there in enumerate(self._there) if not there)

    def has(self, index: int) -> bool:
        """Whether a chunk was written."""
        return self._there[index] == 1

    def write(self, index: int, data: bytes | memoryview) -> None:
        """Write a chunk. Raises: OSError."""
        with self.path.open("r+b") as stream:
            stream.seek(self.offsets[index])
            stream.write(data)
        self._mark(index, there=True)

    def read(self, index: int) -> bytes:
        """Read a chunk, whatever it holds. Raises: OSError."""
        with self.path.open("rb") as stream:
            stream.seek(self.offsets[index])
            return stream.read(self.file.chunks[index].size)

    def forget(self, index: int) -> None:
        """A chunk is not what it should be. Raises: OSError."""
        self._mark(index, there=False)

    def check(self) -> list[Chunk]:
        """Compare it with its digest; of a file that differs, each chunk.

        Returns: the chunks that have to come again; none: it is whole.
        Raises: OSError.
        """
        if 0 not in self._there and same(self.path, self.file):
            return []
        for index, chunk in enumerate(self.file.chunks):
            if self.has(index) and not fits(chunk, self.read(index)):
                self.forget(index)
        return [self.file.chunks[index] for index in self.missing()]

    def remove(self) -> None:
        """Remove both files."""
        self.path.unlink(missing_ok=True)
        self._marks.unlink(missing_ok=True)

    def adopt(self, path: Path) -> None:
        """Take a file that was whole once, to be mended here. Raises: OSError."""
        self._there[:] = b"\1" * len(self._there)
        path.replace(self.path)
        self._marks.write_bytes(bytes(self._there))
        with self.path.open("r+b") as stream:
            stream.truncate(self.file.size)

    def release(self, target: Path) -> None:
        """It is whole: move it to where it belongs, safe from a power cut once that folder is. Raises: OSError."""
        with self.path.open("rb") as stream:
            os.fsync(stream.fileno())
        self.path.replace(target)
        self._marks.unlink(missing_ok=True)

    def _mark(self, index: int, *, there: bool) -> None:
        with self._marks.open("r+b") as stream:
            stream.seek(index)
            stream.write(b"\1" if there else b"\0")
        self._there[index] = there


def hex_of(digest: str) -> str:
    """A digest without `sha256:`."""
    return digest.removeprefix("sha256:")


def fits(chunk: Chunk, data: bytes | memoryview) -> bool:
    """Whether some bytes are a chunk."""
    return len(data) == chunk.size and hashlib.sha256(data).hexdigest() == hex_of(chunk.digest)


def same(path: Path, file: File) -> bool:
    """Whether a file on the disk is a file of a manifest. Raises: OSError."""
    if path.stat().st_size != file.size:
        return False
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            found.update(piece)
    return found.hexdigest() == hex_of(file.digest)
