"""What can go wrong with content on its way and on the disk: look at the region, at the repository, or at the disk."""

from __future__ import annotations

from hedgerow.errors import BusError, HedgerowError


class RegionAway(BusError):
    """Nobody answers where content comes from: wait, or look at the link."""

    code = "region-away"


class ContentMissing(HedgerowError):
    """Nobody has the content: mend the repository."""

    code = "content-missing"


class ContentDamaged(HedgerowError):
    """What came, or what lies on the disk, is not what its digest says."""

    code = "content-damaged"


class StoreError(HedgerowError):
    """The store cannot take or give something: look at the node's disk."""

    code = "model-store"


class StoreFull(StoreError):
    """What is needed does not fit into the store's quota beside what must stay."""

    code = "store-full"


class DiskFull(StoreError):
    """The disk has no room left, or does not take what is written."""

    code = "disk-full"
