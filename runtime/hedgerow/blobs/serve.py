"""The region's side: gives sites the chunks and documents of a repository that they ask for.

Rules:
- An answer goes to all nodes of the site. What was asked for twice within a moment is sent once.
- Sites take turns, and each has its bounds, so one that asks for much does not keep the others waiting.
- What lies in the repository is checked before it is sent: a chunk that is damaged there is as good as missing.
- Its link is its own: models never hold up acknowledgements.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, NamedTuple, Self

import structlog

from hedgerow.blobs.announcements import (
    AGAIN_S,
    MAX_PART_BYTES,
    AnnouncementKind,
    DocumentPart,
    DocumentRequest,
    decode_document_request,
    decode_note,
    document_request_topic,
    document_topic,
    note_topic,
    part_topic,
)
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.models.bundle.manifest import digest_of
from hedgerow.topics import EVERY_NODE, Address, parse

log = structlog.get_logger(__name__)

MOST_WAITING: Final = 256
"""Answers that a site may wait for; what it asks for beyond that, it has to ask for again."""
MOST_UNDER_WAY: Final = 16
"""Answers that the broker has not acknowledged."""
_REMEMBERED: Final = 1024
_EXPIRY: Final = encode_properties([(Property.EXPIRY, 120)])


class _SiteRequest(NamedTuple):
    """What a site is to be sent: a chunk of a group, or part of a document."""

    group: str
    digest: str
    document: DocumentRequest | None = None


@dataclass(slots=True)
class ServeCounts:
    """What was sent, and what was not."""

    chunks: int = 0
    chunk_bytes: int = 0
    documents: int = 0
    document_bytes: int = 0
    missing: int = 0
    again: int = 0
    refused: int = 0
    unreadable: int = 0


class BlobServer:
    """Serves a repository to the sites of a region.

    Args:
        options: how to reach the region's broker.
        region: its name.
        folder: the repository.
    Attributes:
        client: the link.
        counts: what it has done.
    """

    def __init__(self, options: ClientOptions, region: str, folder: Path) -> None:
        self._region = region
        self._folder = folder
        options = replace(
            options,
            client_id=f"hedgerow/{region}/blobs",
            session_expiry_s=0,
            clean_start=True,
            receive_maximum=256,
            max_payload_bytes=64 << 10,
            will=None,
        )
        self.client = Client(options, self._take)
        self.counts = ServeCounts()
        self._sites: OrderedDict[str, OrderedDict[_SiteRequest, None]] = OrderedDict()
        self._sent: dict[str, OrderedDict[_SiteRequest, float]] = {}
        self._wake = asyncio.Event()
        self._room = asyncio.Semaphore(MOST_UNDER_WAY)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        everyone = Address(self._region, "+", "+")
        await self.client.subscribe(
            {note_topic(everyone, AnnouncementKind.ASK): 1, document_request_topic(everyone): 1}
        )
        self.client.resume()
        self._task = asyncio.create_task(self._serve(), name="blobs to sites")
        log.info("blobs-served", repository=str(self._folder))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.client.close(forget_session=True, timeout_s=1.0)

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """What /metrics shows: name, help, labels, value."""
        counts = self.counts
        yield "hedgerow_region_blobs_connected", "Whether the link for models is up.", {}, self.client.connected
        yield "hedgerow_region_blob_bytes", "Bytes sent to sites.", {"of": "chunks"}, counts.chunk_bytes
        yield "hedgerow_region_blob_bytes", "Bytes sent to sites.", {"of": "documents"}, counts.document_bytes
        waiting = sum(len(requests) for requests in self._sites.values())
        yield "hedgerow_region_blobs_waiting", "Answers that sites wait for.", {}, waiting
        yield "hedgerow_region_blobs_missing", "Answers that the repository does not have it.", {}, counts.missing
        yield "hedgerow_region_blobs_refused", "Wishes of sites that asked for too much at once.", {}, counts.refused

    def _take(self, messages: list[Message]) -> None:
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
        site = parsed.address.site
        if parsed.tail == AnnouncementKind.ASK:
            note = decode_note(AnnouncementKind.ASK, message.payload)
            for digest in note.digests:
                self._enqueue(site, _SiteRequest(note.group, digest))
        else:
            ask = decode_document_request(message.payload)
            self._enqueue(site, _SiteRequest("", "", ask))

    def _enqueue(self, site: str, request: _SiteRequest) -> None:
        waiting = self._sites.get(site, OrderedDict())
        sent_at = self._sent[site].get(request, float("-inf")) if site in self._sent else float("-inf")
        if request in waiting or time.monotonic() - sent_at < AGAIN_S:
            self.counts.again += 1
        elif len(waiting) >= MOST_WAITING:
            self.counts.refused += 1
        else:
            self._sites.setdefault(site, waiting)[request] = None

    async def _serve(self) -> None:
        while True:
            await self._room.acquire()
            while (turn := self._next()) is None:
                self._wake.clear()
                await self._wake.wait()
            site, request = turn
            topic, payload = await asyncio.to_thread(self._answer, Address(self._region, site, EVERY_NODE), request)
            sent = self._sent.setdefault(site, OrderedDict())
            sent[request] = time.monotonic()
            sent.move_to_end(request)
            if len(sent) > _REMEMBERED:
                sent.popitem(last=False)
            self.client.publish(
                topic, payload, qos=1, properties=_EXPIRY, done=partial(self._done, request, len(payload))
            )

    def _next(self) -> tuple[str, _SiteRequest] | None:
        """The next request; sites take turns."""
        if not self._sites:
            return None
        site, requests = self._sites.popitem(last=False)
        request, _ = requests.popitem(last=False)
        if requests:
            self._sites[site] = requests
        return site, request

    def _done(self, request: _SiteRequest, size: int, error: Exception | None) -> None:
        self._room.release()
        if error is not None:
            log.warning("blob-not-sent", error=str(error))
        elif request.document is not None:
            self.counts.documents += 1
            self.counts.document_bytes += size
        else:
            self.counts.chunks += 1
            self.counts.chunk_bytes += size

    def _answer(self, site: Address, request: _SiteRequest) -> tuple[str, bytes]:
        """(thread) The answer to a request: where it goes, and what it is."""
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

    def _document(self, ask: DocumentRequest) -> DocumentPart:
        path = PurePosixPath(ask.path)
        inside = path.parts[:1] in (("metadata",), ("targets",)) and ".." not in path.parts
        try:
            if inside and str(path) == ask.path:
                with (self._folder / path).open("rb") as stream:
                    total = stream.seek(0, 2)
                    stream.seek(min(ask.offset, total))
                    # What goes around the data fits into the part's own limit.
                    return DocumentPart(ask.path, ask.offset, total, stream.read(MAX_PART_BYTES))
        except OSError:
            pass
        return DocumentPart(ask.path, ask.offset, None)
