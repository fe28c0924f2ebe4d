"""Gives other nodes of the site what they want and this one has, over the site's broker."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from random import Random
from typing import Final

import structlog

from hedgerow.blobs.announcements import Announcement, AnnouncementKind, note_topic, part_topic
from hedgerow.blobs.errors import BlobStoreError, ContentMissing
from hedgerow.blobs.peers.peer_offers import PeerOffers, PeerRequest
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

MOST_UNDER_WAY: Final = 4
"""Chunks that the broker has not acknowledged: results share its attention."""


class Neighbours:
    """What this node does for others.

    Args:
        client: the link to the site's broker.
    Attributes:
        chunks_sent, bytes_sent: chunks sent to peers and acknowledged by the broker, and their bytes.
    """

    def __init__(self, client: Client, address: Address, store: BlobStore, random: Random) -> None:
        self._client = client
        self._address = address
        self._store = store
        self._offers = PeerOffers(address.node, store.has, random)
        self._wake = asyncio.Event()
        self._room = asyncio.Semaphore(MOST_UNDER_WAY)
        self.chunks_sent = 0
        self.bytes_sent = 0

    def heard(self, note: Announcement, sender: str) -> None:
        """Somebody wants chunks, or offers them."""
        if note.kind is AnnouncementKind.WANT:
            self._offers.wanted(note, sender, time.monotonic())
        elif note.kind is AnnouncementKind.HAVE:
            self._offers.offered(note, sender, time.monotonic())
        self._wake.set()

    def give(self, group: str, digest: str) -> None:
        """Send a chunk that was brought for all."""
        self._offers.give(PeerRequest(group, digest))
        self._wake.set()

    async def run(self) -> None:
        """Offer and send until cancelled."""
        while True:
            self._wake.clear()
            now = time.monotonic()
            due, again_at = self._offers.next(now)
            for group, digests in due.items():
                note = Announcement(AnnouncementKind.HAVE, group, tuple(digests))
                self._client.publish(note_topic(self._address, AnnouncementKind.HAVE), note.encode(), qos=1)
            while (wanted := self._offers.take()) is not None:
                await self.send(wanted.group, wanted.digest)
            try:
                async with asyncio.timeout(max(0.0, again_at - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def send(self, group: str, digest: str) -> None:
        """Send a chunk to whoever wants it, when there is room for it on the way."""
        await self._room.acquire()
        try:
            data = await asyncio.to_thread(self._store.chunk, digest)
        except (ContentMissing, BlobStoreError) as error:
            log.warning("chunk-not-given", digest=digest, error=str(error))
            self._room.release()
            return
        except BaseException:
            self._room.release()
            raise
        topic = part_topic(self._address, group, digest)
        self._client.publish(topic, data, qos=1, done=partial(self._sent, len(data)))

    def _sent(self, size: int, error: Exception | None) -> None:
        self._room.release()
        if error is None:
            self.chunks_sent += 1
            self.bytes_sent += size
