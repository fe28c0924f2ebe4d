"""Region-side server for chunks and documents of a repository.

Rules:
- A reply goes to all nodes of the site. A request repeated within `RESEND_AFTER_S` is answered once.
- Sites are served in turn, each with a bounded queue, so one with many requests does not delay the others; and so are the
  nodes of a site.
- Chunks are verified before they are sent: a damaged one counts as missing.
- The server has its own link: models never delay acknowledgements.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from hedgerow import tasks
from hedgerow.blobs.announcements import (
    MAX_PART_BYTES,
    RESEND_AFTER_S,
    AnnouncementKind,
    DocumentPart,
    DocumentRequest,
    announcement_topic,
    decode_announcement,
    decode_document_request,
    document_request_topic,
    document_topic,
    part_topic,
)
from hedgerow.blobs.site_queue import SiteQueue, SiteRequest
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.models.bundle.manifest import digest_of
from hedgerow.topics import EVERY_NODE, Address, parse

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 256
"""Limit on queued requests per site; further ones are dropped, and nodes repeat them."""
MAX_SITES: Final = 4096
"""Limit on sites with queued requests."""
MAX_IN_FLIGHT: Final = 16
"""Limit on replies not yet acknowledged by the broker."""
_EXPIRY: Final = encode_properties([(Property.EXPIRY, 120)])


@dataclass(slots=True)
class ServeCounts:
    """Counters of the server.

    Attributes:
        chunks, chunk_bytes, documents, document_bytes: sent, and accepted by the broker.
        missing: requests for chunks that the repository lacks.
        repeated: requests answered a moment ago.
        refused: requests dropped because a site had too many waiting.
        unreadable: messages that are no valid request.
        failed: requests that could not be answered because of an unexpected error.
    """

    chunks: int = 0
    chunk_bytes: int = 0
    documents: int = 0
    document_bytes: int = 0
    missing: int = 0
    repeated: int = 0
    refused: int = 0
    unreadable: int = 0
    failed: int = 0


class BlobServer:
    """Serves a repository to the sites of a region.

    Args:
        options: how to reach the region's broker, and the client id.
        region: its name.
        folder: the repository.
    Attributes:
        client: the link.
        counts: counters for /metrics.
    """

    def __init__(self, options: ClientOptions, region: str, folder: Path) -> None:
        self._region = region
        self._folder = folder
        options = replace(
            options,
            session_expiry_s=0,
            clean_start=True,
            receive_maximum=256,
            max_payload_bytes=64 << 10,
            will=None,
        )
        self.client = Client(options, self._on_messages)
        self.counts = ServeCounts()
        self._sites: OrderedDict[str, SiteQueue] = OrderedDict()
        self._sent: OrderedDict[tuple[str, SiteRequest], float] = OrderedDict()
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        everyone = Address(self._region, "+", "+")
        await self.client.subscribe(
            {announcement_topic(everyone, AnnouncementKind.ASK): 1, document_request_topic(everyone): 1}
        )
        self.client.resume()
        self._task = tasks.supervise(self._serve, "chunks for sites")
        log.info("blobs-served", repository=str(self._folder))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._task is not None:
                await tasks.cancel(self._task)
        finally:
            await self.client.close(forget_session=True, timeout_s=1.0)

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield gauges: name, help, labels, value."""
        counts = self.counts
        yield "hedgerow_region_blobs_connected", "Whether the link for models is up.", {}, self.client.connected
        yield "hedgerow_region_blob_bytes", "Bytes sent to sites.", {"of": "chunks"}, counts.chunk_bytes
        yield "hedgerow_region_blob_bytes", "Bytes sent to sites.", {"of": "documents"}, counts.document_bytes
        waiting = sum(len(requests) for requests in self._sites.values())
        yield "hedgerow_region_blobs_waiting", "Requests waiting for a reply.", {}, waiting
        yield "hedgerow_region_blobs_missing", "Requests for chunks that the repository lacks.", {}, counts.missing
        yield (
            "hedgerow_region_blobs_refused",
            "Requests dropped because a site had too many waiting.",
            {},
            counts.refused,
        )
        text = "Messages that are no valid request, e.g. for a path outside the repository."
        yield "hedgerow_region_blobs_unreadable", text, {}, counts.unreadable
        text = "Requests not answered because of an unexpected error; see the log."
        yield "hedgerow_region_blobs_failed", text, {}, counts.failed

    def _on_messages(self, messages: list[Message]) -> None:
        for message in messages:
            try:
                self._enqueue_all(message)
            except ValueError:
                self.counts.unreadable += 1
            self.client.ack(message)
        self._wake.set()

    def _enqueue_all(self, message: Message) -> None:
        parsed = parse(message.topic)
        if parsed is None or message.oversized is not None or message.malformed is not None:
            self.counts.unreadable += 1
            return
        if parsed.tail == AnnouncementKind.ASK:
            announcement = decode_announcement(AnnouncementKind.ASK, message.payload)
            for digest in announcement.digests:
                self._enqueue(parsed.address, SiteRequest(announcement.group, digest))
        else:
            self._enqueue(parsed.address, SiteRequest("", "", decode_document_request(message.payload)))

    def _enqueue(self, sender: Address, request: SiteRequest) -> None:
        site = sender.site
        queue = self._sites.get(site) or SiteQueue(MAX_WAITING)
        sent_at = self._sent.get((site, request), float("-inf"))
        if request in queue or time.monotonic() - sent_at < RESEND_AFTER_S:
            self.counts.repeated += 1
        elif not queue and len(self._sites) >= MAX_SITES:
            self.counts.refused += 1
        else:
            self.counts.refused += not queue.add(sender.node, request)
            self._sites.setdefault(site, queue)

    async def _serve(self) -> None:
        while True:
            await self._slots.acquire()
            while (following := self._next()) is None:
                self._wake.clear()
                await self._wake.wait()
            await self._answer(*following)

    async def _answer(self, site: str, request: SiteRequest) -> None:
        """Send the reply to a request; a request that fails must not stop those after it."""
        try:
            topic, payload = await asyncio.to_thread(self._reply, Address(self._region, site, EVERY_NODE), request)
            done = partial(self._done, request, len(payload))
            self.client.publish(topic, payload, qos=1, properties=_EXPIRY, done=done)
        except Exception:
            self._slots.release()
            self.counts.failed += 1
            if self.counts.failed.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …
                log.exception("request-failed", site=site, request=repr(request)[:200], failed=self.counts.failed)
        except BaseException:
            self._slots.release()
            raise
        self._remember(site, request)

    def _remember(self, site: str, request: SiteRequest) -> None:
        """Remember for `RESEND_AFTER_S` that a request was answered."""
        now = time.monotonic()
        self._sent.pop((site, request), None)
        self._sent[site, request] = now
        while now - next(iter(self._sent.values())) > RESEND_AFTER_S:
            self._sent.popitem(last=False)

    def _next(self) -> tuple[str, SiteRequest] | None:
        """Remove and return the next request, in turn by site."""
        if not self._sites:
            return None
        site, queue = self._sites.popitem(last=False)
        request = queue.take()
        if queue:
            self._sites[site] = queue
        return site, request

    def _done(self, request: SiteRequest, size: int, error: Exception | None) -> None:
        self._slots.release()
        if error is not None:
            log.warning("blob-not-sent", error=str(error))
        elif request.document is not None:
            self.counts.documents += 1
            self.counts.document_bytes += size
        else:
            self.counts.chunks += 1
            self.counts.chunk_bytes += size

    def _reply(self, site: Address, request: SiteRequest) -> tuple[str, bytes]:
        """(thread) Return the topic and payload of a reply."""
        if request.document is not None:
            return document_topic(site), self._document(request.document).encode()
        return part_topic(site, request.group, request.digest), self._chunk(request.digest)

    def _chunk(self, digest: str) -> bytes:
        path = self._folder / "blobs" / "sha256" / digest[:2] / digest
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_PART_BYTES + 1)
            if len(data) <= MAX_PART_BYTES and digest_of(data) == f"sha256:{digest}":
                return data
            log.error("repository-damaged", path=str(path), remedy="Publish the model again.")
        except OSError as error:
            log.warning("chunk-missing", path=str(path), error=error.strerror)
        self.counts.missing += 1
        return b""

    def _document(self, request: DocumentRequest) -> DocumentPart:
        try:
            with (self._folder / request.path).open("rb") as stream:
                total = stream.seek(0, 2)
                stream.seek(min(request.offset, total))
                # The fields around the data fit in the part's own limit.
                return DocumentPart(request.path, request.offset, total, stream.read(MAX_PART_BYTES))
        except OSError:
            return DocumentPart(request.path, request.offset, None)
