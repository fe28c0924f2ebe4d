"""Sends stored chunks to other nodes of the site, over the site's broker."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from random import Random
from typing import Final

import structlog

from hedgerow.blobs.announcements import Announcement, AnnouncementKind, announcement_topic, part_topic
from hedgerow.blobs.errors import BlobStoreError, ContentMissing
from hedgerow.blobs.peers.peer_offers import PeerOffers, PeerRequest
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

MAX_IN_FLIGHT: Final = 4
"""Limit on chunks not yet acknowledged by the broker, which also carries results."""


class PeerServer:
    """Offers and sends chunks to peers.

    Args:
        client: the link to the site's broker.
        address: this node's.
        store: source of the chunks.
        random: source of jitter.
    Attributes:
        chunks_sent, bytes_sent: chunks sent to peers and acknowledged by the broker, and their bytes.
    """

    def __init__(self, client: Client, address: Address, store: BlobStore, random: Random) -> None:
        self._client = client
        self._address = address
        self._store = store
        self._offers = PeerOffers(address.node, store.has, random)
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self.chunks_sent = 0
        self.bytes_sent = 0

    def on_announcement(self, announcement: Announcement, sender: str) -> None:
        """Handle a peer's want or offer."""
        if announcement.kind is AnnouncementKind.WANT:
            self._offers.on_want(announcement, sender, time.monotonic())
        elif announcement.kind is AnnouncementKind.HAVE:
            self._offers.on_have(announcement, sender, time.monotonic())
        self._wake.set()

    def share(self, group: str, digest: str) -> None:
        """Send a chunk fetched from a mirror to all peers."""
        self._offers.share(PeerRequest(group, digest))
        self._wake.set()

    async def run(self) -> None:
        """Offer and send until cancelled."""
        while True:
            self._wake.clear()
            now = time.monotonic()
            due, wake_at = self._offers.next(now)
            for group, digests in due.items():
                announcement = Announcement(AnnouncementKind.HAVE, group, tuple(digests))
                self._client.publish(
                    announcement_topic(self._address, AnnouncementKind.HAVE), announcement.encode(), qos=1
                )
            while (request := self._offers.take()) is not None:
                await self.send(request.group, request.digest)
            try:
                async with asyncio.timeout(max(0.0, wake_at - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def send(self, group: str, digest: str) -> None:
        """Send a chunk as soon as fewer than `MAX_IN_FLIGHT` are in flight."""
        await self._slots.acquire()
        try:
            data = await asyncio.to_thread(self._store.chunk, digest)
            topic = part_topic(self._address, group, digest)
            self._client.publish(topic, data, qos=1, done=partial(self._sent, len(data)))
        except (ContentMissing, BlobStoreError) as error:
            log.warning("chunk-not-given", digest=digest, error=str(error))
            self._slots.release()
        except BaseException:
            self._slots.release()
            raise

    def _sent(self, size: int, error: Exception | None) -> None:
        self._slots.release()
        if error is None:
            self.chunks_sent += 1
            self.bytes_sent += size
