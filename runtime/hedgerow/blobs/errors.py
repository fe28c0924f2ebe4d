"""What can go wrong with content on its way and on the disk: look at the region, at the repository, or at the disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hedgerow.errors import BusError, HedgerowError


class RegionUnavailable(BusError):
    """Nobody answers where content comes from: wait, or look at the link."""

    code = "region-away"


class ContentMissing(HedgerowError):
    """Nobody has the content: mend the repository."""

    code = "content-missing"


class ContentDamaged(HedgerowError):
    """What came, or what lies on the disk, is not what its digest says."""

    code = "content-damaged"


class BlobStoreError(HedgerowError):
    """The store cannot take or give something: look at the node's disk."""

    code = "model-store"


class StoreFull(BlobStoreError):
    """What is needed does not fit into the store's quota beside what must stay."""

    code = "store-full"


class DiskFull(BlobStoreError):
    """The disk has no room left, or does not take what is written."""

    code = "disk-full"


@contextmanager
def on_disk(folder: Path, done: str) -> Iterator[None]:
    """Translate what the disk says.

    Args:
        folder: where the store is.
        done: what is done to files there: `written`.
    Raises:
        DiskFull: there is no room.
        StoreError: something else is wrong.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"The disk is full: {where} could not be {done}",
                remedy="Make room on it; what was fetched stays, and the rest comes when there is room.",
            ) from error
        raise BlobStoreError(
            f"{where} could not be {done}: {error.strerror or error}",
            remedy="Look at the disk, and whether this user may write there.",
        ) from error
