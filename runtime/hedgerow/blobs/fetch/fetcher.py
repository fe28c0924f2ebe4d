"""Brings what models are made of to this node, and gives neighbours what it has.

    async with Fetcher(options, address, store) as fetcher:
        await fetcher.fetch(manifest.files_for(variant))

Rules:
- `plan` decides, and this carries it out. What is here is in the store: a fetch that was cut off, at whatever byte, goes
  on with the next one.
- A chunk is acknowledged to the broker when it is on the disk, so no more than a few are in memory.
- Its link is its own: chunks hold up neither results nor commands.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from random import Random
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import structlog

from hedgerow.blobs.announcements import (
    LARGEST_PAYLOAD,
    MOST_DIGESTS,
    Announcement,
    AnnouncementKind,
    decode_note,
    document_ask_topic,
    document_topic,
    group_of,
    note_topic,
    part_topic,
)
from hedgerow.blobs.errors import ContentDamaged, ContentMissing, RegionAway
from hedgerow.blobs.fetch.counts import FetchCounts, Gauge, store_gauges
from hedgerow.blobs.fetch.documents import RegionDocuments
from hedgerow.blobs.fetch.pacing import Bucket, FetchWindow
from hedgerow.blobs.fetch.scheduler import FetchScheduler, Steps
from hedgerow.blobs.origins.mirrors import PARALLEL, Mirrors
from hedgerow.blobs.origins.origins import ModelOrigin, PlacedChunk, pieces_of
from hedgerow.blobs.peers.neighbours import Neighbours
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError, HedgerowError
from hedgerow.models.bundle.manifest import Chunk, File
from hedgerow.topics import EVERY_NODE, Address, Channel, parse

log = structlog.get_logger(__name__)

MOST_IN_HAND: Final = 32
"""Chunks that the broker may have sent and that are not on the disk yet."""
AWAY_S: Final = 60.0
"""A region that sends nothing for so long is said to be away."""
_ROUNDS: Final = 3
_BAD_ANSWERS: Final = 3
_LOOK_S: Final = 1.0


class _FilePart(NamedTuple):
    digest: str
    sender: str | None
    message: Message


class BlobFetcher:
    """Fetches; one fetch at a time, others wait.

    Args:
        options: how to reach the site's broker.
        address: who this node is.
        store: where content goes.
        max_bytes_per_s: most bytes a second that the site's nodes may ask the region for; None: as the link bears.
        serve_neighbours: whether to give others what is here.
        sources: asked before the region, in this order.
        on_event: takes what operators should know.
        random: draws pauses.
    Attributes:
        client: the link.
        documents: the repository's documents, for `TrustClient`.
        counts: what it has done.
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
            client_id=f"hedgerow/{address}/blobs",
            session_expiry_s=0,
            clean_start=True,
            receive_maximum=MOST_IN_HAND,
            max_payload_bytes=LARGEST_PAYLOAD,
            will=None,
        )
        self.client = Client(options, self._take, self._link_changed)
        self.counts = FetchCounts()
        self.documents = RegionDocuments(self.client, address, self._random)
        self._neighbours = Neighbours(self.client, address, store, self._random) if serve_neighbours else None
        self.window = FetchWindow()
        self._bucket = Bucket(max_bytes_per_s)
        self._elsewhere = Mirrors(sources, self._brought, self._not_brought, on_event)
        self._pieces: Mapping[str, PlacedChunk] = {}
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._parts: asyncio.Queue[_FilePart] = asyncio.Queue()
        self._plan: FetchScheduler | None = None
        self._group = ""
        self._failure: HedgerowError | None = None
        self._bad: dict[str, int] = {}
        self._down_since: float | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        site = self._address._replace(node="+")
        wanted = {document_topic(self._address): 1, document_ask_topic(site): 1}
        self._tasks = [asyncio.create_task(self._keep(), name="blobs")]
        if self._neighbours is not None:
            wanted |= {note_topic(site, AnnouncementKind.WANT): 1, note_topic(site, AnnouncementKind.HAVE): 1}
            self._tasks.append(asyncio.create_task(self._neighbours.run(), name="blobs to neighbours"))
        await self.client.subscribe(wanted)
        self.client.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._elsewhere.close()
        await self.client.close(forget_session=True, timeout_s=1.0)

    async def fetch(self, files: Sequence[File], progress: Callable[[float], None] | None = None) -> None:
        """Bring files into the store, whole and checked. Can be cancelled, and goes on where it was.

        Args:
            progress: told of the share that is here, 0..1.
        Raises:
            RegionAway: nothing comes; what has come stays.
            ContentMissing: the region does not have it.
            ContentDamaged: what comes, or what the disk gives back, is not what it should be.
            StoreError: the store cannot take it.
        """
        async with self._turn:
            total = sum(file.size for file in {file.digest: file for file in files}.values()) or 1
            tell = progress or _nobody
            self._pieces = pieces_of(files)
            for _ in range(_ROUNDS):
                missing = await asyncio.to_thread(self._store.missing, files)
                if missing:
                    await self._bring(group_of(files), missing, total, tell)
                if not await asyncio.to_thread(self._store.check, files):
                    tell(1.0)
                    return
            raise ContentDamaged(
                f"What was written is not what is read back, {_ROUNDS} times",
                remedy="Look at the disk: it is failing, or something else writes into the store.",
            )

    def gauges(self) -> Iterator[Gauge]:
        """What /metrics shows of it and of the store: name, help, labels, value."""
        yield "hedgerow_connected", "Whether the link to the broker is up.", {"link": "blobs"}, self.client.connected
        missing = 0 if self._plan is None else sum(self._plan.missing.values())
        yield "hedgerow_fetch_missing_bytes", "Bytes that the fetch in hand lacks.", {}, missing
        yield "hedgerow_fetch_window", "Chunks the site may have asked the region for at once.", {}, self.window.size
        yield from self.counts.gauges(self._elsewhere.bytes, self._elsewhere.failures)
        if self._neighbours is not None:
            yield "hedgerow_given_bytes", "Bytes of models given to neighbours.", {}, self._neighbours.bytes_given
        yield from store_gauges(self._store)

    # The fetch in hand

    async def _bring(self, group: str, missing: Sequence[Chunk], total: int, tell: Callable[[float], None]) -> None:
        sizes = {chunk.digest.removeprefix("sha256:"): chunk.size for chunk in missing}
        node = self._address.node
        plan = self._plan = FetchScheduler(node, group, sizes, self.window, self._bucket)
        self._group, self._failure, self._bad = group, None, {}
        site = self._address._replace(node="+")
        filters = {
            note_topic(site, kind): 1 for kind in (AnnouncementKind.ASK, AnnouncementKind.BUSY, AnnouncementKind.TAKE)
        }
        if self._neighbours is None:
            filters |= {note_topic(site, kind): 1 for kind in (AnnouncementKind.WANT, AnnouncementKind.HAVE)}
        filters[part_topic(site, group, "+")] = 1
        log.info("fetch-begins", chunks=len(sizes), missing_bytes=sum(sizes.values()), group=group)
        try:
            await self.client.subscribe(filters)
            left, news_at = len(sizes), time.monotonic()
            while plan.missing:
                if self._failure is not None:
                    raise self._failure
                now = time.monotonic()
                if len(plan.missing) < left:
                    left, news_at = len(plan.missing), now
                    tell(1 - sum(plan.missing.values()) / total)
                if now - news_at > max(AWAY_S, 3 * self.window.timeout_s):
                    raise self._away(len(sizes) - left, len(sizes))
                wake_at = now + _LOOK_S
                self._wake.clear()
                if self._neighbours is None and self._elsewhere.usable:
                    wake_at = min(wake_at, self._bring_alone(plan, now))
                elif self.client.connected:
                    steps = plan.next(now)
                    self._carry_out(steps, group)
                    wake_at = min(wake_at, steps.wake_at)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, wake_at - now)):
                        await self._wake.wait()
        finally:
            self._plan = None
            self._elsewhere.stop()
            with suppress(BusError):
                await asyncio.shield(self.client.unsubscribe(filters))
        log.info("fetch-done", chunks=len(sizes), group=group)

    def _bring_alone(self, plan: FetchScheduler, now: float) -> float:
        """Bring chunks from another source for this node alone. Others are told nothing: they would wait for what never comes.

        Returns: when to look again.
        """
        for digest, size in islice(plan.missing.items(), 2 * PARALLEL):
            if (free_at := self._bucket.free_at(now)) > now:
                return free_at
            if self._elsewhere.bring(self._pieces[digest]):
                self._bucket.take(size, now)
        return math.inf

    def _carry_out(self, steps: Steps, group: str) -> None:
        self._say(AnnouncementKind.WANT, group, steps.want, steps.but)
        self._say(AnnouncementKind.BUSY, group, steps.busy)
        if self._elsewhere.usable and self._neighbours is not None:
            self._say(AnnouncementKind.TAKE, group, steps.ask)
            for digest in steps.ask:
                self._elsewhere.bring(self._pieces[digest])
        else:
            self._say(AnnouncementKind.ASK, group, steps.ask)
            self.counts.asked += len(steps.ask)

    def _say(self, kind: AnnouncementKind, group: str, digests: Sequence[str], but: tuple[str, ...] = ()) -> None:
        # What is too old to be answered in time is asked for again; brokers are to drop it.
        properties = encode_properties([(Property.EXPIRY, math.ceil(self.window.timeout_s))])
        for begin in range(0, len(digests), MOST_DIGESTS):
            note = Announcement(kind, group, tuple(digests[begin : begin + MOST_DIGESTS]), but)
            self.client.publish(note_topic(self._address, kind), note.encode(), qos=1, properties=properties)

    def _away(self, here: int, of: int) -> HedgerowError:
        return RegionAway(
            f"Nothing has come for {AWAY_S:.0f} s, and {of - here} of {of} chunks are missing"
            + ("" if self.client.connected else f"; {self.client.options.url} is not connected"),
            remedy="Check that `hedgerow region run` has a repository and that the site's bridge is connected. What has come "
            "stays.",
        )

    # What comes

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if not self._taken(message):
                self.client.ack(message)
        self._wake.set()

    def _taken(self, message: Message) -> bool:
        """Take a message in. Returns: whether it is acknowledged later."""
        parsed = parse(message.topic)
        if parsed is None or parsed.channel is not Channel.BLOB or message.malformed is not None:
            self.counts.notes += 1
            return False
        sender, tail = parsed.address.node, parsed.tail
        try:
            if tail.startswith("part/"):
                return self._part(tail, None if sender == EVERY_NODE else sender, message)
            if tail == "document" and sender == EVERY_NODE:
                self.documents.heard(message.payload)
            elif tail == "ask/document":
                self.documents.heard_ask(message.payload)
            elif sender != EVERY_NODE:
                self._note(decode_note(AnnouncementKind(tail), message.payload), sender)
        except ValueError:
            self.counts.notes += 1
        return False

    def _note(self, note: Announcement, sender: str) -> None:
        if self._neighbours is not None:
            self._neighbours.heard(note, sender)
        if self._plan is not None:
            self._plan.heard(note, sender, time.monotonic())

    def _part(self, tail: str, sender: str | None, message: Message) -> bool:
        _, group, digest = tail.split("/")
        plan = self._plan
        if plan is None or group != self._group or sender == self._address.node:
            return False
        size = plan.missing.get(digest)
        if size is None:
            self.counts.twice += 1
            return False
        if message.oversized is None and len(message.payload) == size:
            self._parts.put_nowait(_FilePart(digest, sender, message))
            return True
        if sender is None and message.oversized is None and not message.payload:
            self._failure = ContentMissing(
                f"The region does not have sha256:{digest}",
                remedy="Publish the model again: its repository is not whole.",
            )
        else:
            self._wrong(plan, digest, sender)
        return False

    async def _keep(self) -> None:
        """Write what came."""
        while True:
            part = await self._parts.get()
            plan = self._plan
            try:
                if plan is not None and part.digest in plan.missing:
                    await self._put(plan, part)
                else:
                    self.counts.twice += 1
            except HedgerowError as error:
                self._failure = error
            finally:
                self.client.ack(part.message)
            self._wake.set()

    async def _put(self, plan: FetchScheduler, part: _FilePart) -> None:
        payload = part.message.payload
        try:
            await asyncio.to_thread(self._store.put, f"sha256:{part.digest}", payload)
        except ContentDamaged:
            self._wrong(plan, part.digest, part.sender)
            return
        if not plan.arrived(part.digest, part.sender, time.monotonic()):
            return
        if part.sender is None:
            self.counts.wan_bytes += len(payload)
        else:
            self.counts.lan_bytes += len(payload)

    async def _brought(self, digest: str, data: bytes) -> None:
        """Another source gave a chunk: it is for all who wait for it."""
        try:
            await asyncio.to_thread(self._store.put, f"sha256:{digest}", data)
        except HedgerowError as error:
            self._failure = error
        else:
            plan = self._plan
            arrived = plan is not None and plan.arrived(digest, None, time.monotonic())
            if arrived and self._neighbours is not None:  # as what the region sends, it goes to all: others wait for it
                self._neighbours.give(self._group, digest)
        self._wake.set()

    def _not_brought(self, digest: str) -> None:
        if self._plan is not None:
            self._plan.bad(digest, None, time.monotonic())
        self._wake.set()

    def _wrong(self, plan: FetchScheduler, digest: str, sender: str | None) -> None:
        self.counts.bad += 1
        log.warning("bad-chunk", digest=digest, sender=sender or "region")
        plan.bad(digest, sender, time.monotonic())
        if sender is None:
            self._bad[digest] = self._bad.get(digest, 0) + 1
            if self._bad[digest] >= _BAD_ANSWERS:
                self._failure = ContentDamaged(
                    f"The region sent something else for sha256:{digest}, {_BAD_ANSWERS} times",
                    remedy="Check the region's repository, and what lies between it and this site.",
                )

    def _link_changed(self, connected: bool, reason: str) -> None:
        now = time.monotonic()
        if not connected:
            self._down_since = now
        elif self._down_since is not None:
            if self._plan is not None:
                self._plan.paused(now - self._down_since)
            self._down_since = None
        self._wake.set()


def _nobody(share: float) -> None:
    """Is told, and does nothing."""
