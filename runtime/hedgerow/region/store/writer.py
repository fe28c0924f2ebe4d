"""The thread that owns the store: takes all that waits, stores it together, reports what may be acknowledged.

Group commit: while one batch is being written the next one gathers. What comes alone is written at once; under load a batch
gathers for a moment, since a commit costs the disk and the processor more than all that is in a small one. When the store does not work, what is
in hand is kept and tried again; it is not acknowledged, so the broker sends no more than the receive maximum.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from hedgerow.bus.message import Message
from hedgerow.bus.outbox.records import Ack
from hedgerow.region.store.batch import BatchOutcome
from hedgerow.region.store.database.database import RegionStoreError, StoreTrouble
from hedgerow.region.store.ledgers import LedgerKey
from hedgerow.region.store.liveness import Liveness
from hedgerow.region.store.records import StoreRecord
from hedgerow.region.store.store import RegionStore, apply_each, is_refused
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

BEAT_EVERY_S: Final = 2.0
_MAX_RECORDS: Final = 4000
_MAX_BYTES: Final = 32 << 20
_TICK_S: Final = 1.0
_GATHER_S: Final = 0.01
"""From the beginning of one batch to that of the next, at least."""
_RETRY_S: Final = (0.2, 10.0)


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Items to be stored, and the messages they came with."""

    records: list[StoreRecord]
    messages: list[Message]

    @property
    def size(self) -> int:
        """Bytes of their payloads."""
        return sum(record.size for record in self.records)


@dataclass(slots=True)
class WriteReport:
    """What came of what was given.

    Attributes:
        messages: that may be acknowledged to the broker.
        outcomes: of the batch.
        took_s: the writing took.
        opened: nodes the store knows; only once, when it is open.
        acks: what had come of every outbox by then.
        failure: why the store does not work; None if it does.
        fatal: whether there is no point in trying again.
        verdicts: how many nodes are how; None if not counted now.
        stored_bytes: that results take.
    """

    messages: list[Message] = field(default_factory=list)
    outcomes: list[BatchOutcome] = field(default_factory=list)
    took_s: float = 0.0
    opened: list[Address] | None = None
    acks: list[tuple[LedgerKey, Ack]] = field(default_factory=list)
    failure: RegionStoreError | None = None
    fatal: bool = False
    statuses: Counter[Liveness] | None = None
    stored_bytes: int = 0


class StoreWriter(threading.Thread):
    """Stores what it is given.

    Args:
        open_store: opens the store; called here, and again after trouble.
        report: is told of everything; called in this thread.
    Attributes:
        connected: whether the broker can be reached, to be written down with every beat.
    """

    def __init__(self, open_store: Callable[[], RegionStore], report: Callable[[WriteReport], None]) -> None:
        super().__init__(name="region-writer", daemon=True)
        self.connected = False
        self._open_store = open_store
        self._report = report
        self._requests: queue.SimpleQueue[WriteRequest | None] = queue.SimpleQueue()
        self._store: RegionStore | None = None
        self._closing = threading.Event()
        self._beat_at = 0.0
        self._beat_connected = False
        self._began_at = 0.0
        self._was_opened = False

    @property
    def waiting(self) -> int:
        """Lists of records that wait."""
        return self._requests.qsize()

    def submit(self, request: WriteRequest) -> None:
        """Store this, after what was given before."""
        self._requests.put(request)

    def close(self) -> None:
        """Store what was given, and end. If the store does not work, only end."""
        self._closing.set()
        self._requests.put(None)

    def run(self) -> None:
        """(threading)"""
        request, ending = WriteRequest([], []), False
        retry_s = _RETRY_S[0]
        while True:
            if not request.records and not ending:
                request, ending = self._next()
            try:
                self._work(request)
            except RegionStoreError as error:
                fatal = not self._was_opened and not isinstance(error, StoreTrouble)
                self._report(WriteReport(failure=error, fatal=fatal))
                self._abandon()
                if fatal or self._closing.wait(retry_s):
                    return
                retry_s = min(2 * retry_s, _RETRY_S[1])
                continue
            retry_s = _RETRY_S[0]
            request = WriteRequest([], [])
            if ending:
                self._abandon()
                return

    def _next(self) -> tuple[WriteRequest, bool]:
        """All that waits, and whether it is the last; what is empty after a while is only a tick."""
        records: list[StoreRecord] = []
        messages: list[Message] = []
        size = 0
        try:
            request = self._requests.get(timeout=_TICK_S)
            if (early_s := self._began_at + _GATHER_S - time.monotonic()) > 0:
                self._closing.wait(early_s)
            while request is not None:
                records += request.records
                messages += request.messages
                size += request.size
                if len(records) >= _MAX_RECORDS or size >= _MAX_BYTES:
                    return WriteRequest(records, messages), False
                request = self._requests.get_nowait()
        except queue.Empty:
            return WriteRequest(records, messages), False
        return WriteRequest(records, messages), True

    def _work(self, request: WriteRequest) -> None:
        store = self._store
        if store is None:
            store = self._store = self._open_store()
            self._beat_connected = False  # is what a store says that was just opened
            if not self._was_opened:
                self._report(WriteReport(opened=store.nodes, acks=store.acks(), stored_bytes=store.stored_bytes))
                self._was_opened = True
        began = time.monotonic()
        if request.records:
            self._began_at = began
            outcomes = self._stored(store, request.records)
            self._report(
                WriteReport(request.messages, outcomes, time.monotonic() - began, stored_bytes=store.stored_bytes)
            )
        # At once when the link came or went: whoever asks for the status is not to read what was.
        if began - self._beat_at >= BEAT_EVERY_S or self._beat_connected != self.connected:
            self._beat_at, self._beat_connected = began, self.connected
            store.beat(connected=self._beat_connected)
            statuses = store.statuses(time.time())
            while store.prune(time.time()) and self._requests.empty():
                pass
            self._report(WriteReport(statuses=statuses, stored_bytes=store.stored_bytes))

    def _stored(self, store: RegionStore, records: list[StoreRecord]) -> list[BatchOutcome]:
        try:
            return [store.apply(records)]
        except RegionStoreError as error:
            if not is_refused(error):
                raise
            log.warning("store-refused", error=str(error), records=len(records))
            return apply_each(store, records)

    def _abandon(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
