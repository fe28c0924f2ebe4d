"""Durable results on their way into the outbox: `publish: {durable: true}`.

Rules:
- A pipeline's results go to the outbox one group at a time, of no more bytes than it will surely take once it is empty; the
  next gathers while one is written. So a stream keeps its order, also when a group has to be given again.
- While nothing can be stored, QoS 1 frames wait here, unacknowledged: Receive Maximum holds the others at the broker.
- A QoS 1 frame that comes again although its results are stored (the node died between that and the acknowledgement, or the
  broker forgot it) adds nothing.
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
from hedgerow.bus.outbox import Outbox, OutboxError, Record
from hedgerow.errors import FrameError
from hedgerow.pipeline.built_pipeline import BuiltPipeline
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.result_encoder import Encoded

_AGAIN_S: Final = 1.0
"""Pause before a group that could not be stored is given again."""


@dataclass(slots=True)
class PendingResults:
    """A frame whose results are to be stored.

    Attributes:
        size: bytes of the records.
        origin: names the frame; None for QoS 0, which nobody sends again.
    """

    built: BuiltPipeline
    delivery: Delivery
    records: list[Record]
    size: int
    origin: int | None


class OutboxKeeper:
    """Gives the results of one pipeline to the outbox. For the event loop's thread.

    Args:
        stored: told which frames' results are safe.
        refused: told of a QoS 0 frame whose results could not be stored.
    Attributes:
        results, size: of what is not safe yet: how many, and their bytes.
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
        self._gathered: deque[PendingResults] = deque()
        self._given: list[PendingResults] = []
        self._origins: set[int] = set()  # of both
        self._again: asyncio.TimerHandle | None = None

    @property
    def largest(self) -> int:
        """Bytes that the results of a frame may have."""
        return self._outbox.max_record_bytes

    def keep(self, built: BuiltPipeline, delivery: Delivery, results: Sequence[Encoded]) -> bool:
        """Take the results of a frame; `flush` sends them on.

        Returns: False if those of an earlier delivery of it are safe, or about to be.
        Raises: OutboxError: they are too large for the outbox.
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
                f"Results of {size} bytes are too large for the outbox, which takes {self.largest}",
                remedy="Raise the outbox's `max_bytes`, or publish less at once.",
                code="outbox-too-large",
            )
        if key is not None:
            self._origins.add(key)
        self.results += len(records)
        self.size += size
        self._gathered.append(PendingResults(built, delivery, records, size, key))
        return True

    def flush(self) -> None:
        """Give what has gathered, unless a group is under way."""
        if self._given or not self._gathered:
            return
        size = 0
        while self._gathered and (not size or size + self._gathered[0].size <= self.largest):
            pending = self._gathered.popleft()
            size += pending.size
            self._given.append(pending)
        self._give()

    def close(self) -> None:
        """Try no more."""
        if self._again is not None:
            self._again.cancel()

    def _give(self) -> None:
        records = [record for pending in self._given for record in pending.records]
        self._outbox.append(
            records, [pending.origin for pending in self._given if pending.origin is not None], self._done
        )

    def _done(self, error: OutboxError | None) -> None:
        if error is None:
            stored, self._given = self._given, []
            self._let_go(stored)
            self._stored(stored)
            self.flush()
            return
        refused = [pending for pending in self._given if pending.origin is None]
        self._given = [pending for pending in self._given if pending.origin is not None]
        self._let_go(refused)
        for pending in refused:
            self._refused(pending)
        if self._given:
            self._again = asyncio.get_running_loop().call_later(_AGAIN_S, self._give)
        else:
            self.flush()

    def _let_go(self, group: Sequence[PendingResults]) -> None:
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
    )


def origin(pipeline: str, message: Message) -> tuple[int, bool]:
    """A number for what a message brought to a pipeline, to know it again by.

    Its sender's `id` names it, with the payload, since not all senders keep their ids apart. Without one, packet identifier
    and payload do, as far as the broker says that it has sent it before (MQTT 5 §3.3.1.1).

    Returns: the signed 64-bit number, and whether another message with it can only be the same one.
    """
    said = ""
    with suppress(FrameError):  # then its dead letter has been made
        said = next((value for name, value in message.properties.user_properties if name == "id"), "")
    digest = xxhash.xxh3_64(message.payload)
    digest.update(f"\0{pipeline}\0{message.topic}\0{said or message.packet_id}".encode())
    return digest.intdigest() - (1 << 63), bool(said) or message.dup
