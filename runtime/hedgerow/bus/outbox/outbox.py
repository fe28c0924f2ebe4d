"""Event-loop side of the durable queue of results for the region.

    async with Outbox(path, gap_topic=…, publish=client.publish, on_event=…) as outbox:
        outbox.link_changed(up=True)                       # from the client's on_state
        outbox.append([record], [], done)          # done(None): stored, so acknowledge the frame
        outbox.acknowledge(Ack.decode(payload))    # from the region

Rules:
- Call everything on the event loop's thread; calls return at once. `done` is called there too, after the fsync.
- A stored record stays until the region acknowledges it, or a gap is declared for it.
- Every publish carries its number in the user property `number`: `EPOCH/PRIORITY/SEQUENCE`. A gap is published to `gap_topic`,
  at its place in the sequence. The user property `ack: now` requests an immediate acknowledgement from the region; `ended`, on
  the first number of an epoch, names the last ones of the epoch before; `was` names the number that a record had before.
- A new record is published once to its topic. A resent or delayed one goes to its late topic, so that subscribers acting on
  live results never see old ones.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self

from hedgerow.bus.outbox.database import DiskTrouble
from hedgerow.bus.outbox.epochs import Epochs
from hedgerow.bus.outbox.kept import NOTHING, KeepLimits, KnownStore
from hedgerow.bus.outbox.mark import Boot
from hedgerow.bus.outbox.records import (
    ACK_NOW,
    PACKET_OVERHEAD_BYTES,
    PRIORITIES,
    Ack,
    Gap,
    OutboxEntry,
    OutboxError,
    Record,
    key_of,
    priority_of,
    sequence_of,
)
from hedgerow.bus.outbox.store import MAX_RECORD_FRACTION, NOWHERE, REMEMBERED_ORIGINS, MachineAndKey, OutboxStore
from hedgerow.bus.outbox.window import SendWindow
from hedgerow.bus.outbox.writer import (
    Append,
    Close,
    CommitOutcome,
    Done,
    GiveUp,
    Learn,
    Leave,
    OutboxWriter,
    Sweep,
    Trim,
)
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.bus.set_aside.messages import MessageSetAside
from hedgerow.errors import BusError
from hedgerow.telemetry.throttle import EVERY_S

_TICK_S: Final = 1.0
_MAX_REFUSALS: Final = 3
"""Refusals by the broker after which a record is given up."""
_ACK_NOW: Final = encode_properties([(Property.USER, ACK_NOW)])
_GAP_TYPE: Final = encode_properties([(Property.CONTENT_TYPE, "application/json")])


class Publish(Protocol):
    """Signature of `Client.publish`."""

    def __call__(
        self,
        topic: str,
        payload: bytes | memoryview,
        *,
        qos: int,
        properties: bytes,
        done: Callable[[Exception | None], None],
    ) -> None:
        """Publish; call `done` when the broker acknowledges or refuses it."""


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """State of an outbox, for health reports.

    Attributes:
        epoch: of this run's numbers; "" until it has stored a record.
        entries: records and gaps not acknowledged by the region.
        used_bytes: size on disk of these, and of what is kept.
        in_flight: entries sent and not acknowledged.
        appending: calls of `append` still in progress.
        stuck: records that the region does not acknowledge although it acknowledges later ones.
        lost: records lost since the start, by reason; each is declared to the region.
        failure: why nothing can be stored; None if it can.
        moved: what has changed since the last run: machine, key.
        kept_bytes: size of what is acknowledged and kept, in case the region's store is put back.
        region: what is known of the region's store.
    """

    epoch: str
    entries: int
    used_bytes: int
    in_flight: int
    appending: int
    stuck: int
    lost: dict[str, int]
    failure: str | None
    moved: list[str]
    kept_bytes: int
    region: KnownStore


class Outbox:
    """Stores records until the region acknowledges them.

    Args:
        path: its database.
        gap_topic: where gaps are published.
        late: returns the late topic for a topic.
        readdress: returns the present topic for that of a record, which may have waited since the node had another name.
        publish: publishes to the site's broker.
        on_event: called with events for operators: kind and detail.
        max_bytes: disk quota, without 4 MB for the database's log.
        when_full: evict the oldest records of the lowest priority, or refuse new ones.
        window: limit on records in flight: sent and not acknowledged by the region.
        window_bytes: limit on their bytes.
        backlog_share: part of the window for the backlog of an outage; the rest is reserved for new records.
        commit_every_s: longest time that records wait for others before they are written together; 0: none.
        boot: returns the time since boot.
        runs_on: fingerprints of the machine and the node's key.
        keep: how long what is acknowledged is kept, in case the region's store is put back.
    Attributes:
        max_record_bytes: size limit of a record.
        max_packet_bytes: largest packet that reaches the region. A stored record that exceeds it is given up; None: unknown.
    """

    def __init__(
        self,
        path: Path,
        *,
        gap_topic: str,
        late: Callable[[str], str],
        publish: Publish,
        on_event: Callable[[str, dict[str, Any]], None],
        max_bytes: int = 1 << 30,
        when_full: Literal["evict", "refuse"] = "evict",
        window: int = 256,
        window_bytes: int = 16 << 20,
        backlog_share: float = 0.5,
        commit_every_s: float = 0.0,
        boot: Callable[[], Boot] = Boot.now,
        readdress: Callable[[str], str] = str,
        runs_on: MachineAndKey = NOWHERE,
        keep: KeepLimits = NOTHING,
    ) -> None:
        self._readdress = readdress
        self._gap_topic = gap_topic
        self._late = late
        self._publish = publish
        self._on_event = on_event
        self._window = SendWindow(window, window_bytes, backlog_share)
        self._open_store = partial(
            OutboxStore, path, max_bytes=max_bytes, when_full=when_full, boot=boot, runs_on=runs_on, keep=keep
        )
        self._commit_every_s = commit_every_s
        self._link_up = False
        self._closing = False
        self._latest = CommitOutcome()
        self._lost: Counter[str] = Counter()
        self._unreported_losses: Counter[str] = Counter()
        self._losses_due = 0.0  # monotonic seconds
        self._refusals: dict[int, int] = {}
        self._appending = 0
        self._at_client: set[tuple[str, int]] = set()  # records that the client still has: it sends them again itself
        self._giving_up: dict[int, str] = {}  # records that the writer has not replaced by a gap yet, and why
        self._to_resend: set[int] = set()
        self._stuck_reported = False
        self._failure: OutboxError | None = None
        self._origins: OrderedDict[int, None] = OrderedDict()
        self.max_record_bytes = max_bytes // MAX_RECORD_FRACTION
        self.max_packet_bytes: int | None = None

    async def __aenter__(self) -> Self:
        """Open the store.

        Raises: OutboxError: it is in use, or has another format. A full or failing disk does not raise: it may pass.
        """
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._writer = OutboxWriter(self._open_store, self._report, self._commit_every_s)
        self._writer.start()
        await self._opened
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def epoch(self) -> str:
        """Epoch of this run's numbers; "" until it has stored a record."""
        return self._latest.epoch

    @property
    def status(self) -> OutboxStatus:
        """Its current state."""
        last = self._latest
        return OutboxStatus(
            last.epoch,
            last.entries,
            last.used_bytes,
            self._window.in_flight,
            self._appending,
            self._window.stuck,
            dict(self._lost),
            None if self._failure is None else str(self._failure),
            last.moved,
            last.kept_bytes,
            last.region,
        )

    def has_stored(self, origin: int) -> bool:
        """Return whether records of this origin were stored recently, in this run or an earlier one."""
        return origin in self._origins

    def append(self, records: Sequence[Record], origins: Sequence[int], done: Done) -> None:
        """Store records, all or none.

        Args:
            origins: signed 64-bit ids of the messages the records were made from, for `has_stored`; the last
                `REMEMBERED_ORIGINS` are remembered.
            done: called once, after this call returns: with None when all are on disk, else with the error.
        """
        if self._closing:
            error = OutboxError("The outbox is closed", remedy="Open it again.", code="outbox-closed")
            self._loop.call_soon(done, error)
            return
        self._appending += 1
        self._writer.submit(Append(records, origins, done))

    def acknowledge(self, ack: Ack) -> None:
        """Apply an acknowledgement from the region."""
        at = ack.at
        if at is not None and self._latest.is_open and self._latest.stores.get(at.store) != at.lost:
            self._writer.submit(Learn(at))  # it was put back, or is another one
        span = self._epochs.named(ack.epoch)
        if span is None:
            return  # of another outbox, or nothing of it waits
        in_keys = span.translated(ack, self._latest.numbers)
        if in_keys.beyond and span.ends is None:  # another outbox has used this run's numbers
            self._writer.submit(Leave(span.epoch, "unassigned"))
            return
        acked = self._window.acked(in_keys, time.monotonic(), span)
        for key in acked.keys:
            self._giving_up.pop(key, None)
        self._writer.submit(Trim(span.epoch, in_keys, acked.keys, at))
        if acked.clash:
            self._writer.submit(Leave(span.epoch, "another-result"))
        self._send_pending()

    def link_changed(self, *, up: bool) -> None:
        """Report that the link to the site's broker came up or went down."""
        self._link_up = up
        if up:
            self._window.link_up(time.monotonic())
            self._send_pending()
        else:
            self._window.link_down()

    def hurry(self) -> None:
        """Write what waits, and from now on everything at once: the node stops."""
        self._writer.hurry()

    async def close(self) -> None:
        """Write everything appended so far, and close the store."""
        if self._closing:
            return
        self._closing = True
        self._timer.cancel()
        self._writer.submit(Close())
        await asyncio.to_thread(self._writer.join)
        self._report_losses()

    def _report(self, outcome: CommitOutcome) -> None:
        """(writer's thread) Pass an outcome to the event loop."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._finished, outcome)

    def _finished(self, outcome: CommitOutcome) -> None:
        """Handle the outcome of a group of jobs."""
        if not self._opened.done():
            if outcome.failure is not None and not isinstance(outcome.failure, DiskTrouble):
                self._opened.set_exception(outcome.failure)
                return
            self._opened.set_result(None)
        self._run_callbacks(outcome)
        self._apply_changes(outcome)
        now = time.monotonic()
        for request, entries in outcome.reads:
            self._send(self._window.offer(request, entries, now), self._late)
        if outcome.failure is None:
            self._send_pending()

    def _run_callbacks(self, outcome: CommitOutcome) -> None:
        self._appending -= len(outcome.callbacks)
        origins = self._origins
        origins.update(dict.fromkeys(outcome.origins))
        while len(origins) > REMEMBERED_ORIGINS:
            origins.popitem(last=False)
        for done, error in outcome.callbacks:
            try:
                done(error)
            except Exception as problem:  # noqa: BLE001 - one caller's error must not affect others
                self._loop.call_exception_handler({"message": "An outbox callback raised", "exception": problem})
        if outcome.failure is not None and self._failure is None:
            self._failure = outcome.failure
            self._on_event("outbox-failing", {"error": str(outcome.failure), "remedy": outcome.failure.remedy})
        elif outcome.wrote and self._failure is not None:
            self._failure = None
            self._on_event("outbox-recovered", {})

    def _apply_changes(self, outcome: CommitOutcome) -> None:
        """Bring the window in line with the store, and report events."""
        window, changes = self._window, outcome.changes
        for event in changes.events:
            self._on_event(*event)
        self._lost.update(changes.lost)
        self._unreported_losses.update(changes.lost)
        if not outcome.is_open:
            return
        if changes.renumbered or not self._latest.is_open:
            window.reset([key_of(priority, 1) for priority in range(PRIORITIES)], outcome.next_keys)
            self._refusals.clear()
            self._giving_up.clear()
            self._to_resend.clear()
        self._latest = outcome
        window.appended(outcome.appended, outcome.next_keys, up=self._link_up)
        window.discard(changes.given_up)
        for key in changes.given_up:
            self._giving_up.pop(key, None)
        for key in changes.rewound:
            window.rewind(key)

    def _send_pending(self) -> None:
        """Send as much as the window permits."""
        if not self._link_up or self._closing:
            return
        entries, request = self._window.next(time.monotonic())
        self._send(entries)
        if request is not None:
            self._writer.submit(request)

    def _send(self, entries: Sequence[OutboxEntry], late: Callable[[str], str] | None = None) -> None:
        for entry in entries:
            if self._too_large(entry):
                self._give_up(entry.key, "too-large")
                continue
            if entry.topic and (reason := self._giving_up.get(entry.key)):  # it was read before the gap was written
                self._give_up(entry.key, reason)
                continue
            span = self._epochs.of(entry.key)
            epoch = span.epoch
            if entry.topic:
                if (epoch, entry.key) in self._at_client:
                    continue
                self._at_client.add((epoch, entry.key))
            topic, payload, properties = self._readdress(entry.topic), entry.payload, entry.properties
            if not topic:
                topic, properties = self._gap_topic, _GAP_TYPE
                base = span.bases[priority_of(entry.key)]
                payload = Gap.read(entry.key, entry.last, payload).message(epoch, base)
            elif late is not None:
                topic = late(topic)
            numbers = self._epochs.numbers(entry.key, is_record=bool(entry.topic))
            properties += encode_properties([(Property.USER, pair) for pair in numbers])
            if self._window.wants_ack(entry.key):
                properties += _ACK_NOW
            done = partial(self._published, epoch, entry.key)
            try:
                self._publish(topic, payload, qos=1, properties=properties, done=done)
            except BusError as error:
                done(error)

    @property
    def _epochs(self) -> Epochs:
        return self._latest.epochs

    def _is_of(self, key: int, epoch: str) -> bool:
        span = self._epochs.named(epoch)
        return span is not None and span.has(key)

    def _too_large(self, entry: OutboxEntry) -> bool:
        limit = self.max_packet_bytes
        return limit is not None and bool(entry.topic) and entry.size + PACKET_OVERHEAD_BYTES > limit

    def _give_up(self, key: int, reason: str) -> None:
        """Declare a gap in place of a record, and send that at the next tick."""
        self._giving_up[key] = reason
        self._writer.submit(GiveUp(key, self._epochs.of(key).epoch, reason))
        self._to_resend.add(key)

    def _published(self, epoch: str, key: int, error: Exception | None) -> None:
        """Handle the site broker's reply; its acceptance says nothing about the region."""
        self._at_client.discard((epoch, key))
        if error is None:
            self._refusals.pop(key, None)
            return
        if isinstance(error, MessageSetAside) and not self._closing and self._is_of(key, epoch):
            self._refusals.pop(key, None)
            self._give_up(key, "set-aside")
            return
        if self._closing or not self._link_up or not self._is_of(key, epoch):
            return
        refusals = self._refusals[key] = self._refusals.get(key, 0) + 1
        if refusals >= _MAX_REFUSALS:
            del self._refusals[key]
            self._on_event("outbox-refused", {"sequence": sequence_of(key), "error": str(error)})
            self._give_up(key, "refused")
        self._to_resend.add(key)  # at the next tick: the record, or the gap in its place

    def _examine_stuck(self, now: float) -> None:
        """Report records that do not get through, once, and give up those that have not for long."""
        stuck = self._window.stuck
        if stuck and not self._stuck_reported:
            remedy = (
                "A bridge or broker on the way does not carry them: compare their size with its packet limit, and their "
                "topic with its rules and ACL. They are sent at growing intervals, and given up after a day."
            )
            self._on_event("outbox-stuck", {"results": stuck, "remedy": remedy})
        self._stuck_reported = bool(stuck)
        for key in self._window.hopeless(now):
            self._give_up(key, "not-carried")

    def _report_losses(self) -> None:
        """Report the losses since the last report; at most once a minute, so that their sum is right."""
        if self._unreported_losses:
            self._on_event("outbox-lost", dict(self._unreported_losses))
            self._unreported_losses.clear()
            self._losses_due = time.monotonic() + EVERY_S

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        for key in self._to_resend:
            self._window.resend(key)
        self._to_resend.clear()
        self._window.probe(now := time.monotonic())
        self._examine_stuck(now)
        if now >= self._losses_due:
            self._report_losses()
        self._writer.submit(Sweep())
        self._send_pending()
