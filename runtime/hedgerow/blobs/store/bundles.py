"""Installed bundles on disk, and an index of their chunks.

    <digest>/manifest.json, …    backends open files here

A bundle is installed by a single rename, once all of it is on disk. Reading is safe during changes.
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
from hedgerow.blobs.store.parts import hex_of, matches
from hedgerow.models.bundle.manifest import MANIFEST, Chunk, File, Manifest, digest_of, read_manifest

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class InstalledBundle:
    """An installed bundle.

    Attributes:
        digest: of its manifest.
        name, version: of the model.
        folder: contains its files.
        used_at: Unix seconds when it was last installed or protected.
    """

    digest: str
    name: str
    version: str
    folder: Path
    used_at: float


@dataclass(frozen=True, slots=True)
class ChunkLocation:
    """Location of a chunk in an installed file."""

    path: Path
    offset: int
    chunk: Chunk

    def read(self) -> bytes | None:
        """Return the chunk; None if it is gone or damaged."""
        with suppress(OSError), self.path.open("rb") as stream:
            stream.seek(self.offset)
            if matches(self.chunk, data := stream.read(self.chunk.size)):
                return data
        return None


class Bundles:
    """Installed bundles in a folder.

    Args:
        folder: one subfolder per bundle.
        staging: for bundles being installed or removed; cleared by `open`.
    """

    def __init__(self, folder: Path, staging: Path) -> None:
        self.folder = folder
        self._staging = staging
        self._manifests: dict[str, Manifest] = {}
        self._complete: dict[str, Path] = {}
        self._locations: dict[str, list[ChunkLocation]] = {}
        self._damaged: dict[str, list[Path]] = {}

    def open(self) -> None:
        """Create the folders, and index the installed bundles. Raises: OSError."""
        shutil.rmtree(self._staging, ignore_errors=True)
        for folder in (self.folder, self._staging):
            folder.mkdir(parents=True, exist_ok=True)
        self._manifests = {
            f"sha256:{folder.name}": manifest
            for folder in sorted(self.folder.iterdir())
            if (manifest := _read(folder)) is not None
        }
        self._index()

    # Reading

    def installed(self) -> list[InstalledBundle]:
        """Return the installed bundles, most recently used first."""
        found = []
        for digest, manifest in self._manifests.items():
            folder = self.folder_of(digest)
            with suppress(OSError):
                used_at = (folder / MANIFEST).stat().st_mtime
                found.append(InstalledBundle(digest, manifest.name, manifest.version, folder, used_at))
        return sorted(found, key=lambda each: each.used_at, reverse=True)

    def folder_of(self, digest: str) -> Path:
        """Return a bundle's folder."""
        return self.folder / hex_of(digest)

    def complete_file(self, file: File) -> Path | None:
        """Return the path of an installed file, without verifying it; None if there is none."""
        path = self._complete.get(file.digest)
        with suppress(OSError):
            if path is not None and path.stat().st_size == file.size:
                return path
        return None

    @property
    def complete_files(self) -> Collection[str]:
        """Digests of the installed files, unverified."""
        return self._complete.keys()

    def locations(self, digest: str) -> list[ChunkLocation]:
        """Return the locations of a chunk."""
        return self._locations.get(hex_of(digest), [])

    def sharing(self, chunks: Collection[str]) -> set[str]:
        """Return the bundles that contain any of these chunks."""
        return {
            digest
            for digest, manifest in self._manifests.items()
            if any(chunk.digest in chunks for file in manifest.files() for chunk in file.chunks)
        }

    # Writing

    def touch(self, digests: Iterable[str]) -> None:
        """Mark bundles as used now. Raises: OSError."""
        for digest in digests:
            if digest in self._manifests:
                os.utime(self.folder_of(digest) / MANIFEST)

    def forget(self, location: ChunkLocation) -> None:
        """Remove a chunk's location from the index."""
        key = hex_of(location.chunk.digest)
        self._locations[key] = [each for each in self._locations.get(key, ()) if each != location]
        if not self._locations[key]:
            del self._locations[key]

    def unlink_damaged(self, file: File) -> None:
        """Unlink a damaged file from all bundles, until `install` restores it. Raises: OSError."""
        paths = [path for path in self._paths_of(file) if path.exists()]
        for path in paths:
            path.unlink()
        self._damaged[file.digest] = [*self._damaged.get(file.digest, ()), *paths]
        self._index()

    def install(self, manifest: bytes, files: Sequence[File], source: Callable[[File], Path]) -> Path:
        """Install a bundle durably, or add missing files to an installed one.

        Args:
            manifest: the bundle's manifest.
            files: the files to install.
            source: returns the path of a complete file.
        Returns: the bundle's folder.
        Raises:
            BadManifest: the manifest is invalid.
            OSError.
        """
        parsed, digest = read_manifest(manifest), digest_of(manifest)
        folder, staging = self.folder_of(digest), self._staging / hex_of(digest)
        if folder.exists():
            _link_files(folder, files, source)
            os.utime(folder / MANIFEST)
        else:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            disk.write(staging / MANIFEST, manifest)
            _link_files(staging, files, source)
            staging.replace(folder)
            disk.sync(folder.parent)
        for file in files:
            for path in self._damaged.pop(file.digest, ()):
                if path.parent.exists() and not path.exists():
                    _link(folder / file.path, path)
                    disk.sync(path.parent)
        self._manifests = self._manifests | {digest: parsed}
        self._index()
        return folder

    def remove(self, digest: str) -> bool:
        """Remove a bundle. Returns: whether it was installed. Raises: OSError."""
        if digest not in self._manifests:
            return False
        self._manifests = {each: manifest for each, manifest in self._manifests.items() if each != digest}
        self._index()
        removed = self._staging / f"{hex_of(digest)}.gone"
        shutil.rmtree(removed, ignore_errors=True)
        self.folder_of(digest).replace(removed)
        shutil.rmtree(removed, ignore_errors=True)
        return True

    def _index(self) -> None:
        complete: dict[str, Path] = {}
        locations: dict[str, list[ChunkLocation]] = {}
        for digest, manifest in self._manifests.items():
            for file in unique_files(manifest.files()):
                path = self.folder_of(digest) / file.path
                if file.digest in complete or not path.is_file():
                    continue
                complete[file.digest] = path
                offset = 0
                for chunk in file.chunks:
                    locations.setdefault(hex_of(chunk.digest), []).append(ChunkLocation(path, offset, chunk))
                    offset += chunk.size
        self._complete, self._locations = complete, locations  # replaced, not changed: other threads read them

    def _paths_of(self, file: File) -> set[Path]:
        """Return the paths at which bundles may have a file."""
        return {
            self.folder_of(digest) / each.path
            for digest, manifest in self._manifests.items()
            for each in manifest.files()
            if each.digest == file.digest
        }


def unique_files(files: Iterable[File]) -> list[File]:
    """Return the files without duplicates."""
    return list({file.digest: file for file in files}.values())


def _read(folder: Path) -> Manifest | None:
    try:
        return read_manifest((folder / MANIFEST).read_bytes(), f"sha256:{folder.name}")
    except Exception as error:  # noqa: BLE001 - an invalid folder must not keep the node from starting
        log.warning("bundle-unreadable", folder=str(folder), error=str(error))
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _link_files(folder: Path, files: Sequence[File], source: Callable[[File], Path]) -> None:
    """Link files into a bundle's folder, durably."""
    folders = {folder}
    for file in {file.path: file for file in files}.values():
        target = folder / file.path
        complete = source(file)
        if target.exists() and (target.samefile(complete) or target == complete):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        folders |= {parent for parent in target.parents if parent.is_relative_to(folder)}
        with complete.open("rb") as stream:
            os.fsync(stream.fileno())
        _link(complete, target)
    for each in sorted(folders, reverse=True):
        disk.sync(each)


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, replacing the target."""
    aside = target.with_name(f"{target.name}.new")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:  # no hard links on this file system
        shutil.copyfile(source, aside)
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
    aside.replace(target)
