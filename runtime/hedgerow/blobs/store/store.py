"""Store of fetched models: installed bundles and partially fetched files.

    bundles/        installed bundles: see `bundles`
    parts/          files being fetched: see `parts`
    staging/        bundles being installed or removed
    protected.json  bundles that must not be evicted

Rules:
- All content is verified before use.
- Content is stored once: equal files of two bundles are hard links to one file, and a chunk that another file contains is
  copied from there, not fetched.
- The store never exceeds its quota and never evicts protected bundles: see `quota`.
- A power cut or a kill at any moment costs at most the chunk being written.

Thread-safe. Methods that change the store hold a lock and block. `has`, `installed` and the counters do not wait for it, so an
event loop may call them; `chunk` reads from disk without waiting for writers.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import orjson
import structlog

from hedgerow import disk
from hedgerow.blobs.errors import BlobStoreError, ContentDamaged, ContentMissing, on_disk
from hedgerow.blobs.store.bundles import Bundles, InstalledBundle, unique_files
from hedgerow.blobs.store.parts import PartialFile, Parts, file_matches, matches
from hedgerow.blobs.store.quota import Quota
from hedgerow.models.bundle.manifest import Chunk, File, read_manifest

log = structlog.get_logger(__name__)

MANIFEST_BYTES: Final = 16 << 10
"""Reserved for the manifest of the files being fetched; a larger one needs more space when it is installed."""
_PROTECTED: Final = "protected.json"


class BlobStore:
    """A store in a folder, used by one process at a time.

    Args:
        folder: its folder; created if missing.
        max_bytes: quota.
    Attributes:
        damaged: chunks found damaged so far.
    Raises: BlobStoreError: the folder cannot be used.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.damaged = 0
        self._folder = folder
        self._lock = threading.RLock()
        self._bundles = Bundles(folder / "bundles", folder / "staging")
        self._parts = Parts(folder / "parts")
        self._quota = Quota(self._bundles, self._parts, max_bytes)
        self._checked: set[str] = set()
        with on_disk(folder, "open"):
            self._bundles.open()
            self._parts.folder.mkdir(exist_ok=True)
            self._parts.clean_up(self._bundles.complete_files)
            self._protected = self._read_protected()
            self._quota.measure()

    # Reading

    @property
    def max_bytes(self) -> int:
        """The quota in bytes."""
        return self._quota.max_bytes

    @property
    def used_bytes(self) -> int:
        """Disk usage in bytes; a file with several links counts once, an unfinished one at its full size."""
        return self._quota.used_bytes

    @property
    def evicted(self) -> int:
        """Bundles and unfinished files evicted so far."""
        return self._quota.evicted

    def installed(self) -> list[InstalledBundle]:
        """Return the installed bundles, most recently used first."""
        return self._bundles.installed()

    def protect(self, digests: Collection[str]) -> None:
        """Protect these bundles from eviction, and no others. Survives restarts and power cuts.

        Raises: BlobStoreError: it cannot be written; the previous protection still applies.
        """
        protected = frozenset(digests)
        with self._lock, on_disk(self._folder, "write"):
            self._bundles.touch(protected)
            if protected != self._protected:
                disk.replace(self._folder / _PROTECTED, orjson.dumps(sorted(protected)))
                self._protected = protected

    def has(self, digest: str) -> bool:
        """Return whether a chunk is stored, without verifying it."""
        return bool(self._bundles.locations(digest)) or any(
            position.filled for position in self._parts.positions(digest)
        )

    def chunk(self, digest: str) -> bytes:
        """Return a chunk's verified content. Raises: ContentMissing: it is not stored, or damaged."""
        for location in self._bundles.locations(digest):
            if (data := location.read()) is not None:
                return data
            with self._lock:
                self.damaged += 1
                self._bundles.forget(location)
        for part, index in self._parts.positions(digest):
            with suppress(OSError):
                if not part.has(index):
                    continue
                if matches(part.file.chunks[index], data := part.read(index)):
                    return data
                with self._lock:
                    self.damaged += 1
                    part.forget(index)
        raise ContentMissing(f"The model store does not have chunk {digest}", remedy="Fetch the model again.")

    # Writing

    def missing(self, files: Sequence[File]) -> list[Chunk]:
        """Return the chunks that these files lack, in order and without repetition, and make room for them.

        Chunks found elsewhere in the store are copied.

        Raises:
            StoreFull: they do not fit in the quota beside protected bundles.
            DiskFull: the disk has too little free space.
        """
        with self._lock, on_disk(self._folder, "write"):
            self._quota.make_room(lambda: self._unfinished(files), self._protected, MANIFEST_BYTES)
            missing: dict[str, Chunk] = {}
            for file in self._unfinished(files):
                part = self._parts.open(file)
                for index in list(part.missing()):
                    chunk = file.chunks[index]
                    if chunk.digest not in missing and not self._copy(part, index):
                        missing[chunk.digest] = chunk
            self._quota.measure()
            return list(missing.values())

    def put(self, digest: str, data: bytes | memoryview) -> bool:
        """Store a chunk returned by `missing`.

        Returns: whether any file needed it.
        Raises:
            ContentDamaged: the data does not match the digest.
            DiskFull: the disk is full; stored chunks are kept.
        """
        with self._lock, on_disk(self._folder, "write"):
            positions = [position for position in self._parts.positions(digest) if not position.filled]
            if not positions:
                return False
            if not matches(positions[0].chunk, data):
                raise ContentDamaged(
                    f"{len(data):,} bytes do not match {digest}",
                    remedy="Nothing to do: it is requested again, from another source.",
                )
            for part, index in positions:
                part.write(index, data)
                self._checked.discard(part.file.digest)
            return True

    def check(self, files: Sequence[File]) -> list[Chunk]:
        """Verify files against their digests; `install` then repeats it only where needed.

        Returns: the chunks that are missing or damaged; the other chunks are kept.
        Raises: BlobStoreError: a file cannot be read or written.
        """
        with self._lock, on_disk(self._folder, "read"):
            bad: dict[str, Chunk] = {}
            for file in unique_files(files):
                if file.digest in self._checked and not self._incomplete(file):
                    continue
                path = self._bundles.complete_file(file)
                if path is not None and not file_matches(path, file):
                    log.warning("model-file-damaged", path=str(path))
                    self._parts.repair(path, file)
                    self._bundles.unlink_damaged(file)
                    path = None
                found = [] if path is not None else self._parts.open(file).check()
                bad |= {chunk.digest: chunk for chunk in found}
                if not found:
                    self._checked.add(file.digest)
            self.damaged += len(bad)
            self._quota.measure()
            return list(bad.values())

    def install(self, manifest: bytes, files: Sequence[File]) -> Path:
        """Install a bundle from complete files, verifying those not yet verified.

        Args:
            manifest: the bundle's manifest, as it was signed.
            files: the manifest's files to install.
        Returns: the bundle's folder.
        Raises:
            BadManifest: the manifest is invalid.
            ContentDamaged: a file does not match the manifest; `missing` then returns the chunks to fetch again.
            StoreFull: it does not fit in the quota beside protected bundles.
            DiskFull: the disk is full.
        """
        with self._lock, on_disk(self._folder, "write"):
            parsed = read_manifest(manifest)
            if bad := self.check(files):
                raise ContentDamaged(
                    f"{parsed.name} {parsed.version} is incomplete: {len(bad)} chunks are missing or damaged",
                    remedy="Fetch it again: only these chunks are fetched. If this happens often, replace the disk.",
                )
            retained = self._protected | self._bundles.sharing(
                {chunk.digest for file in files for chunk in file.chunks}
            )
            self._quota.make_room(lambda: self._unfinished(files), retained, len(manifest))
            folder = self._bundles.install(manifest, files, self._source_of)
            for file in unique_files(files):
                self._checked.discard(file.digest)
                self._parts.drop(file.digest)
            self._quota.measure()
            return folder

    def remove(self, digest: str) -> None:
        """Remove a bundle. Raises: BlobStoreError: it cannot be removed."""
        with self._lock, on_disk(self._folder, "write"):
            self._bundles.remove(digest)
            self._quota.measure()

    # Helpers

    def _unfinished(self, files: Sequence[File]) -> list[File]:
        return [file for file in unique_files(files) if self._bundles.complete_file(file) is None]

    def _incomplete(self, file: File) -> bool:
        part = self._parts.existing(file)
        return self._bundles.complete_file(file) is None and (part is None or any(True for _ in part.missing()))

    def _source_of(self, file: File) -> Path:
        return self._bundles.complete_file(file) or self._parts.open(file).path

    def _copy(self, part: PartialFile, index: int) -> bool:
        """Copy a chunk from elsewhere in the store. Returns: whether it was found."""
        try:
            data = self.chunk(part.file.chunks[index].digest)
        except (ContentMissing, BlobStoreError):
            return False
        part.write(index, data)
        return True

    def _read_protected(self) -> frozenset[str]:
        try:
            return frozenset(orjson.loads((self._folder / _PROTECTED).read_bytes()))
        except (OSError, ValueError, TypeError):
            return frozenset()
