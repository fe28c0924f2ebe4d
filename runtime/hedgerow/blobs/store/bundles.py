"""Whole bundles on the disk, and what lies where in them.

    <digest>/manifest.json, …    a backend opens files here

A bundle appears by one rename, when all of it is on the disk. What is read may be asked for while something changes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from hedgerow import disk
from hedgerow.blobs.store.parts import fits, hex_of
from hedgerow.models.bundle.manifest import MANIFEST, Chunk, File, Manifest, digest_of, read_manifest

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Installed:
    """A bundle in the store.

    Attributes:
        digest: of its manifest.
        name, version: of the model.
        folder: where its files are.
        used_at: Unix seconds when it was last installed or protected.
    """

    digest: str
    name: str
    version: str
    folder: Path
    used_at: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies in a file that is whole."""

    path: Path
    offset: int
    chunk: Chunk

    def read(self) -> bytes | None:
        """The chunk; None: it is not there any more, or is not what it should be."""
        with suppress(OSError), self.path.open("rb") as stream:
            stream.seek(self.offset)
            if fits(self.chunk, data := stream.read(self.chunk.size)):
                return data
        return None


class Bundles:
    """Bundles in a folder.

    Args:
        folder: where they are.
        staging: where one is put together or taken apart; what is there belongs to nobody.
    """

    def __init__(self, folder: Path, staging: Path) -> None:
        self.folder = folder
        self._staging = staging
        self._manifests: dict[str, Manifest] = {}
        self._whole: dict[str, Path] = {}
        self._places: dict[str, list[Place]] = {}
        self._doubted: dict[str, list[Path]] = {}

    def open(self) -> None:
        """Look at what is there. Raises: OSError."""
        shutil.rmtree(self._staging, ignore_errors=True)
        for folder in (self.folder, self._staging):
            folder.mkdir(parents=True, exist_ok=True)
        self._manifests = {
            f"sha256:{folder.name}": manifest
            for folder in sorted(self.folder.iterdir())
            if (manifest := _read(folder)) is not None
        }
        self._index()

    # What is there

    def installed(self) -> list[Installed]:
        """The bundles, the one used last first."""
        found = []
        for digest, manifest in self._manifests.items():
            folder = self.of(digest)
            with suppress(OSError):
                used_at = (folder / MANIFEST).stat().st_mtime
                found.append(Installed(digest, manifest.name, manifest.version, folder, used_at))
        return sorted(found, key=lambda each: each.used_at, reverse=True)

    def of(self, digest: str) -> Path:
        """A bundle's folder."""
        return self.folder / hex_of(digest)

    def whole(self, file: File) -> Path | None:
        """Where a file is whole, as far as is known without reading it."""
        path = self._whole.get(file.digest)
        with suppress(OSError):
            if path is not None and path.stat().st_size == file.size:
                return path
        return None

    @property
    def whole_files(self) -> Collection[str]:
        """Digests of the files that are whole, as far as is known without reading them."""
        return self._whole.keys()

    def at(self, digest: str) -> list[Place]:
        """Where a chunk lies."""
        return self._places.get(hex_of(digest), [])

    def sharing(self, chunks: Collection[str]) -> set[str]:
        """The bundles that have any of these chunks."""
        return {
            digest
            for digest, manifest in self._manifests.items()
            if any(chunk.digest in chunks for file in manifest.files() for chunk in file.chunks)
        }

    # What changes

    def used(self, digests: Iterable[str]) -> None:
        """These were used now. Raises: OSError."""
        for digest in digests:
            if digest in self._manifests:
                os.utime(self.of(digest) / MANIFEST)

    def forget(self, place: Place) -> None:
        """A chunk does not lie there any more."""
        key = hex_of(place.chunk.digest)
        self._places[key] = [each for each in self._places.get(key, ()) if each != place]
        if not self._places[key]:
            del self._places[key]

    def doubt(self, file: File) -> None:
        """A file is damaged: no bundle has it, until one is made with it again. Raises: OSError."""
        had = [path for path in self._named(file) if path.exists()]
        for path in had:
            path.unlink()
        self._doubted[file.digest] = [*self._doubted.get(file.digest, ()), *had]
        self._index()

    def make(self, manifest: bytes, files: Sequence[File], source: Callable[[File], Path]) -> Path:
        """Make a bundle, or give one that is here files that it lacks; on the disk for good.

        Args:
            source: where a file is whole.
        Returns: its folder.
        Raises:
            BadManifest: it is none.
            OSError.
        """
        described, digest = read_manifest(manifest), digest_of(manifest)
        folder, staging = self.of(digest), self._staging / hex_of(digest)
        if folder.exists():
            _fill(folder, files, source)
            os.utime(folder / MANIFEST)
        else:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            disk.write(staging / MANIFEST, manifest)
            _fill(staging, files, source)
            staging.replace(folder)
            disk.sync(folder.parent)
        for file in files:
            for path in self._doubted.pop(file.digest, ()):
                if path.parent.exists() and not path.exists():
                    _name(folder / file.path, path)
                    disk.sync(path.parent)
        self._manifests = self._manifests | {digest: described}
        self._index()
        return folder

    def remove(self, digest: str) -> bool:
        """Take a bundle away. Returns: whether it was here. Raises: OSError."""
        if digest not in self._manifests:
            return False
        self._manifests = {each: manifest for each, manifest in self._manifests.items() if each != digest}
        self._index()
        away = self._staging / f"{hex_of(digest)}.gone"
        shutil.rmtree(away, ignore_errors=True)
        self.of(digest).replace(away)
        shutil.rmtree(away, ignore_errors=True)
        return True

    def _index(self) -> None:
        whole: dict[str, Path] = {}
        places: dict[str, list[Place]] = {}
        for digest, manifest in self._manifests.items():
            for file in each_once(manifest.files()):
                path = self.of(digest) / file.path
                if file.digest in whole or not path.is_file():
                    continue
                whole[file.digest] = path
                offset = 0
                for chunk in file.chunks:
                    places.setdefault(hex_of(chunk.digest), []).append(Place(path, offset, chunk))
                    offset += chunk.size
        self._whole, self._places = whole, places  # at once: others read them meanwhile

    def _named(self, file: File) -> set[Path]:
        """Where the bundles may have a file."""
        return {
            self.of(digest) / each.path
            for digest, manifest in self._manifests.items()
            for each in manifest.files()
            if each.digest == file.digest
        }


def each_once(files: Iterable[File]) -> list[File]:
    """The files, equal ones once."""
    return list({file.digest: file for file in files}.values())


def _read(folder: Path) -> Manifest | None:
    try:
        return read_manifest((folder / MANIFEST).read_bytes(), f"sha256:{folder.name}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no bundle, and must not keep the node from starting
        log.warning("bundle-unreadable", folder=str(folder), error=str(error))
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _fill(folder: Path, files: Sequence[File], source: Callable[[File], Path]) -> None:
    """Give a bundle's folder its files, on the disk for good."""
    folders = {folder}
    for file in {file.path: file for file in files}.values():
        target = folder / file.path
        good = source(file)
        if target.exists() and (target.samefile(good) or target == good):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        folders |= {parent for parent in target.parents if parent.is_relative_to(folder)}
        with good.open("rb") as stream:
            os.fsync(stream.fileno())
        _name(good, target)
    for each in sorted(folders, reverse=True):
        disk.sync(each)


def _name(source: Path, target: Path) -> None:
    """Let a file have a second name, in the place of what has it now."""
    aside = target.with_name(f"{target.name}.new")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:  # a file system without second names
        shutil.copyfile(source, aside)
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
    aside.replace(target)
