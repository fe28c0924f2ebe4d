"""Repository documents, requested from the region and shared by all nodes of the site.

Rules:
- Only the region can publish on the documents' topic, and all nodes receive and cache its replies: twenty nodes that refresh
  at once cost one reply over the WAN. Nodes wait a random time, and do not repeat a request another node has just made,
  unless it is not answered within two seconds.
- Documents are not verified here: signatures and lengths are checked by `trust`. If it rejects one, the cache is cleared, or
  the bad reply would be served for a quarter of an hour.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from random import Random
from typing import Final

from hedgerow import tasks
from hedgerow.blobs.announcements import (
    BadAnnouncement,
    DocumentPart,
    DocumentRequest,
    decode_document_part,
    decode_document_request,
    document_request_topic,
)
from hedgerow.blobs.errors import RegionUnavailable
from hedgerow.bus.client import Client
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.topics import Address
from hedgerow.trust.documents import DocumentMissing

_PAUSE_S: Final = 0.25
_TIMEOUTS_S: Final = (2.0, 4.0, 8.0, 15.0)
"""Time to wait for a reply, by attempt."""
_MUTABLE_TTL_S: Final = 5.0
_IMMUTABLE_TTL_S: Final = 900.0
"""How long replies are cached: mutable documents, and immutable ones."""
_CACHE_BYTES: Final = 8 << 20
_CACHE_ENTRIES: Final = 1024
"""Limits of the cache; a document that the region lacks is an entry without bytes."""


class RegionDocuments:
    """The region's documents (`trust.documents.Documents`). Call `get` and `forget` from threads, the rest on the event loop.

    Args:
        client: the link to the site's broker.
    Attributes:
        name: "region", for operators.
        requests: requests to the region so far.
    """

    name = "region"

    def __init__(self, client: Client, address: Address, random: Random) -> None:
        self._client = client
        self._address = address
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._cache: OrderedDict[tuple[str, int], tuple[float, DocumentPart]] = OrderedDict()
        self._cache_bytes = 0
        self._requested_at: dict[tuple[str, int], float] = {}
        self._arrived = asyncio.Condition()
        self.requests = 0

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """Yield a document in pieces. Do not call it on the event loop's thread.

        Args:
            path: of the document in the repository.
            max_bytes: stop after the piece that exceeds this size.
        Raises:
            DocumentMissing: the document does not exist.
            RegionUnavailable: the region does not respond.
        """
        offset = 0
        while True:
            arriving = asyncio.run_coroutine_threadsafe(self.part(path, offset), self._loop)
            with tasks.interrupted_by(arriving.cancel):
                part = arriving.result()
            if part.total is None:
                raise DocumentMissing(path)
            yield part.data
            offset += len(part.data)
            if offset >= part.total or offset > max_bytes or not part.data:
                return

    def forget(self) -> None:
        """Clear the cache after a document was rejected: the next reply may be another."""
        self._loop.call_soon_threadsafe(self._forget)

    def _forget(self) -> None:
        self._cache.clear()
        self._cache_bytes = 0
        self._requested_at.clear()

    async def part(self, path: str, offset: int) -> DocumentPart:
        """Return the part of a document at an offset. Raises: RegionUnavailable: the region does not respond."""
        key = path, offset
        if (part := self._cached(key)) is not None:
            return part
        await asyncio.sleep(self._random.uniform(0, _PAUSE_S))
        for attempt, wait_s in enumerate(_TIMEOUTS_S):
            if (part := self._cached(key)) is not None:
                return part
            # Others' requests spare this node one of its own only once: nobody can keep it from asking.
            if attempt or time.monotonic() - self._requested_at.get(key, float("-inf")) >= _TIMEOUTS_S[0]:
                self._request(key, wait_s)
            try:
                async with asyncio.timeout(wait_s), self._arrived:
                    await self._arrived.wait_for(lambda: self._cached(key) is not None)
            except TimeoutError:
                continue
        raise RegionUnavailable(
            f"The region did not send {path} within {sum(_TIMEOUTS_S):.0f} s",
            remedy="Check that `hedgerow region run` has a repository and that the site's bridge is connected.",
        )

    def on_request(self, payload: bytes | memoryview) -> None:
        """Note a request by a node of the site, this one included."""
        try:
            request = decode_document_request(payload)
        except BadAnnouncement:
            return
        if len(self._requested_at) > 1000:
            self._requested_at.clear()
        self._requested_at[request.path, request.offset] = time.monotonic()

    def on_part(self, payload: bytes | memoryview) -> None:
        """Cache a part received from the region. Raises: BadAnnouncement: it cannot be decoded."""
        part = decode_document_part(payload)
        key = part.path, part.offset
        _, old = self._cache.pop(key, (0.0, None))
        self._cache_bytes += len(part.data) - (0 if old is None else len(old.data))
        self._cache[key] = time.monotonic(), part
        while self._cache_bytes > _CACHE_BYTES or len(self._cache) > _CACHE_ENTRIES:
            _, (_, old) = self._cache.popitem(last=False)
            self._cache_bytes -= len(old.data)
        tasks.start(self._notify(), "notification of a document")

    async def _notify(self) -> None:
        async with self._arrived:
            self._arrived.notify_all()

    def _request(self, key: tuple[str, int], wait_s: float) -> None:
        self.requests += 1
        self._requested_at[key] = time.monotonic()
        properties = encode_properties([(Property.EXPIRY, int(wait_s) + 1)])
        self._client.publish(
            document_request_topic(self._address), DocumentRequest(*key).encode(), qos=1, properties=properties
        )

    def _cached(self, key: tuple[str, int]) -> DocumentPart | None:
        at, part = self._cache.get(key, (0.0, None))
        if part is None:
            return None
        age_s = time.monotonic() - at
        return part if age_s <= (_IMMUTABLE_TTL_S if _is_immutable(part) else _MUTABLE_TTL_S) else None


def _is_immutable(part: DocumentPart) -> bool:
    """Return whether a document never changes: its name begins with a version or digest."""
    name = part.path.rpartition("/")[2]
    first, _, rest = name.partition(".")
    if part.total is None:
        return False
    return (first.isdigit() and rest.endswith(".json")) or (len(first) == 64 and bool(rest))
