"""Where a node keeps the models it has fetched: whole bundles, and files on their way.

    bundles/        what is whole: see `bundles`
    parts/          what is being fetched: see `parts`
    staging/        what is being put together, or taken away
    protected.json  what must stay

Rules:
- Nothing is believed that was not checked.
- What is there once is not there twice: equal files of two bundles are one file with two names, and a chunk that another
  file has is copied from there instead of fetched.
- Never more bytes than the quota, and never at the cost of what is protected: see `room`.
- A power cut or a kill at any instant costs at most the chunk that was being written.

May be called from any thread. What changes it takes turns and blocks; `has`, `installed` and what it counts do not wait for
that, so an event loop may ask; `chunk` reads from the disk and waits for nobody.
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
from hedgerow.blobs.store.bundles import Bundles, Installed, each_once
from hedgerow.blobs.store.parts import PartialFile, Parts, fits, same
from hedgerow.blobs.store.quota import Quota
from hedgerow.models.bundle.manifest import Chunk, File, read_manifest

log = structlog.get_logger(__name__)

MANIFEST_BYTES: Final = 16 << 10
"""Kept free for the manifest of what is fetched; one that is larger has to find room when it is installed."""
_PROTECTED: Final = "protected.json"


class BlobStore:
    """The store in a folder; one process has it at a time.

    Args:
        folder: where it is; made if it is not there.
        max_bytes: most bytes that it may take.
    Attributes:
        damaged: chunks that were not what they should be any more, so far.
    Raises: StoreError: the folder cannot be used.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.damaged = 0
        self._folder = folder
        self._turn = threading.RLock()
        self._bundles = Bundles(folder / "bundles", folder / "staging")
        self._parts = Parts(folder / "parts")
        self._room = Quota(self._bundles, self._parts, max_bytes)
        self._checked: set[str] = set()
        with on_disk(folder, "opened"):
            self._bundles.open()
            self._parts.folder.mkdir(exist_ok=True)
            self._parts.tidy(self._bundles.whole_files)
            self._protected = self._read_protected()
            self._room.measure()

    # What is there

    @property
    def max_bytes(self) -> int:
        """Most bytes that it may take."""
        return self._room.max_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that it takes; a file with two names counts once, one on its way as if it were whole."""
        return self._room.used_bytes

    @property
    def evicted(self) -> int:
        """Bundles and unfinished files that had to make room, so far."""
        return self._room.evicted

    def installed(self) -> list[Installed]:
        """The bundles, the one used last first."""
        return self._bundles.installed()

    def protect(self, digests: Collection[str]) -> None:
        """These bundles stay, whatever room is needed; others may go. It is remembered over restarts and power cuts.

        Raises: StoreError: the disk does not take it; what was protected before still is.
        """
        wanted = frozenset(digests)
        with self._turn, on_disk(self._folder, "written"):
            self._bundles.used(wanted)
            if wanted != self._protected:
                disk.replace(self._folder / _PROTECTED, orjson.dumps(sorted(wanted)))
                self._protected = wanted

    def has(self, digest: str) -> bool:
        """Whether a chunk is here, as far as is known without reading it."""
        return bool(self._bundles.at(digest)) or any(place.filled for place in self._parts.at(digest))

    def chunk(self, digest: str) -> bytes:
        """A chunk's content, checked. Raises: ContentMissing: it is not here, or not any more."""
        for place in self._bundles.at(digest):
            if (data := place.read()) is not None:
                return data
            with self._turn:
                self.damaged += 1
                self._bundles.forget(place)
        for part, index in self._parts.at(digest):
            with suppress(OSError):
                if not part.has(index):
                    continue
                if fits(part.file.chunks[index], data := part.read(index)):
                    return data
                with self._turn:
                    self.damaged += 1
                    part.forget(index)
        raise ContentMissing(f"The store does not have {digest}", remedy="Fetch it.")

    # Bringing content in

    def missing(self, files: Sequence[File]) -> list[Chunk]:
        """The chunks that have to come before these files are whole, in order, each once. Room is made for them.

        Chunks that lie elsewhere in the store are copied.

        Raises:
            StoreFull: they do not fit into the quota beside what must stay.
            DiskFull: the disk has no room for them, or does not take them.
        """
        with self._turn, on_disk(self._folder, "written"):
            self._room.make(lambda: self._unfinished(files), self._protected, MANIFEST_BYTES)
            wanted: dict[str, Chunk] = {}
            for file in self._unfinished(files):
                part = self._parts.of(file)
                for index in list(part.missing()):
                    chunk = file.chunks[index]
                    if chunk.digest not in wanted and not self._copy(part, index):
                        wanted[chunk.digest] = chunk
            self._room.measure()
            return list(wanted.values())

    def put(self, digest: str, data: bytes | memoryview) -> bool:
        """Take a chunk that `missing` named.

        Returns: whether anything here was waiting for it.
        Raises:
            ContentDamaged: it is not what its digest says.
            DiskFull: the disk does not take it; what is there stays.
        """
        with self._turn, on_disk(self._folder, "written"):
            places = [place for place in self._parts.at(digest) if not place.filled]
            if not places:
                return False
            if not fits(places[0].chunk, data):
                raise ContentDamaged(
                    f"{len(data):,} bytes are not {digest}", remedy="It is asked for again, of somebody else."
                )
            for part, index in places:
                part.write(index, data)
                self._checked.discard(part.file.digest)
            return True

    def check(self, files: Sequence[File]) -> list[Chunk]:
        """Read these files and compare them with their digests, before `install` does so again only where it must.

        Returns: the chunks that have to be fetched, or fetched again; what else there is of the file stays.
        Raises: DiskFull: the disk does not read or write.
        """
        with self._turn, on_disk(self._folder, "read"):
            bad: dict[str, Chunk] = {}
            for file in each_once(files):
                if file.digest in self._checked and not self._lacks(file):
                    continue
                path = self._bundles.whole(file)
                if path is not None and not same(path, file):
                    log.warning("model-file-damaged", path=str(path))
                    self._parts.mend(path, file)
                    self._bundles.doubt(file)
                    path = None
                found = [] if path is not None else self._parts.of(file).check()
                bad |= {chunk.digest: chunk for chunk in found}
                if not found:
                    self._checked.add(file.digest)
            self.damaged += len(bad)
            self._room.measure()
            return list(bad.values())

    def install(self, manifest: bytes, files: Sequence[File]) -> Path:
        """Make a bundle of files that are whole. What is installed already is checked again.

        Args:
            manifest: the bundle's manifest, as it was signed.
            files: those of it that are to be there.
        Returns: the bundle's folder.
        Raises:
            BadManifest: it is none.
            ContentDamaged: a file is not what the manifest says; `missing` now names what has to be fetched again.
            StoreFull: it does not fit into the quota beside what must stay.
            DiskFull: the disk does not take it.
        """
        with self._turn, on_disk(self._folder, "written"):
            described = read_manifest(manifest)
            if bad := self.check(files):
                raise ContentDamaged(
                    f"{described.name} {described.version} is not whole: {len(bad)} chunks are missing or damaged",
                    remedy="Fetch it again: only these come. If that happens often, replace the disk.",
                )
            stays = self._protected | self._bundles.sharing({chunk.digest for file in files for chunk in file.chunks})
            self._room.make(lambda: self._unfinished(files), stays, len(manifest))
            folder = self._bundles.make(manifest, files, self._good)
            for file in each_once(files):
                self._checked.discard(file.digest)
                self._parts.drop(file.digest)
            self._room.measure()
            return folder

    def remove(self, digest: str) -> None:
        """Take a bundle away. Raises: StoreError: the disk does not let it."""
        with self._turn, on_disk(self._folder, "written"):
            self._bundles.remove(digest)
            self._room.measure()

    # Inside

    def _unfinished(self, files: Sequence[File]) -> list[File]:
        return [file for file in each_once(files) if self._bundles.whole(file) is None]

    def _lacks(self, file: File) -> bool:
        part = self._parts.on_disk(file)
        return self._bundles.whole(file) is None and (part is None or any(True for _ in part.missing()))

    def _good(self, file: File) -> Path:
        return self._bundles.whole(file) or self._parts.of(file).path

    def _copy(self, part: PartialFile, index: int) -> bool:
        """Fill in a chunk from elsewhere in the store. Returns: whether it is there now."""
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
