"""Where a node keeps the models it has fetched: whole bundles, and files on their way.

    bundles/<digest>/manifest.json, …    what is whole; a backend opens files here
    parts/<file's digest>                what is being fetched: see `parts`
    staging/                             what is being put together, or taken away

Rules:
- Nothing is believed that was not checked. A bundle appears by one rename, when all of it is on the disk.
- What is there once is not there twice: equal files of two bundles are one file with two names, and a chunk that another
  file has is copied from there instead of fetched.
- Never more bytes than the quota. What has not been used for longest goes first, but never what is protected.
- A power cut or a kill at any instant costs at most the chunk that was being written.

Blocks; may be called from any thread.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import structlog

from hedgerow import disk
from hedgerow.blobs.errors import ContentDamaged, ContentMissing, DiskFull, StoreError, StoreFull
from hedgerow.blobs.parts import THERE, PartialFile, fits, hex_of, same
from hedgerow.models.manifest import MANIFEST, Chunk, File, Manifest, digest_of, read_manifest

log = structlog.get_logger(__name__)

_PROTECTED: Final = "protected.json"


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
class _Place:
    """Where a chunk lies in a file that is whole."""

    path: Path
    offset: int
    chunk: Chunk

    def read(self) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.chunk.size)


class BlobStore:
    """The store in a folder; one process has it at a time.

    Args:
        folder: where it is; made if it is not there.
        max_bytes: most bytes that it may take.
    Attributes:
        max_bytes: likewise.
        evicted: bundles and unfinished files that had to make room, so far.
        damaged: chunks that were not what they should be any more, so far.
    Raises: StoreError: the folder cannot be used.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.evicted = 0
        self.damaged = 0
        self._lock = threading.RLock()
        self._bundles_dir, self._parts_dir, self._staging = folder / "bundles", folder / "parts", folder / "staging"
        self._protected_file = folder / _PROTECTED
        self._bundles: dict[str, Manifest] = {}
        self._whole: dict[str, Path] = {}
        self._places: dict[str, list[_Place]] = {}
        self._partials: dict[str, PartialFile] = {}
        self._wanted: dict[str, list[tuple[PartialFile, int]]] = {}
        self._checked: set[str] = set()
        self._used: int | None = None
        with self._disk("opened"):
            shutil.rmtree(self._staging, ignore_errors=True)
            for part in (self._bundles_dir, self._parts_dir, self._staging):
                part.mkdir(parents=True, exist_ok=True)
            self._protected = self._read_protected()
            for bundle in sorted(self._bundles_dir.iterdir()):
                self._open_bundle(bundle)

    # What is there

    @property
    def used_bytes(self) -> int:
        """Bytes that it takes; a file with two names counts once, one on its way as if it were whole."""
        with self._lock:
            if self._used is None:
                seen = {
                    (status.st_dev, status.st_ino): status.st_size
                    for folder in (self._bundles_dir, self._parts_dir)
                    for path in folder.rglob("*")
                    if (status := path.lstat()) and path.is_file()
                }
                self._used = sum(seen.values())
            return self._used

    def installed(self) -> list[Installed]:
        """The bundles, the one used last first."""
        with self._lock:
            found = []
            for digest, manifest in self._bundles.items():
                folder = self._folder(digest)
                with suppress(OSError):
                    used_at = (folder / MANIFEST).stat().st_mtime
                    found.append(Installed(digest, manifest.name, manifest.version, folder, used_at))
            return sorted(found, key=lambda each: each.used_at, reverse=True)

    def protect(self, digests: Collection[str]) -> None:
        """These bundles stay, whatever room is needed; others may go. It is remembered over restarts."""
        with self._lock, self._disk("written"):
            self._protected = frozenset(digests)
            for digest in self._protected & self._bundles.keys():
                os.utime(self._folder(digest) / MANIFEST)
            aside = self._protected_file.with_suffix(".new")
            aside.write_bytes(orjson.dumps(sorted(self._protected)))
            aside.replace(self._protected_file)

    def has(self, digest: str) -> bool:
        """Whether a chunk is here, as far as is known without reading it."""
        with self._lock:
            key = hex_of(digest)
            return key in self._places or any(part.has(index) for part, index in self._wanted.get(key, ()))

    def chunk(self, digest: str) -> bytes:
        """A chunk's content, checked. Raises: ContentMissing: it is not here, or not any more."""
        with self._lock:
            key = hex_of(digest)
            for place in list(self._places.get(key, ())):
                with suppress(OSError):
                    if fits(place.chunk, data := place.read()):
                        return data
                self.damaged += 1
                self._forget(place)
            for part, index in self._wanted.get(key, ()):
                with suppress(OSError):
                    if part.has(index):
                        if fits(part.file.chunks[index], data := part.read(index)):
                            return data
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
        with self._lock:
            unfinished = [file for file in _each(files) if self._whole_of(file) is None]
            self._make_room(unfinished)
            wanted: dict[str, Chunk] = {}
            for file in unfinished:
                part = self._partial(file)
                for index in list(part.missing()):
                    chunk = file.chunks[index]
                    if chunk.digest not in wanted and not self._copy(part, index):
                        wanted[chunk.digest] = chunk
            return list(wanted.values())

    def put(self, digest: str, data: bytes | memoryview) -> bool:
        """Take a chunk that `missing` named.

        Returns: whether anything here was waiting for it.
        Raises:
            ContentDamaged: it is not what its digest says.
            DiskFull: the disk does not take it; what is there stays.
        """
        with self._lock:
            places = [(part, at) for part, at in self._wanted.get(hex_of(digest), ()) if not part.has(at)]
            if not places:
                return False
            if not fits(places[0][0].file.chunks[places[0][1]], data):
                raise ContentDamaged(
                    f"{len(data):,} bytes are not {digest}", remedy="It is asked for again, of somebody else."
                )
            with self._disk("written"):
                for part, index in places:
                    part.write(index, data)
                    self._checked.discard(part.file.digest)
            return True

    def check(self, files: Sequence[File]) -> list[Chunk]:
        """Read these files and compare them with their digests, before `install` does so again only where it must.

        Returns: the chunks that have to be fetched, or fetched again; what else there is of the file stays.
        Raises: DiskFull: the disk does not read or write.
        """
        with self._lock, self._disk("read"):
            bad: dict[str, Chunk] = {}
            for file in _each(files):
                if file.digest in self._checked:
                    continue
                path = self._whole_of(file)
                if path is not None and not same(path, file):
                    log.warning("model-file-damaged", path=str(path))
                    self._mend(path, file)
                    path = None
                found = [] if path is not None else self._partial(file).check()
                bad |= {chunk.digest: chunk for chunk in found}
                if not found:
                    self._checked.add(file.digest)
            self.damaged += len(bad)
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
            DiskFull: the disk does not take it.
        """
        with self._lock, self._disk("written"):
            described, digest = read_manifest(manifest), digest_of(manifest)
            if bad := self.check(files):
                raise ContentDamaged(
                    f"{described.name} {described.version} is not whole: {len(bad)} chunks are missing or damaged",
                    remedy="Fetch it again: only these come. If that happens often, replace the disk.",
                )
            folder, staging = self._folder(digest), self._staging / hex_of(digest)
            if folder.exists():
                self._fill(folder, files)
                os.utime(folder / MANIFEST)
            else:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
                disk.write(staging / MANIFEST, manifest)
                self._fill(staging, files)
                staging.replace(folder)
                disk.sync(folder.parent)
            self._used = None
            self._open_bundle(folder)
            for file in _each(files):
                self._checked.discard(file.digest)
                if part := self._partials.pop(file.digest, None):
                    part.remove()
            self._wanted = _positions(self._partials.values())
            return folder

    def remove(self, digest: str) -> None:
        """Take a bundle away. Raises: DiskFull: the disk does not let it."""
        with self._lock, self._disk("written"):
            if self._bundles.pop(digest, None) is None:
                return
            away = self._staging / f"{hex_of(digest)}.gone"
            shutil.rmtree(away, ignore_errors=True)
            self._folder(digest).replace(away)
            shutil.rmtree(away, ignore_errors=True)
            self._index()

    # Inside

    def _folder(self, digest: str) -> Path:
        return self._bundles_dir / hex_of(digest)

    def _whole_of(self, file: File) -> Path | None:
        """Where the file is whole, in a bundle; its content is not looked at."""
        path = self._whole.get(file.digest)
        with suppress(OSError):
            if path is not None and path.stat().st_size == file.size:
                return path
        return None

    def _partial(self, file: File) -> PartialFile:
        part = self._partials.get(file.digest)
        if part is None or not part.exists:
            part = self._partials[file.digest] = PartialFile(self._parts_dir, file)
            with self._disk("written"):
                part.create()
            self._used = None
            self._wanted = _positions(self._partials.values())
        return part

    def _copy(self, part: PartialFile, index: int) -> bool:
        """Fill in a chunk from elsewhere in the store. Returns: whether it is there now."""
        try:
            data = self.chunk(part.file.chunks[index].digest)
        except ContentMissing:
            return False
        with self._disk("written"):
            part.write(index, data)
        return True

    def _mend(self, path: Path, file: File) -> None:
        """A file of a bundle is damaged: what is good of it is kept as a file on its way."""
        part = self._partials[file.digest] = PartialFile(self._parts_dir, file)
        part.adopt(path)
        self._index()
        self._wanted = _positions(self._partials.values())

    def _fill(self, folder: Path, files: Sequence[File]) -> None:
        """Give a bundle's folder its files, on the disk for good."""
        folders = {folder}
        for file in {file.path: file for file in files}.values():
            target = folder / file.path
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            folders |= {parent for parent in target.parents if parent.is_relative_to(folder)}
            source = self._whole_of(file) or self._partials[file.digest].path
            with source.open("rb") as stream:
                os.fsync(stream.fileno())
            try:
                os.link(source, target)
            except OSError:  # a file system without second names
                shutil.copyfile(source, target)
                with target.open("rb") as stream:
                    os.fsync(stream.fileno())
        for each in sorted(folders, reverse=True):
            disk.sync(each)

    def _open_bundle(self, folder: Path) -> None:
        try:
            manifest = read_manifest((folder / MANIFEST).read_bytes(), f"sha256:{folder.name}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no bundle, and must not keep the node from starting
            log.warning("bundle-unreadable", folder=str(folder), error=str(error))
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._bundles[f"sha256:{folder.name}"] = manifest
        self._index_bundle(folder, manifest)

    def _index(self) -> None:
        self._whole, self._places, self._used = {}, {}, None
        for digest, manifest in self._bundles.items():
            self._index_bundle(self._folder(digest), manifest)

    def _index_bundle(self, folder: Path, manifest: Manifest) -> None:
        for file in _each(manifest.files()):
            path = folder / file.path
            if file.digest in self._whole or not path.is_file():
                continue
            self._whole[file.digest] = path
            offset = 0
            for chunk in file.chunks:
                self._places.setdefault(hex_of(chunk.digest), []).append(_Place(path, offset, chunk))
                offset += chunk.size

    def _forget(self, place: _Place) -> None:
        key = hex_of(place.chunk.digest)
        left = [each for each in self._places.get(key, ()) if each != place]
        if left:
            self._places[key] = left
        else:
            self._places.pop(key, None)

    def _make_room(self, files: Sequence[File]) -> None:
        """See that what is still to come of some files fits into the quota and onto the disk."""
        new = [file for file in files if not (self._parts_dir / hex_of(file.digest)).exists()]
        needed = sum(file.size + len(file.chunks) for file in new)
        keep = {hex_of(file.digest) for file in files}
        going = self._goers(keep)
        while self.used_bytes + needed > self.max_bytes:
            goer = next(going, None)
            if goer is None:
                raise StoreFull(
                    f"{needed:,} bytes more do not fit: {self.used_bytes:,} of {self.max_bytes:,} are taken by what serves, "
                    "what would serve if that were taken back, and what is being fetched",
                    remedy="Give the store more room (`fleet: {store_max_bytes: …}`), or build a smaller variant.",
                )
            self._evict(goer)
        with self._disk("looked at"):
            free = shutil.disk_usage(self._parts_dir).free
        if needed > free:
            raise DiskFull(
                f"{needed:,} bytes more are needed, and {free:,} are free on the disk of {self._parts_dir.parent}",
                remedy="Make room on the disk; the quota (`fleet: {store_max_bytes: …}`) should be less than it has.",
            )

    def _goers(self, keep: Collection[str]) -> Iterator[str | Path]:
        """What may go, that which was used last at the end: digests of bundles, and unfinished files."""
        found: list[tuple[float, str | Path]] = [
            (each.used_at, each.digest) for each in self.installed() if each.digest not in self._protected
        ]
        unfinished = [path for path in self._parts_dir.iterdir() if path.suffix != THERE and path.name not in keep]
        found += [(path.stat().st_mtime, path) for path in unfinished]
        yield from (goer for _, goer in sorted(found, key=lambda each: each[0]))

    def _evict(self, goer: str | Path) -> None:
        log.info("store-evicts", what=str(goer))
        self.evicted += 1
        if isinstance(goer, str):
            self.remove(goer)
            return
        with self._disk("written"):
            goer.unlink(missing_ok=True)
            goer.with_name(goer.name + THERE).unlink(missing_ok=True)
        self._partials.pop(f"sha256:{goer.name}", None)
        self._wanted = _positions(self._partials.values())
        self._used = None

    def _read_protected(self) -> frozenset[str]:
        try:
            return frozenset(orjson.loads(self._protected_file.read_bytes()))
        except (OSError, ValueError, TypeError):
            return frozenset()

    @contextmanager
    def _disk(self, done: str) -> Iterator[None]:
        """Translate what the disk says."""
        try:
            yield
        except OSError as error:
            where = error.filename or self._bundles_dir.parent
            if error.errno in (28, 122):  # no space; over the user's quota
                raise DiskFull(
                    f"The disk is full: {where} could not be {done}",
                    remedy="Make room on it; what was fetched stays, and the rest comes when there is room.",
                ) from error
            raise StoreError(
                f"{where} could not be {done}: {error.strerror or error}",
                remedy="Look at the disk, and whether this user may write there.",
            ) from error


def _each(files: Sequence[File]) -> list[File]:
    return list({file.digest: file for file in files}.values())


def _positions(parts: Collection[PartialFile]) -> dict[str, list[tuple[PartialFile, int]]]:
    found: dict[str, list[tuple[PartialFile, int]]] = {}
    for part in parts:
        for index, chunk in enumerate(part.file.chunks):
            found.setdefault(hex_of(chunk.digest), []).append((part, index))
    return found
