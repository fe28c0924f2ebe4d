"""Appends durable results to the outbox in groups: `publish: {durable: true}`.

Rules:
- One group is written at a time while the next one collects, so streams stay in order even if a group has to be
  retried. A group is no larger than an empty outbox accepts.
- While the outbox stores nothing, QoS 1 frames wait here unacknowledged, and Receive Maximum holds the rest at the
  broker.
- A redelivered QoS 1 frame whose results are stored already adds nothing. This happens if the node dies before
  it acknowledges, or the broker loses the acknowledgement.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import xxhash

from hedgerow.bus.message import Message
from hedgerow.bus.outbox import PACKET_OVERHEAD_BYTES, Outbox, OutboxError, Record
from hedgerow.errors import FrameError
from hedgerow.pipeline.built_pipeline import BuiltPipeline
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.result_encoder import Encoded

_RETRY_S: Final = 1.0
"""Pause before a group that could not be stored is retried."""


@dataclass(slots=True)
class PendingResults:
    """Results of one frame, waiting to be stored.

    Attributes:
        size: bytes of the records.
        origin: identifies the frame if it is redelivered; None for QoS 0, which is not redelivered.
    """

    built: BuiltPipeline
    delivery: Delivery
    records: list[Record]
    size: int
    origin: int | None


class OutboxAppender:
    """Appends the results of one pipeline to the outbox. For the event loop's thread.

    Args:
        outbox: the node's outbox.
        stored: called with the frames whose results have been stored.
        refused: called with a QoS 0 frame whose results could not be stored.
    Attributes:
        results: number of results not stored yet.
        size: bytes of those results.
    """

    def __init__(
        self,
        outbox: Outbox,
        stored: Callable[[Sequence[PendingResults]], None],
        refused: Callable[[PendingResults], None],
    ) -> None:
        self.results = 0
        self.size = 0
        self._outbox = outbox
        self._stored = stored
        self._refused = refused
        self._waiting: deque[PendingResults] = deque()
        self._in_flight: list[PendingResults] = []
        self._origins: set[int] = set()  # of waiting and in-flight results
        self._retry: asyncio.TimerHandle | None = None

    @property
    def largest(self) -> int:
        """Most bytes that the results of one frame may have."""
        return self._outbox.max_record_bytes

    def add(self, built: BuiltPipeline, delivery: Delivery, results: Sequence[Encoded]) -> bool:
        """Add the results of a frame to the next group; `flush` appends it.

        Returns: False if the results of an earlier delivery of the frame are stored or about to be.
        Raises: OutboxError: the results are too large for the outbox, or one of them for the way to the region.
        """
        key: int | None = None
        if delivery.durable:
            key, certain = origin(built.name, delivery.message)
            if certain and (key in self._origins or self._outbox.has_stored(key)):
                return False
        records = [_record(built, result) for result in results]
        size = sum(record.size for record in records)
        if size > self.largest:
            raise OutboxError(
                f"The results have {size} bytes; the outbox accepts at most {self.largest}",
                remedy="Raise `outbox: max_bytes`, or publish smaller results.",
                code="outbox-too-large",
            )
        limit = self._outbox.max_packet_bytes
        packet = max((each.size for each in records), default=0) + PACKET_OVERHEAD_BYTES
        if limit is not None and packet > limit:
            raise OutboxError(
                f"A result needs a packet of {packet:,} bytes; larger ones than {limit:,} do not reach the region",
                remedy="Publish less (`publish: {fields: …}`), or allow larger packets on the whole way: `limits` of the "
                "topology; else `bridge_max_packet_size` and `max_packet_size` of the brokers, then `outbox: "
                "{max_packet_bytes}`.",
                code="result-too-large",
            )
        if key is not None:
            self._origins.add(key)
        self.results += len(records)
        self.size += size
        self._waiting.append(PendingResults(built, delivery, records, size, key))
        return True

    def flush(self) -> None:
        """Append the waiting results, unless a group is in flight."""
        if self._in_flight or not self._waiting:
            return
        size = 0
        while self._waiting and (not size or size + self._waiting[0].size <= self.largest):
            pending = self._waiting.popleft()
            size += pending.size
            self._in_flight.append(pending)
        self._append()

    def close(self) -> None:
        """Stop retrying."""
        if self._retry is not None:
            self._retry.cancel()

    def _append(self) -> None:
        records = [record for pending in self._in_flight for record in pending.records]
        self._outbox.append(
            records, [pending.origin for pending in self._in_flight if pending.origin is not None], self._done
        )

    def _done(self, error: OutboxError | None) -> None:
        if error is None:
            stored, self._in_flight = self._in_flight, []
            self._subtract(stored)
            self._stored(stored)
            self.flush()
            return
        refused = [pending for pending in self._in_flight if pending.origin is None]
        self._in_flight = [pending for pending in self._in_flight if pending.origin is not None]
        self._subtract(refused)
        for pending in refused:
            self._refused(pending)
        if self._in_flight:
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._append)
        else:
            self.flush()

    def _subtract(self, group: Sequence[PendingResults]) -> None:
        for pending in group:
            self.results -= len(pending.records)
            self.size -= pending.size
        self._origins.difference_update(pending.origin for pending in group if pending.origin is not None)


def _record(built: BuiltPipeline, result: Encoded) -> Record:
    publish = built.config.publish
    return Record(
        built.name,
        built.encoder.topic,
        result.payload,
        result.properties,
        publish.priority,
        time.time(),
        publish.ttl_s,
        result.id or None,
    )


def origin(pipeline: str, message: Message) -> tuple[int, bool]:
    """Return a number that identifies a message in a pipeline, to recognise its redelivery.

    It is a hash of pipeline, topic, payload and the sender's `id`; the payload is included because not all senders have
    unique ids. Without an `id` the packet identifier takes its place, which identifies the message only if the broker
    marks it as a duplicate (MQTT 5 §3.3.1.1).

    Returns: the signed 64-bit number, and whether another message with the same number is certainly the same message.
    """
    sender_id = ""
    with suppress(FrameError):  # a malformed property; the frame has been dead-lettered
        sender_id = next((value for name, value in message.properties.user_properties if name == "id"), "")
    digest = xxhash.xxh3_64(message.payload)
    digest.update(f"\0{pipeline}\0{message.topic}\0{sender_id or message.packet_id}".encode())
    return digest.intdigest() - (1 << 63), bool(sender_id) or message.dup
