"""Partially fetched files: chunks are written in place, so nothing is stored twice.

    <file's digest>        the file, with holes
    <file's digest>.there  one byte per chunk: 1 if it was written

Rules:
- The `.there` file is a hint. After a power cut it may list chunks that are not on disk, so chunks and files are verified
  before use. If it is damaged or missing, it is rebuilt from the file.
- A chunk is written before it is marked: a process killed in between loses one chunk.
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
    """A file being fetched.

    Args:
        folder: contains its data and marks.
        file: the complete file, as in the manifest.
    """

    def __init__(self, folder: Path, file: File) -> None:
        self.file = file
        self.path = folder / hex_of(file.digest)
        self._marks = _marks_of(self.path)
        sizes = [chunk.size for chunk in file.chunks]
        self.offsets = [0, *accumulate(sizes)][: len(sizes)]
        self._present = bytearray(len(sizes))

    @property
    def exists(self) -> bool:
        """Whether it exists on disk."""
        return self.path.exists()

    def open(self) -> None:
        """Create the two files, or continue with existing ones. Raises: OSError."""
        existed = self.exists
        marks = self._marks.read_bytes() if existed and self._marks.exists() else b""
        usable = len(marks) == len(self._present)
        with self.path.open("ab") as stream:
            stream.truncate(self.file.size)
        if existed and not usable:
            marks = bytes(matches(chunk, self.read(index)) for index, chunk in enumerate(self.file.chunks))
        if marks:
            self._present[:] = marks
        if not usable:
            self._marks.write_bytes(bytes(self._present))

    def missing(self) -> Iterator[int]:
        """Yield the indices of the missing chunks."""
        return (index for index, present in enumerate(self._present) if not present)

    def has(self, index: int) -> bool:
        """Return whether a chunk was written."""
        return self._present[index] == 1

    def write(self, index: int, data: bytes | memoryview) -> None:
        """Write a chunk. Raises: OSError."""
        with self.path.open("r+b") as stream:
            stream.seek(self.offsets[index])
            stream.write(data)
        self._mark(index, present=True)

    def read(self, index: int) -> bytes:
        """Read a chunk without verifying it. Raises: OSError."""
        with self.path.open("rb") as stream:
            stream.seek(self.offsets[index])
            return stream.read(self.file.chunks[index].size)

    def forget(self, index: int) -> None:
        """Mark a damaged chunk as missing. Raises: OSError."""
        self._mark(index, present=False)

    def check(self) -> list[Chunk]:
        """Verify the file, and if its digest differs, each chunk.

        Returns: the missing and damaged chunks; empty if it is complete.
        Raises: OSError.
        """
        if 0 not in self._present and file_matches(self.path, self.file):
            return []
        for index, chunk in enumerate(self.file.chunks):
            if self.has(index) and not matches(chunk, self.read(index)):
                self.forget(index)
        return [self.file.chunks[index] for index in self.missing()]

    def adopt(self, path: Path) -> None:
        """Start from a damaged installed file, to repair it here. Raises: OSError."""
        self.path.unlink(missing_ok=True)
        try:
            os.link(path, self.path)
        except OSError:  # no hard links on this file system
            shutil.copyfile(path, self.path)
        self._present[:] = b"\1" * len(self._present)
        self._marks.write_bytes(bytes(self._present))
        with self.path.open("r+b") as stream:
            stream.truncate(self.file.size)

    def _mark(self, index: int, *, present: bool) -> None:
        with self._marks.open("r+b") as stream:
            stream.seek(index)
            stream.write(b"\1" if present else b"\0")
        self._present[index] = present


class Position(NamedTuple):
    """Position of a chunk in a file being fetched."""

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
    """All files being fetched, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, PartialFile] = {}
        self._positions: dict[str, list[Position]] = {}

    def clean_up(self, installed: Collection[str]) -> None:
        """Remove leftovers of a killed process: marks without a file, and files that are installed.

        Args:
            installed: digests of the installed files.
        Raises: OSError.
        """
        for path in self.folder.iterdir():
            name = path.name.removesuffix(THERE)
            if f"sha256:{name}" in installed or not (self.folder / name).exists():
                path.unlink()

    def open(self, file: File) -> PartialFile:
        """Return a file being fetched, created if missing. Raises: OSError."""
        part = self._files.get(file.digest)
        if part is None or not part.exists:
            part = PartialFile(self.folder, file)
            part.open()
            self._put(part)
        return part

    def repair(self, path: Path, file: File) -> None:
        """Turn a damaged installed file into one being fetched, keeping its good chunks. Raises: OSError."""
        part = PartialFile(self.folder, file)
        part.adopt(path)
        self._put(part)

    def existing(self, file: File) -> PartialFile | None:
        """Return a file that exists on disk, even if not opened by this process; None if there is none."""
        part = PartialFile(self.folder, file)
        return self._files.get(file.digest, part) if part.exists else None

    def unfinished(self) -> list[Path]:
        """Return the paths of all files being fetched or abandoned."""
        return [path for path in self.folder.iterdir() if path.suffix != THERE]

    def positions(self, digest: str) -> list[Position]:
        """Return the positions of a chunk in the files opened by this process."""
        return self._positions.get(hex_of(digest), [])

    def drop(self, digest: str) -> None:
        """Remove a file. Raises: OSError."""
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
        self._positions = found  # replaced, not changed: other threads read it


def hex_of(digest: str) -> str:
    """Return a digest without `sha256:`."""
    return digest.removeprefix("sha256:")


def matches(chunk: Chunk, data: bytes | memoryview) -> bool:
    """Return whether data matches a chunk."""
    return len(data) == chunk.size and hashlib.sha256(data).hexdigest() == hex_of(chunk.digest)


def file_matches(path: Path, file: File) -> bool:
    """Return whether a file on disk matches one of a manifest. Raises: OSError."""
    if path.stat().st_size != file.size:
        return False
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            found.update(piece)
    return found.hexdigest() == hex_of(file.digest)


def _marks_of(path: Path) -> Path:
    return path.with_name(path.name + THERE)
