"""Thread that owns the store: stores waiting records together, and reports what may be acknowledged.

Group commit: the next batch accumulates while one is being written. A single record is written at once; under load a batch
accumulates for at least `_GATHER_S`, since a commit costs more than the rows of a small batch. If the store does not work,
the batch is kept and retried; it is not acknowledged, so the broker sends no more than the receive maximum.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from hedgerow.bus.message import Message
from hedgerow.bus.outbox.records import Ack
from hedgerow.region.store.batch import BatchOutcome
from hedgerow.region.store.database.database import RegionStoreError, StoreTrouble
from hedgerow.region.store.liveness import NodeStatus
from hedgerow.region.store.outboxes.ledgers import LedgerKey
from hedgerow.region.store.records import StoreRecord
from hedgerow.region.store.store import RegionStore, apply_each, is_refused
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

BEAT_EVERY_S: Final = 2.0
_MAX_RECORDS: Final = 4000
_MAX_BYTES: Final = 32 << 20
_TICK_S: Final = 1.0
_GATHER_S: Final = 0.01
"""Shortest time from the start of one batch to the start of the next."""
_RETRY_S: Final = (0.2, 10.0)


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Records to store, and the messages they arrived in."""

    records: list[StoreRecord]
    messages: list[Message]

    @property
    def size(self) -> int:
        """Bytes of the payloads."""
        return sum(record.size for record in self.records)


@dataclass(slots=True)
class WriteReport:
    """Outcome of requests.

    Attributes:
        messages: messages that may be acknowledged to the broker.
        outcomes: outcomes of the batch.
        took_s: seconds spent writing.
        opened: nodes known to the store; set once, when it has been opened.
        store_id: random id of the store; set with `opened`.
        acks: acknowledgements for every outbox at that time.
        failure: why the store does not work; None if it does.
        fatal: whether retrying is pointless.
        statuses: of all nodes; None if not determined this time.
        stored_bytes: size of the stored results.
    """

    messages: list[Message] = field(default_factory=list)
    outcomes: list[BatchOutcome] = field(default_factory=list)
    took_s: float = 0.0
    opened: list[Address] | None = None
    store_id: str = ""
    acks: list[tuple[LedgerKey, Ack]] = field(default_factory=list)
    failure: RegionStoreError | None = None
    fatal: bool = False
    statuses: dict[Address, NodeStatus] | None = None
    stored_bytes: int = 0


class StoreWriter(threading.Thread):
    """Stores submitted records.

    Args:
        open_store: opens the store; called in this thread, and again after a failure.
        report: called in this thread with every outcome.
    Attributes:
        connected: whether the collector is connected to the broker; written with every heartbeat.
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
        self._logged = ""
        self._submitted_bytes = self._taken_bytes = 0

    @property
    def waiting(self) -> int:
        """Number of requests waiting."""
        return self._requests.qsize()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the payloads of waiting requests."""
        return self._submitted_bytes - self._taken_bytes

    def submit(self, request: WriteRequest) -> None:
        """Store records after those submitted before."""
        self._submitted_bytes += request.size
        self._requests.put(request)

    def close(self) -> None:
        """Store what was submitted, then end; if the store does not work, just end."""
        self._closing.set()
        self._requests.put(None)

    def run(self) -> None:
        """See `threading.Thread.run`."""
        request, ending = WriteRequest([], []), False
        retry_s = _RETRY_S[0]
        while True:
            if not request.records and not ending:
                request, ending = self._next()
            try:
                self._work(request)
            except Exception as problem:  # noqa: BLE001 - a bug must not end the thread: nothing would be stored any more
                error = self._explained(problem)
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
        """Return everything that waits, and whether it is the last; after `_TICK_S` without a request, an empty one."""
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
                self._taken_bytes += request.size
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
            self._beat_connected = False  # as a newly opened store has it
            if not self._was_opened:
                self._report(
                    WriteReport(
                        opened=store.nodes, store_id=store.id, acks=store.acks(), stored_bytes=store.stored_bytes
                    )
                )
                self._was_opened = True
        began = time.monotonic()
        if request.records:
            self._began_at = began
            outcomes = self._stored(store, request.records)
            request.records.clear()  # stored: whatever fails from here on, they are not stored again
            self._report(
                WriteReport(request.messages, outcomes, time.monotonic() - began, stored_bytes=store.stored_bytes)
            )
        # At once when the connection changes, so that `region status` never shows an outdated one.
        if began - self._beat_at >= BEAT_EVERY_S or self._beat_connected != self.connected:
            self._beat_at, self._beat_connected = began, self.connected
            try:
                self._keep_house(store)
            except RegionStoreError:
                raise
            except Exception as error:  # noqa: BLE001 - a row that trips a bug: records are stored all the same
                self._explained(error)

    def _keep_house(self, store: RegionStore) -> None:
        store.beat(connected=self._beat_connected)
        statuses = store.statuses(time.time())
        while store.prune(time.time()) and self._requests.empty():
            pass
        tidied = store.tidy()
        outcomes = [tidied] if tidied.twins else []
        self._report(WriteReport(outcomes=outcomes, statuses=statuses, stored_bytes=store.stored_bytes))

    def _stored(self, store: RegionStore, records: list[StoreRecord]) -> list[BatchOutcome]:
        try:
            return [store.apply(records)]
        except RegionStoreError as error:
            if not is_refused(error):
                raise
            log.warning("store-refused", error=str(error), records=len(records))
            return apply_each(store, records)

    def _explained(self, error: Exception) -> RegionStoreError:
        if isinstance(error, RegionStoreError):
            return error
        text = f"{type(error).__name__}: {error}"
        if text != self._logged:  # it is tried again and again
            self._logged = text
            log.error("store-failed", exc_info=error)
        return RegionStoreError(text, remedy="Report this with the service's log.")

    def _abandon(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            store.close()
