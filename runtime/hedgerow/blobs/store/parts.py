"""Files that are being fetched: chunks are written where they belong, so that nothing lies on the disk twice.

    <file's digest>        the file, as far as it is there
    <file's digest>.there  a byte a chunk, 1: it was written

Rules:
- The second file is a hint. After a power cut it may say more than is true, so whoever believes a chunk checks it first,
  and so does whoever believes the file. Where it is damaged or gone, the file itself is asked.
- A chunk is written before it is said to be there: a process that is killed in between has lost a chunk, no more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from hedgerow.models.bundle.manifest import Chunk, File

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
        self._marks = _marks_of(self.path)
        sizes = [chunk.size for chunk in file.chunks]
        self.offsets = [0, *accumulate(sizes)][: len(sizes)]
        self._there = bytearray(len(sizes))

    @property
    def exists(self) -> bool:
        """Whether anything of it is on the disk."""
        return self.path.exists()

    def open(self) -> None:
        """Make the two files, or take up what is there of them. Raises: OSError."""
        existed = self.exists
        marks = self._marks.read_bytes() if existed and self._marks.exists() else b""
        usable = len(marks) == len(self._there)
        with self.path.open("ab") as stream:
            stream.truncate(self.file.size)
        if existed and not usable:
            marks = bytes(fits(chunk, self.read(index)) for index, chunk in enumerate(self.file.chunks))
        if marks:
            self._there[:] = marks
        if not usable:
            self._marks.write_bytes(bytes(self._there))

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

    def adopt(self, path: Path) -> None:
        """Begin with a file that was whole once; it is mended here. Raises: OSError."""
        self.path.unlink(missing_ok=True)
        try:
            os.link(path, self.path)
        except OSError:  # a file system without second names
            shutil.copyfile(path, self.path)
        self._there[:] = b"\1" * len(self._there)
        self._marks.write_bytes(bytes(self._there))
        with self.path.open("r+b") as stream:
            stream.truncate(self.file.size)

    def _mark(self, index: int, *, there: bool) -> None:
        with self._marks.open("r+b") as stream:
            stream.seek(index)
            stream.write(b"\1" if there else b"\0")
        self._there[index] = there


class Position(NamedTuple):
    """Where a chunk belongs in a file on its way."""

    part: PartialFile
    number: int

    @property
    def chunk(self) -> Chunk:
        """The chunk."""
        return self.part.file.chunks[self.number]

    @property
    def filled(self) -> bool:
        """Whether it was written."""
        return self.part.has(self.number)


class Parts:
    """All files on their way, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, PartialFile] = {}
        self._positions: dict[str, list[Position]] = {}

    def tidy(self, whole: Collection[str]) -> None:
        """Remove what a kill has left: marks without a file, and files that got their place.

        Args:
            whole: digests of the files that have it.
        Raises: OSError.
        """
        for path in self.folder.iterdir():
            name = path.name.removesuffix(THERE)
            if f"sha256:{name}" in whole or not (self.folder / name).exists():
                path.unlink()

    def of(self, file: File) -> PartialFile:
        """A file on its way; made if it is not there. Raises: OSError."""
        part = self._files.get(file.digest)
        if part is None or not part.exists:
            part = PartialFile(self.folder, file)
            part.open()
            self._put(part)
        return part

    def mend(self, path: Path, file: File) -> None:
        """A file that was whole is damaged: it is on its way again, with what is good of it. Raises: OSError."""
        part = PartialFile(self.folder, file)
        part.adopt(path)
        self._put(part)

    def on_disk(self, file: File) -> PartialFile | None:
        """What is there of a file, if anything; it need not have been asked for since the process began."""
        part = PartialFile(self.folder, file)
        return self._files.get(file.digest, part) if part.exists else None

    def unfinished(self) -> list[Path]:
        """All that lies here, whether anybody still wants it or not."""
        return [path for path in self.folder.iterdir() if path.suffix != THERE]

    def at(self, digest: str) -> list[Position]:
        """Where a chunk belongs, in those files that were asked for."""
        return self._positions.get(hex_of(digest), [])

    def drop(self, digest: str) -> None:
        """Remove what is there of a file. Raises: OSError."""
        path = self.folder / hex_of(digest)
        path.unlink(missing_ok=True)
        _marks_of(path).unlink(missing_ok=True)
        if self._files.pop(f"sha256:{path.name}", None) is not None:
            self._index()

    def _put(self, part: PartialFile) -> None:
        self._files[part.file.digest] = part
        self._index()

    def _index(self) -> None:
        found: dict[str, list[Position]] = {}
        for part in self._files.values():
            for index, chunk in enumerate(part.file.chunks):
                found.setdefault(hex_of(chunk.digest), []).append(Position(part, index))
        self._positions = found  # at once: others read it meanwhile


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


def _marks_of(path: Path) -> Path:
    return path.with_name(path.name + THERE)
