"""Errors of fetching and storing content."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hedgerow.errors import BusError, HedgerowError


class RegionUnavailable(BusError):
    """The region does not respond: wait, or check the link."""

    code = "region-away"


class ContentMissing(HedgerowError):
    """The region or a mirror lacks the content: repair the repository."""

    code = "content-missing"


class ContentDamaged(HedgerowError):
    """Received or stored content does not match its digest."""

    code = "content-damaged"


class BlobStoreError(HedgerowError):
    """The store cannot read or write: check the node's disk."""

    code = "model-store"


class StoreFull(BlobStoreError):
    """The content does not fit in the quota beside protected bundles."""

    code = "store-full"


class DiskFull(BlobStoreError):
    """The disk is full."""

    code = "disk-full"


@contextmanager
def on_disk(folder: Path, action: str) -> Iterator[None]:
    """Translate the operating system's errors.

    Args:
        folder: the store's.
        action: what is done to files there, as an infinitive: `write`.
    Raises:
        DiskFull: the disk is full.
        BlobStoreError: any other error.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"The disk is full: cannot {action} {where}",
                remedy="Free some disk space. Fetched chunks are kept, and the fetch then resumes.",
            ) from error
        raise BlobStoreError(
            f"Cannot {action} {where}: {error.strerror or error}",
            remedy="Check the disk, and that this user may read and write there.",
        ) from error
