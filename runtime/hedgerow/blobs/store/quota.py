"""How much a store may take, and what goes when that is not enough.

What has not been used for longest goes first, but what has chunks of what is being fetched only after all else: these
would have to come over the WAN again.
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
    """The room of a store.

    Args:
        max_bytes: most bytes that it may take.
    Attributes:
        max_bytes: likewise.
        used_bytes: bytes that it takes; a file with two names counts once, one on its way as if it were whole.
        evicted: bundles and unfinished files that had to go, so far.
    """

    def __init__(self, bundles: Bundles, parts: Parts, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.evicted = 0
        self._bundles = bundles
        self._parts = parts

    def measure(self) -> None:
        """Look again how much is taken. Raises: OSError."""
        self.used_bytes = _size(self._bundles.folder, self._parts.folder)

    def make(self, wanted: Callable[[], Sequence[File]], protected: Collection[str], more_bytes: int) -> None:
        """See that files fit into the quota and onto the disk.

        Args:
            wanted: files that are not whole here; asked anew when something had to go, since it may have had one of them.
            protected: bundles that stay.
            more_bytes: what is needed besides.
        Raises:
            StoreFull: they do not fit beside what must stay.
            DiskFull: there is not so much on the disk.
            OSError.
        """
        files = wanted()
        stays = _size(
            *map(self._bundles.of, protected), *(part.path for part in map(self._parts.on_disk, files) if part)
        )
        while (needed := self._needed(files) + more_bytes) + self.used_bytes > self.max_bytes:
            goer = next(self._goers(files, protected), None)
            if goer is None or stays + needed > self.max_bytes:
                raise StoreFull(
                    f"{needed:,} bytes more do not fit: {stays:,} of {self.max_bytes:,} are taken by what serves, "
                    "what would serve if that were taken back, and what is being fetched",
                    remedy="Give the store more room (`fleet: {store_max_bytes: …}`), or build a smaller variant.",
                )
            self._evict(goer)
            files = wanted()
        free = shutil.disk_usage(self._parts.folder).free
        unwritten = sum(_unwritten(file, self._parts) for file in files) + more_bytes
        if unwritten > free:
            raise DiskFull(
                f"{unwritten:,} bytes more are needed, and {free:,} are free on the disk of {self._parts.folder.parent}",
                remedy="Make room on the disk; the quota (`fleet: {store_max_bytes: …}`) should be less than it has.",
            )

    def _needed(self, files: Sequence[File]) -> int:
        return sum(file.size + len(file.chunks) for file in files if self._parts.on_disk(file) is None)

    def _goers(self, files: Sequence[File], protected: Collection[str]) -> Iterator[str | Path]:
        """What may go, that first which should: digests of bundles, and unfinished files."""
        wanted = {file.digest.removeprefix("sha256:") for file in files}
        sharing = self._bundles.sharing({chunk.digest for file in files for chunk in file.chunks})
        found: list[tuple[bool, float, str | Path]] = [
            (each.digest in sharing, each.used_at, each.digest)
            for each in self._bundles.installed()
            if each.digest not in protected
        ]
        found += [(False, path.stat().st_mtime, path) for path in self._parts.unfinished() if path.name not in wanted]
        yield from (goer for _, _, goer in sorted(found, key=lambda each: each[:2]))

    def _evict(self, goer: str | Path) -> None:
        log.info("store-evicts", what=str(goer))
        self.evicted += 1
        if isinstance(goer, Path):
            self._parts.drop(goer.name)
        else:
            self._bundles.remove(goer)
        self.measure()


def _size(*places: Path) -> int:
    """Bytes of the files there; one with two names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for place in places:
        for path in (place, *place.rglob("*")):
            if path.is_file():
                status = path.lstat()
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def _unwritten(file: File, parts: Parts) -> int:
    """Bytes that the disk has to find for a file: holes in one that was begun are not on it yet."""
    part = parts.on_disk(file)
    return max(0, file.size - (part.path.stat().st_blocks * 512 if part is not None else 0))
