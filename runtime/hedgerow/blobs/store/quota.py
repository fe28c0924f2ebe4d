"""Disk quota of a store, and eviction.

The least recently used content is evicted first. Bundles that share chunks with the current fetch are evicted last: those
chunks would have to cross the WAN again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import structlog

from hedgerow.blobs.errors import DiskFull, StoreFull
from hedgerow.blobs.store.bundles import Bundles
from hedgerow.blobs.store.parts import Parts
from hedgerow.models.bundle.manifest import File

log = structlog.get_logger(__name__)


class Quota:
    """Quota of a store.

    Args:
        bundles, parts: content of the store.
        max_bytes: the quota.
    Attributes:
        max_bytes: the quota.
        used_bytes: disk usage; a file with several links counts once, an unfinished one at its full size.
        evicted: bundles and unfinished files evicted so far.
    """

    def __init__(self, bundles: Bundles, parts: Parts, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.evicted = 0
        self._bundles = bundles
        self._parts = parts

    def measure(self) -> None:
        """Update `used_bytes`. Raises: OSError."""
        self.used_bytes = _size(self._bundles.folder, self._parts.folder)

    def make_room(self, incomplete: Callable[[], Sequence[File]], protected: Collection[str], more_bytes: int) -> None:
        """Evict content until files fit in the quota, and check that they fit on the disk.

        Args:
            incomplete: returns the files to make room for; called again after an eviction, which may have removed one of them.
            protected: bundles not to evict.
            more_bytes: further bytes needed.
        Raises:
            StoreFull: they do not fit beside protected content.
            DiskFull: the disk has too little free space.
            OSError.
        """
        files = incomplete()
        retained = _size(
            *map(self._bundles.folder_of, protected), *(part.path for part in map(self._parts.existing, files) if part)
        )
        while (needed := self._needed(files) + more_bytes) + self.used_bytes > self.max_bytes:
            victim = next(self._evictable(files, protected), None)
            if victim is None or retained + needed > self.max_bytes:
                raise StoreFull(
                    f"{needed:,} more bytes do not fit in the model store: {retained:,} of {self.max_bytes:,} are used by serving "
                    "versions, versions kept for a rollback, and the current fetch",
                    remedy="Raise the quota (`fleet: {store_max_bytes: …}`), or build a smaller variant.",
                )
            self._evict(victim)
            files = incomplete()
        free = shutil.disk_usage(self._parts.folder).free
        unwritten = sum(_unwritten(file, self._parts) for file in files) + more_bytes
        if unwritten > free:
            raise DiskFull(
                f"{unwritten:,} more bytes are needed, but only {free:,} are free on the disk of {self._parts.folder.parent}",
                remedy="Free some disk space, or lower the quota (`fleet: {store_max_bytes: …}`) so that it fits on the disk.",
            )

    def _needed(self, files: Sequence[File]) -> int:
        return sum(file.size + len(file.chunks) for file in files if self._parts.existing(file) is None)

    def _evictable(self, files: Sequence[File], protected: Collection[str]) -> Iterator[str | Path]:
        """Yield what may be evicted, in order: digests of bundles, and unfinished files."""
        fetching = {file.digest.removeprefix("sha256:") for file in files}
        sharing = self._bundles.sharing({chunk.digest for file in files for chunk in file.chunks})
        found: list[tuple[bool, float, str | Path]] = [
            (each.digest in sharing, each.used_at, each.digest)
            for each in self._bundles.installed()
            if each.digest not in protected
        ]
        found += [(False, path.stat().st_mtime, path) for path in self._parts.unfinished() if path.name not in fetching]
        yield from (victim for _, _, victim in sorted(found, key=lambda each: each[:2]))

    def _evict(self, victim: str | Path) -> None:
        log.info("store-evicts", what=str(victim))
        self.evicted += 1
        if isinstance(victim, Path):
            self._parts.drop(victim.name)
        else:
            self._bundles.remove(victim)
        self.measure()


def _size(*places: Path) -> int:
    """Return the size of all files; one with several links counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for place in places:
        for path in (place, *place.rglob("*")):
            if path.is_file():
                status = path.lstat()
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def _unwritten(file: File, parts: Parts) -> int:
    """Return the disk space a file still needs: holes of an unfinished file are not allocated yet."""
    part = parts.existing(file)
    return max(0, file.size - (part.path.stat().st_blocks * 512 if part is not None else 0))
