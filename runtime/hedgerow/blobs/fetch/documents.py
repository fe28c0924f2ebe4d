"""Documents of the repository for this node: small, asked of the region, and heard by the whole site.

Rules:
- Only the region can speak on the topic of documents, and what it says to one node all hear and remember for a while: so
  twenty nodes that look at once cost the WAN one answer. Nodes wait a random moment, and leave to another what he has
  just asked for.
- Nothing is believed here: signatures and lengths are `trust`'s part. What that refuses is not remembered, or one bad answer
  would be given again for a quarter of an hour.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from random import Random
from typing import Final

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
_TRIES_S: Final = (2.0, 4.0, 8.0, 15.0)
"""How long to wait for an answer, try by try."""
_FRESH_S: Final = 5.0
_KEPT_S: Final = 900.0
"""How long answers are remembered: those that may change, and those that never do."""
_KEPT_BYTES: Final = 8 << 20


class RegionDocuments:
    """The region's documents (`trust.documents.Documents`): `get` is for threads, all else for the event loop.

    Args:
        client: the link to the site's broker.
    Attributes:
        asked: times the region was asked, so far.
    """

    def __init__(self, client: Client, address: Address, random: Random) -> None:
        self._client = client
        self._address = address
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._kept: OrderedDict[tuple[str, int], tuple[float, DocumentPart]] = OrderedDict()
        self._kept_bytes = 0
        self._asked_at: dict[tuple[str, int], float] = {}
        self._news = asyncio.Condition()
        self._tellers: set[asyncio.Task[None]] = set()
        self.asked = 0

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """Bring a document, piece by piece; not to be called on the event loop's thread.

        Args:
            max_bytes: no piece is brought after this many bytes.
        Raises:
            DocumentMissing: there is none.
            RegionUnavailable: nobody answers.
        """
        offset = 0
        while True:
            part = asyncio.run_coroutine_threadsafe(self.part(path, offset), self._loop).result()
            if part.total is None:
                raise DocumentMissing(path)
            yield part.data
            offset += len(part.data)
            if offset >= part.total or offset > max_bytes or not part.data:
                return

    def forget(self) -> None:
        """What has come was refused: ask anew next time, for whoever sent it may be gone."""
        self._loop.call_soon_threadsafe(self._forget)

    def _forget(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0
        self._asked_at.clear()

    async def part(self, path: str, offset: int) -> DocumentPart:
        """The part of a document that begins there. Raises: RegionUnavailable: nobody answers."""
        key = path, offset
        if (part := self._remembered(key)) is not None:
            return part
        await asyncio.sleep(self._random.uniform(0, _PAUSE_S))
        for wait_s in _TRIES_S:
            if (part := self._remembered(key)) is not None:
                return part
            if time.monotonic() - self._asked_at.get(key, float("-inf")) >= _TRIES_S[0]:
                self._ask(key, wait_s)
            try:
                async with asyncio.timeout(wait_s), self._news:
                    await self._news.wait_for(lambda: self._remembered(key) is not None)
            except TimeoutError:
                continue
        raise RegionUnavailable(
            f"The region does not send {path}: no answer within {sum(_TRIES_S):.0f} s",
            remedy="Check that `hedgerow region run` has a repository and that the site's bridge is connected.",
        )

    def heard_ask(self, payload: bytes | memoryview) -> None:
        """A node of the site, perhaps this one, asks for a document."""
        try:
            ask = decode_document_request(payload)
        except BadAnnouncement:
            return
        if len(self._asked_at) > 1000:
            self._asked_at.clear()
        self._asked_at[ask.path, ask.offset] = time.monotonic()

    def heard(self, payload: bytes | memoryview) -> None:
        """The region sends a part of a document. Raises: BadNote: it is none."""
        part = decode_document_part(payload)
        key = part.path, part.offset
        _, old = self._kept.pop(key, (0.0, None))
        self._kept_bytes += len(part.data) - (0 if old is None else len(old.data))
        self._kept[key] = time.monotonic(), part
        while self._kept_bytes > _KEPT_BYTES:
            _, (_, old) = self._kept.popitem(last=False)
            self._kept_bytes -= len(old.data)
        teller = self._loop.create_task(self._tell())
        self._tellers.add(teller)
        teller.add_done_callback(self._tellers.discard)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _ask(self, key: tuple[str, int], wait_s: float) -> None:
        self.asked += 1
        self._asked_at[key] = time.monotonic()
        properties = encode_properties([(Property.EXPIRY, int(wait_s) + 1)])
        self._client.publish(
            document_request_topic(self._address), DocumentRequest(*key).encode(), qos=1, properties=properties
        )

    def _remembered(self, key: tuple[str, int]) -> DocumentPart | None:
        at, part = self._kept.get(key, (0.0, None))
        if part is None:
            return None
        age_s = time.monotonic() - at
        return part if age_s <= (_KEPT_S if _for_good(part) else _FRESH_S) else None


def _for_good(part: DocumentPart) -> bool:
    """Whether a name always means the same content: a version or a digest stands in front of it."""
    name = part.path.rpartition("/")[2]
    first, _, rest = name.partition(".")
    if part.total is None:
        return False
    return (first.isdigit() and rest.endswith(".json")) or (len(first) == 64 and bool(rest))
