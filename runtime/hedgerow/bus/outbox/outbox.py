"""The node's durable queue of results that must reach the region: the part on the event loop.

    async with Outbox(path, gap_topic=…, publish=client.publish, on_event=…) as outbox:
        outbox.link_changed(up=True)                       # client's on_state
        outbox.append([record], [], done)          # done(None): safe, so acknowledge the frame
        outbox.acknowledge(Ack.decode(payload))    # from the region

Rules:
- Everything is called on the event loop's thread and returns at once. `done` is called there too, after the fsync.
- Safe means: it stays until the region acknowledges it, or a gap is declared for it.
- What is published carries its number as a user property `number`: `EPOCH/PRIORITY/SEQUENCE`. A gap is published to a topic
  of its own, at its place in the sequence. With `ack` beside it, `now`, the region is asked to answer at once.
- What is new goes to its topic, once. What goes again, or could not go when it was new, goes to the late one: who acts on
  results as they come is not to see old ones.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self

from hedgerow.bus.outbox.database import DiskTrouble
from hedgerow.bus.outbox.mark import Boot
from hedgerow.bus.outbox.records import (
    ACK_NOW,
    PRIORITIES,
    Ack,
    Gap,
    Number,
    OutboxEntry,
    OutboxError,
    Record,
    key_of,
    priority_of,
    sequence_of,
)
from hedgerow.bus.outbox.store import LARGEST, RECENT, OutboxStore
from hedgerow.bus.outbox.window import SendWindow
from hedgerow.bus.outbox.writer import Append, Close, CommitOutcome, Done, Lose, OutboxWriter, Sweep
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError

_TICK_S: Final = 1.0
_REFUSALS: Final = 3
"""Times that a broker may refuse a record before it is given up."""
_ACK_NOW: Final = encode_properties([(Property.USER, ACK_NOW)])
_GAP_TYPE: Final = encode_properties([(Property.CONTENT_TYPE, "application/json")])


class Publish(Protocol):
    """How something is published: `Client.publish`."""

    def __call__(
        self,
        topic: str,
        payload: bytes | memoryview,
        *,
        qos: int,
        properties: bytes,
        done: Callable[[Exception | None], None],
    ) -> None:
        """Publish; `done` when the broker has it or refuses it."""


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """How an outbox does, for health.

    Attributes:
        epoch: of its numbers; "" as long as it could not be opened.
        entries: records and gaps that the region does not have.
        used_bytes: that they take.
        in_flight: of them, sent and not acknowledged.
        appending: calls of `append` not answered yet.
        lost: records lost since the start, by reason; each is declared to the region.
        failure: why nothing can be stored; None if it can.
    """

    epoch: str
    entries: int
    used_bytes: int
    in_flight: int
    appending: int
    lost: dict[str, int]
    failure: str | None


class Outbox:
    """Keeps records until the region has them.

    Args:
        path: of its database.
        gap_topic: where gaps are published.
        late: the late topic, of a topic.
        publish: how to publish to the site's broker.
        on_event: takes what operators should know: kind, detail.
        max_bytes: most it may take on the disk (and 4 MB for its log).
        when_full: give up the oldest of the lowest priority, or refuse what is new.
        window: records under way: at most so many sent and not acknowledged by the region.
        window_bytes: of them.
        backlog_share: part of the window for what waits from an outage, so that the rest is free for what is new.
        boot: tells the time.
    Attributes:
        max_record_bytes: bytes that one record may have.
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
        boot: Callable[[], Boot] = Boot.now,
    ) -> None:
        self._gap_topic = gap_topic
        self._late = late
        self._publish = publish
        self._on_event = on_event
        self._window = SendWindow(window, window_bytes, backlog_share)
        self._open_store = partial(OutboxStore, path, max_bytes=max_bytes, when_full=when_full, boot=boot)
        self._up = False
        self._closing = False
        self._last = CommitOutcome()
        self._lost: Counter[str] = Counter()
        self._to_report: Counter[str] = Counter()
        self._refusals: dict[int, int] = {}
        self._appending = 0
        self._again: set[int] = set()
        self._failure: OutboxError | None = None
        self._origins: OrderedDict[int, None] = OrderedDict()
        self.max_record_bytes = max_bytes // LARGEST

    async def __aenter__(self) -> Self:
        """Open the store.

        Raises: OutboxError: it is in use, or of another version. A full or failing disk is no reason: it may pass.
        """
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._writer = OutboxWriter(self._open_store, self._report)
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
        """Of the numbers; "" as long as the store could not be opened."""
        return self._last.epoch

    @property
    def status(self) -> OutboxStatus:
        """How it does."""
        last = self._last
        return OutboxStatus(
            last.epoch,
            last.entries,
            last.used_bytes,
            self._window.under_way,
            self._appending,
            dict(self._lost),
            None if self._failure is None else str(self._failure),
        )

    def has_stored(self, origin: int) -> bool:
        """Whether records of this origin were stored not long ago, in this run or an earlier one."""
        return origin in self._origins

    def append(self, records: Sequence[Record], origins: Sequence[int], done: Done) -> None:
        """Store records, together.

        Args:
            origins: what they were made of, as signed 64-bit numbers, to be known again; the last `RECENT` are remembered.
            done: called once, later: with None when they are on the disk, else with why they are not; then none is.
        """
        if self._closing:
            error = OutboxError("The outbox is closed", remedy="Open it again.", code="outbox-closed")
            self._loop.call_soon(done, error)
            return
        self._appending += 1
        self._writer.give(Append(records, origins, done))

    def acknowledge(self, ack: Ack) -> None:
        """The region has something."""
        if ack.epoch != self.epoch:
            return  # of an epoch that has ended
        self._window.acked(ack, time.monotonic())
        self._writer.give(ack)
        self._pump()

    def link_changed(self, *, up: bool) -> None:
        """The link to the site's broker came up or went down."""
        self._up = up
        if up:
            self._window.link_up(time.monotonic())
            self._pump()
        else:
            self._window.link_down()

    async def close(self) -> None:
        """Write what was given, and close the store."""
        if self._closing:
            return
        self._closing = True
        self._timer.cancel()
        self._writer.give(Close())
        await asyncio.to_thread(self._writer.join)

    def _report(self, outcome: CommitOutcome) -> None:
        """(writer's thread)"""
        self._loop.call_soon_threadsafe(self._finished, outcome)

    def _finished(self, outcome: CommitOutcome) -> None:
        """A group is written."""
        if not self._opened.done():
            if outcome.failure is not None and not isinstance(outcome.failure, DiskTrouble):
                self._opened.set_exception(outcome.failure)
                return
            self._opened.set_result(None)
        self._tell(outcome)
        self._note(outcome)
        now = time.monotonic()
        for wanted, entries in outcome.read:
            self._send(self._window.offer(wanted, entries, now), self._late)
        if outcome.failure is None:
            self._pump()

    def _tell(self, outcome: CommitOutcome) -> None:
        self._appending -= len(outcome.done)
        origins = self._origins
        origins.update(dict.fromkeys(outcome.origins))
        while len(origins) > RECENT:
            origins.popitem(last=False)
        for done, error in outcome.done:
            try:
                done(error)
            except Exception as problem:  # noqa: BLE001 - one caller's fault is not to be another's
                self._loop.call_exception_handler({"message": "An outbox's `done` raised", "exception": problem})
        if outcome.failure is not None and self._failure is None:
            self._failure = outcome.failure
            self._on_event("outbox-failing", {"error": str(outcome.failure), "remedy": outcome.failure.remedy})
        elif outcome.wrote and self._failure is not None:
            self._failure = None
            self._on_event("outbox-recovered", {})

    def _note(self, outcome: CommitOutcome) -> None:
        """Follow what has changed in the store."""
        window, notes = self._window, outcome.notes
        for event in notes.events:
            self._on_event(*event)
        self._lost.update(notes.lost)
        self._to_report.update(notes.lost)
        if not outcome.epoch:  # it is not open
            return
        if outcome.epoch != self.epoch:
            window.begin([key_of(priority, 1) for priority in range(PRIORITIES)], outcome.tops)
            self._refusals.clear()
            self._again.clear()
        self._last = outcome
        window.appended(outcome.appended, outcome.tops, up=self._up)
        window.gone(notes.gone)
        for key in notes.touched:
            window.rewind(key)

    def _pump(self) -> None:
        """Send what may be sent."""
        if not self._up or self._closing:
            return
        entries, wanted = self._window.next(time.monotonic())
        self._send(entries)
        if wanted is not None:
            self._writer.give(wanted)

    def _send(self, entries: Sequence[OutboxEntry], late: Callable[[str], str] | None = None) -> None:
        epoch = self.epoch
        for entry in entries:
            number = Number(epoch, priority_of(entry.key), sequence_of(entry.key))
            topic, payload, properties = entry.topic, entry.payload, entry.properties
            if not topic:
                topic, properties = self._gap_topic, _GAP_TYPE
                payload = Gap.read(entry.key, entry.last, payload).message(epoch)
            elif late is not None:
                topic = late(topic)
            properties += encode_properties([(Property.USER, ("number", str(number)))])
            if self._window.asks(entry.key):
                properties += _ACK_NOW
            done = partial(self._published, epoch, entry.key)
            try:
                self._publish(topic, payload, qos=1, properties=properties, done=done)
            except BusError as error:
                done(error)

    def _published(self, epoch: str, key: int, error: Exception | None) -> None:
        """The site's broker has it, which says nothing about the region; or it refuses it."""
        if error is None:
            self._refusals.pop(key, None)
            return
        if self._closing or not self._up or epoch != self.epoch:
            return
        times = self._refusals[key] = self._refusals.get(key, 0) + 1
        if times >= _REFUSALS:
            del self._refusals[key]
            self._on_event("outbox-refused", {"sequence": sequence_of(key), "error": str(error)})
            self._writer.give(Lose(key, epoch, "refused"))
        self._again.add(key)  # with the next tick: itself, or the gap in its place

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        for key in self._again:
            self._window.again(key)
        self._again.clear()
        self._window.probe(time.monotonic())
        if self._to_report:
            self._on_event("outbox-lost", dict(self._to_report))
            self._to_report.clear()
        self._writer.give(Sweep())
        self._pump()
