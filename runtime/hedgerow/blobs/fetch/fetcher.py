"""Fetches model files from peers, mirrors and the region, and serves peers.

    async with BlobFetcher(options, address, store) as fetcher:
        await fetcher.fetch(manifest.files_for(variant))

Rules:
- `FetchScheduler` decides; this module does the I/O. Received chunks are in the store, so an interrupted fetch resumes.
- A chunk is acknowledged to the broker once it is on disk, so only a few are in memory.
- The fetcher has its own link: chunks delay neither results nor commands.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from itertools import islice
from random import Random
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import structlog

from hedgerow import tasks
from hedgerow.blobs.announcements import (
    MAX_DIGESTS,
    MAX_PAYLOAD_BYTES,
    Announcement,
    AnnouncementKind,
    announcement_topic,
    decode_announcement,
    document_request_topic,
    document_topic,
    group_of,
    part_topic,
)
from hedgerow.blobs.errors import ContentDamaged, ContentMissing, RegionUnavailable
from hedgerow.blobs.fetch.counts import FetchCounts, Gauge, store_gauges
from hedgerow.blobs.fetch.documents import RegionDocuments
from hedgerow.blobs.fetch.pacing import FetchWindow, TokenBucket
from hedgerow.blobs.fetch.scheduler import FetchScheduler, LeftOut, Steps
from hedgerow.blobs.origins.mirrors import PARALLEL, Mirrors
from hedgerow.blobs.origins.origins import ModelOrigin, PlacedChunk, placed_chunks
from hedgerow.blobs.peers.distrust import PeerDistrust
from hedgerow.blobs.peers.peer_server import PeerServer
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError, HedgerowError
from hedgerow.models.bundle.manifest import Chunk, File
from hedgerow.topics import EVERY_NODE, Address, Channel, parse

log = structlog.get_logger(__name__)

MAX_UNSTORED_CHUNKS: Final = 32
"""Limit on chunks received and not yet on disk (Receive Maximum)."""
UNAVAILABLE_AFTER_S: Final = 60.0
"""Time without any chunk after which the region counts as unavailable."""
_ROUNDS: Final = 3
_MAX_BAD_REPLIES: Final = 3
_POLL_S: Final = 1.0


class _FilePart(NamedTuple):
    digest: str
    sender: str | None
    message: Message


class BlobFetcher:
    """Fetches files into the store, one fetch at a time; further calls wait.

    Args:
        options: how to reach the site's broker, and the client id.
        address: this node's.
        store: destination of the chunks.
        max_bytes_per_s: limit on bytes requested from the region by the site's nodes together; None: unlimited.
        serve_neighbours: whether to send stored chunks to peers.
        sources: mirrors to try before the region, in this order.
        on_event: called with events for operators.
        random: source of jitter.
    Attributes:
        client: the link.
        documents: the repository's documents, for `TrustClient`.
        counts: counters for /metrics.
    """

    def __init__(
        self,
        options: ClientOptions,
        address: Address,
        store: BlobStore,
        *,
        max_bytes_per_s: int | None = None,
        serve_neighbours: bool = True,
        sources: Sequence[ModelOrigin] = (),
        on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _detail: None,
        random: Random | None = None,
    ) -> None:
        self._address = address
        self._store = store
        self._random = random or Random()
        options = replace(
            options,
            session_expiry_s=0,
            clean_start=True,
            receive_maximum=MAX_UNSTORED_CHUNKS,
            max_payload_bytes=MAX_PAYLOAD_BYTES,
            will=None,
        )
        self.client = Client(options, self._on_messages, self._link_changed)
        self.counts = FetchCounts()
        self.documents = RegionDocuments(self.client, address, self._random)
        self._peers = PeerServer(self.client, address, store, self._random) if serve_neighbours else None
        self.window = FetchWindow()
        self._bucket = TokenBucket(max_bytes_per_s)
        self._distrust = PeerDistrust()
        self._event = on_event
        self._mirrors = Mirrors(sources, self._mirror_delivered, self._mirror_failed, on_event)
        self._placed: Mapping[str, PlacedChunk] = {}
        self._fetch_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._parts: asyncio.Queue[_FilePart] = asyncio.Queue()
        self._scheduler: FetchScheduler | None = None
        self._group = ""
        self._failure: HedgerowError | None = None
        self._bad: dict[str, int] = {}
        self._down_since: float | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        site = self._address._replace(node="+")
        filters = {document_topic(self._address): 1, document_request_topic(site): 1}
        self._tasks = [tasks.supervise(self._store_parts, "storing of chunks")]
        if self._peers is not None:
            filters |= {
                announcement_topic(site, AnnouncementKind.WANT): 1,
                announcement_topic(site, AnnouncementKind.HAVE): 1,
            }
            self._tasks.append(tasks.supervise(self._peers.run, "chunks for peers"))
        await self.client.subscribe(filters)
        self.client.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as parts:  # each is closed, even if this is cancelled
            parts.push_async_callback(self.client.close, forget_session=True, timeout_s=1.0)
            parts.push_async_callback(self._mirrors.close)
            parts.push_async_callback(tasks.cancel, *self._tasks)

    async def fetch(self, files: Sequence[File], progress: Callable[[float], None] | None = None) -> None:
        """Fetch files into the store, complete and verified. A cancelled fetch resumes with the next call.

        Args:
            files: the files to fetch.
            progress: called with the fetched share, 0 to 1.
        Raises:
            RegionUnavailable: no chunk arrives; received chunks are kept.
            ContentMissing: the region does not have a chunk.
            ContentDamaged: received data, or data read back from disk, does not match its digest.
            BlobStoreError: the store cannot write it.
        """
        async with self._fetch_lock:
            total = sum(file.size for file in {file.digest: file for file in files}.values()) or 1
            progress = progress or _ignore_progress
            self._placed = placed_chunks(files)
            for _ in range(_ROUNDS):
                missing = await asyncio.to_thread(self._store.missing, files)
                if missing:
                    await self._fetch_missing(group_of(files), missing, total, progress)
                if not await asyncio.to_thread(self._store.check, files):
                    progress(1.0)
                    return
            raise ContentDamaged(
                f"Files read back from disk did not match their digests, {_ROUNDS} times",
                remedy="Check the disk: it is failing, or another process writes to the model store.",
            )

    def gauges(self) -> Iterator[Gauge]:
        """Yield gauges of the fetcher and the store: name, help, labels, value."""
        yield "hedgerow_connected", "Whether the broker can be reached.", {"link": "blobs"}, self.client.connected
        missing = 0 if self._scheduler is None else sum(self._scheduler.missing.values())
        yield "hedgerow_fetch_missing_bytes", "Bytes that the current fetch still lacks.", {}, missing
        yield "hedgerow_fetch_window", "Chunks that may be in flight from the region to the site.", {}, self.window.size
        yield from self.counts.gauges(self._mirrors.bytes, self._mirrors.failures)
        if self._peers is not None:
            sent = self._peers.bytes_sent
            yield "hedgerow_blobs_sent_bytes", "Bytes of chunks sent to other nodes of the site.", {}, sent
            yield "hedgerow_given_bytes", "Deprecated: use hedgerow_blobs_sent_bytes.", {}, sent
        yield from store_gauges(self._store)

    # The current fetch

    async def _fetch_missing(
        self, group: str, missing: Sequence[Chunk], total: int, progress: Callable[[float], None]
    ) -> None:
        sizes = {chunk.digest.removeprefix("sha256:"): chunk.size for chunk in missing}
        node = self._address.node
        scheduler = self._scheduler = FetchScheduler(node, group, sizes, self.window, self._bucket, self._distrust)
        self._group, self._failure, self._bad = group, None, {}
        site = self._address._replace(node="+")
        filters = {
            announcement_topic(site, kind): 1
            for kind in (AnnouncementKind.ASK, AnnouncementKind.BUSY, AnnouncementKind.TAKE)
        }
        if self._peers is None:
            filters |= {announcement_topic(site, kind): 1 for kind in (AnnouncementKind.WANT, AnnouncementKind.HAVE)}
        filters[part_topic(site, group, "+")] = 1
        log.info("fetch-begins", chunks=len(sizes), missing_bytes=sum(sizes.values()), group=group)
        try:
            await self.client.subscribe(filters)
            left, progress_at = len(sizes), time.monotonic()
            while scheduler.missing:
                if self._failure is not None:
                    raise self._failure
                now = time.monotonic()
                if len(scheduler.missing) < left:
                    left, progress_at = len(scheduler.missing), now
                    progress(1 - sum(scheduler.missing.values()) / total)
                if now - progress_at > max(UNAVAILABLE_AFTER_S, 3 * self.window.timeout_s):
                    raise self._region_unavailable(len(sizes) - left, len(sizes))
                wake_at = now + _POLL_S
                self._wake.clear()
                if self._peers is None and self._mirrors.usable:
                    wake_at = min(wake_at, self._fetch_unshared(scheduler, now))
                elif self.client.connected:
                    steps = scheduler.next(now)
                    self._carry_out(steps, group)
                    wake_at = min(wake_at, steps.wake_at)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, wake_at - now)):
                        await self._wake.wait()
        finally:
            self._scheduler = None
            self._mirrors.stop()
            with suppress(BusError):
                await asyncio.shield(tasks.start(self.client.unsubscribe(filters), "end of a fetch"))
        log.info("fetch-done", chunks=len(sizes), group=group)

    def _fetch_unshared(self, scheduler: FetchScheduler, now: float) -> float:
        """Fetch chunks from mirrors for this node alone. Nothing is announced: peers would wait for chunks it does not send.

        Returns: when to call again.
        """
        for digest, size in islice(scheduler.missing.items(), 2 * PARALLEL):
            if (free_at := self._bucket.free_at(now)) > now:
                return free_at
            if self._mirrors.fetch(self._placed[digest]):
                self._bucket.take(size, now)
        return math.inf

    def _carry_out(self, steps: Steps, group: str) -> None:
        for peer in steps.left_out:
            self._report_left_out(peer)
        self._announce(AnnouncementKind.WANT, group, steps.want, steps.distrusted)
        self._announce(AnnouncementKind.BUSY, group, steps.busy)
        if self._mirrors.usable and self._peers is not None:
            self._announce(AnnouncementKind.TAKE, group, steps.request)
            for digest in steps.request:
                self._mirrors.fetch(self._placed[digest])
        else:
            self._announce(AnnouncementKind.ASK, group, steps.request)
            self.counts.requested += len(steps.request)

    def _report_left_out(self, left_out: LeftOut) -> None:
        self.counts.left_out[left_out.reason] += 1
        detail = {
            "peer": left_out.peer,
            "reason": left_out.reason,
            "seconds": left_out.seconds,
            "remedy": "If it happens again, check that node: it fails, or is hostile. Revoke its certificate if it is stolen.",
        }
        log.warning("peer-left-out", **detail)
        self._event("peer-left-out", detail)

    def _announce(
        self, kind: AnnouncementKind, group: str, digests: Sequence[str], exclude: tuple[str, ...] = ()
    ) -> None:
        # A request that is not answered in time is repeated, so brokers may drop the old one.
        properties = encode_properties([(Property.EXPIRY, math.ceil(self.window.timeout_s))])
        for start in range(0, len(digests), MAX_DIGESTS):
            announcement = Announcement(kind, group, tuple(digests[start : start + MAX_DIGESTS]), exclude)
            self.client.publish(
                announcement_topic(self._address, kind), announcement.encode(), qos=1, properties=properties
            )

    def _region_unavailable(self, arrived: int, total: int) -> HedgerowError:
        return RegionUnavailable(
            f"No chunk arrived for {UNAVAILABLE_AFTER_S:.0f} s; {total - arrived} of {total} are missing"
            + ("" if self.client.connected else f"; {self.client.options.url} is not connected"),
            remedy="Check that `hedgerow region run` has a repository and that the site's bridge is connected. Received chunks "
            "are kept.",
        )

    # Received messages

    def _on_messages(self, messages: list[Message]) -> None:
        for message in messages:
            if not self._handle(message):
                self.client.ack(message)
        self._wake.set()

    def _handle(self, message: Message) -> bool:
        """Handle a message. Returns: whether it is acknowledged later."""
        parsed = parse(message.topic)
        if parsed is None or parsed.channel is not Channel.BLOB or message.malformed is not None:
            self.counts.unreadable += 1
            return False
        sender, tail = parsed.address.node, parsed.tail
        try:
            if tail.startswith("part/"):
                return self._on_part(tail, None if sender == EVERY_NODE else sender, message)
            if tail == "document" and sender == EVERY_NODE:
                self.documents.on_part(message.payload)
            elif tail == "ask/document":
                self.documents.on_request(message.payload)
            elif sender != EVERY_NODE:
                self._on_announcement(decode_announcement(AnnouncementKind(tail), message.payload), sender)
        except ValueError:
            self.counts.unreadable += 1
        return False

    def _on_announcement(self, announcement: Announcement, sender: str) -> None:
        if self._peers is not None:
            self._peers.on_announcement(announcement, sender)
        if self._scheduler is not None:
            self._scheduler.on_announcement(announcement, sender, time.monotonic())

    def _on_part(self, tail: str, sender: str | None, message: Message) -> bool:
        _, group, digest = tail.split("/")
        scheduler = self._scheduler
        if scheduler is None or group != self._group or sender == self._address.node:
            return False
        if sender is not None and self._distrust.includes(sender, time.monotonic()):
            self.counts.ignored += 1
            return False
        size = scheduler.missing.get(digest)
        if size is None:
            self.counts.duplicate_chunks += 1
            return False
        if message.qos == 0 and self._parts.qsize() >= MAX_UNSTORED_CHUNKS:  # Receive Maximum bounds those of QoS 1
            self.counts.duplicate_chunks += 1
            return False
        if message.oversized is None and len(message.payload) == size:
            self._parts.put_nowait(_FilePart(digest, sender, message))
            return True
        if sender is None and message.oversized is None and not message.payload:
            self._failure = ContentMissing(
                f"The region does not have chunk sha256:{digest}",
                remedy="Publish the model again: the region's repository is incomplete.",
            )
        else:
            self._discard(scheduler, digest, sender)
        return False

    async def _store_parts(self) -> None:
        """Write received chunks to the store."""
        while True:
            part = await self._parts.get()
            scheduler = self._scheduler
            try:
                if scheduler is not None and part.digest in scheduler.missing:
                    await self._store_part(scheduler, part)
                else:
                    self.counts.duplicate_chunks += 1
            except HedgerowError as error:
                self._failure = error
            finally:
                self.client.ack(part.message)
            self._wake.set()

    async def _store_part(self, scheduler: FetchScheduler, part: _FilePart) -> None:
        payload = part.message.payload
        try:
            await asyncio.to_thread(self._store.put, f"sha256:{part.digest}", payload)
        except ContentDamaged:
            self._discard(scheduler, part.digest, part.sender)
            return
        if not scheduler.arrived(part.digest, part.sender, time.monotonic()):
            return
        if part.sender is None:
            self.counts.wan_bytes += len(payload)
        else:
            self.counts.lan_bytes += len(payload)

    async def _mirror_delivered(self, digest: str, data: bytes) -> None:
        """Store a chunk from a mirror, and send it to the peers waiting for it."""
        try:
            await asyncio.to_thread(self._store.put, f"sha256:{digest}", data)
        except HedgerowError as error:
            self._failure = error
        else:
            scheduler = self._scheduler
            arrived = scheduler is not None and scheduler.arrived(digest, None, time.monotonic())
            if arrived and self._peers is not None:
                self._peers.share(self._group, digest)
        self._wake.set()

    def _mirror_failed(self, digest: str) -> None:
        if self._scheduler is not None:
            self._scheduler.failed(digest, None, time.monotonic())
        self._wake.set()

    def _discard(self, scheduler: FetchScheduler, digest: str, sender: str | None) -> None:
        self.counts.bad += 1
        if self.counts.bad.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …
            log.warning("bad-chunk", digest=digest, sender=sender or "region", bad=self.counts.bad)
        scheduler.failed(digest, sender, time.monotonic())
        if sender is None:
            self._bad[digest] = self._bad.get(digest, 0) + 1
            if self._bad[digest] >= _MAX_BAD_REPLIES:
                self._failure = ContentDamaged(
                    f"The region sent damaged data for chunk sha256:{digest}, {_MAX_BAD_REPLIES} times",
                    remedy="Check the region's repository, and the path between it and this site.",
                )

    def _link_changed(self, connected: bool, reason: str) -> None:
        now = time.monotonic()
        if not connected:
            self._down_since = now
        elif self._down_since is not None:
            if self._scheduler is not None:
                self._scheduler.paused(now - self._down_since)
            self._down_since = None
        self._wake.set()


def _ignore_progress(share: float) -> None:
    """Ignore progress."""
