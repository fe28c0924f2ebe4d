"""Settles deliveries: publishes or stores results, publishes dead letters, counts drops; then acknowledges the frame.

The only module that acknowledges frames and counts their outcomes. A delivery is in flight until it is settled here,
exactly once.

    results ──▶ the broker, or for a durable pipeline the outbox ──▶ acknowledgement of their frame
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import structlog

from hedgerow.bus.causes import packet_too_large
from hedgerow.bus.client import Client
from hedgerow.bus.outbox import Outbox, OutboxError
from hedgerow.errors import BusError, HedgerowError
from hedgerow.pipeline.built_pipeline import BuiltPipeline
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.delivery import BatchSettlement, Delivery, Settlement, shed_reason
from hedgerow.pipeline.result_encoder import Encoded
from hedgerow.pipeline.settlement.losses import Losses
from hedgerow.pipeline.settlement.outbox_appender import OutboxAppender, PendingResults
from hedgerow.telemetry.tally import DropReason, Tally
from hedgerow.wire.messages import without_payload

log = structlog.get_logger(__name__)

MOST_OUTSTANDING = 2048
"""Number of unaccepted results above which a pipeline takes no more frames from its queue."""

MOST_OUTSTANDING_BYTES = 64 << 20
"""The same in payload bytes. Above either, a bad QoS 0 frame is dropped instead of dead-lettered."""


_HEAD_BYTES: Final = 16
"""Most bytes of a packet beside its topic, properties and payload."""


class Settler:
    """Settles the deliveries of one pipeline. For the event loop's thread.

    Args:
        source: link that frames arrive on, and are acknowledged on.
        sink: link that results are published on.
        tally: counters of the pipeline.
        on_event: called with events for operators.
        wake: called when a frame is settled, which may make room for others.
        outbox: stores the results of a durable pipeline.
    Attributes:
        closing: the links are being closed, so failed publishes are not reported as refused.
        losses: lost frames, by topic.
    """

    def __init__(
        self,
        source: Client,
        sink: Client,
        tally: Tally,
        on_event: EventSink,
        wake: Callable[[], None],
        outbox: Outbox | None,
    ) -> None:
        self.closing = False
        self.losses = Losses()
        self._source = source
        self._sink = sink
        self._tally = tally
        self._on_event = on_event
        self._wake = wake
        self._appender = None if outbox is None else OutboxAppender(outbox, self._stored, self._not_stored)

    @property
    def full(self) -> bool:
        """Whether as many results as allowed wait for the broker or the outbox."""
        sink, appender = self._sink, self._appender
        if sink.outstanding >= MOST_OUTSTANDING or sink.outstanding_bytes >= MOST_OUTSTANDING_BYTES:
            return True
        return appender is not None and (
            appender.results >= MOST_OUTSTANDING or appender.size >= MOST_OUTSTANDING_BYTES
        )

    @property
    def storing(self) -> bool:
        """Whether results wait to be stored in the outbox, which needs no broker."""
        return self._appender is not None and self._appender.results > 0

    def settle(self, built: BuiltPipeline, settlements: Iterable[Settlement]) -> None:
        """Carry out the settlements of a list."""
        held, now = self._tally.held, time.monotonic()
        appender = self._appender
        for settlement in settlements:
            delivery = settlement.delivery
            if delivery not in held:
                continue  # dropped when the pipeline stopped
            try:
                if settlement.results is not None:
                    if appender is None:
                        self._publish(built, delivery, settlement.results, now)
                    else:
                        self._store(appender, built, delivery, settlement.results)
                elif settlement.dead is not None:
                    self._publish_dead(built, settlement)
                else:
                    self.drop(delivery, settlement.dropped or "dropped")
            except Exception:  # not expected; but a frame that is not settled would hold its place for ever
                log.exception("settlement-failed", pipeline=built.name)
                self._dead_lettered(delivery, "internal", None)
        if appender is not None:
            appender.flush()

    def settle_batch(self, built: BuiltPipeline, batch: BatchSettlement) -> None:
        """Carry out the settlements of deliveries that gave a result each: for QoS 0 in one write, else one by one."""
        try:
            each = [] if self._publish_at_once(built, batch) else batch.each()
        except Exception:  # as in `settle`
            log.exception("settlement-failed", pipeline=built.name)
            for delivery in batch.deliveries:
                self._dead_lettered(delivery, "internal", None)
            return
        if each:
            self.settle(built, each)

    def _publish_at_once(self, built: BuiltPipeline, batch: BatchSettlement) -> bool:
        """Publish results of QoS 0; return False, with nothing done, if one of them needs a closer look."""
        sink, topic, tally = self._sink, built.encoder.topic, self._tally
        if built.config.publish.qos or self._appender is not None or not sink.connected:
            return False
        payloads, properties, *_ = zip(*batch.results, strict=True)
        largest = sink.max_packet_bytes - len(topic)
        if max(map(len, payloads)) + max(map(len, properties)) + _HEAD_BYTES > largest:
            return False
        if not tally.held.issuperset(batch.deliveries):  # some were dropped when the pipeline stopped
            return False
        try:
            sink.publish_all(topic, [*zip(payloads, properties, strict=True)])
        except BusError:
            return False
        now = time.monotonic()
        tally.held.difference_update(batch.deliveries)
        tally.out += len(batch.deliveries)
        tally.results += len(batch.results)
        tally.latency.add_all([now - delivery.message.received_at for delivery in batch.deliveries])
        tally.last_result_at = time.time()
        for delivery in batch.deliveries:
            if delivery.durable:
                self._source.ack(delivery.message)
        return True

    def dead_letter(self, built: BuiltPipeline, delivery: Delivery, error: HedgerowError) -> None:
        """Dead-letter a delivery that failed outside the stages."""
        self._publish_dead(built, built.dead_letter(delivery, error))

    def drop(self, delivery: Delivery, reason: str) -> None:
        """Drop a delivery, and acknowledge it unless it is returned to the broker."""
        self._tally.held.discard(delivery)
        self._tally.count_drop(str(reason))
        self.losses.dropped(delivery, reason)
        if reason is not DropReason.RETURNED:
            self._source.ack(delivery.message)

    def drop_held(self) -> None:
        """Drop all deliveries that are not settled, after the pipeline has stopped."""
        if self._appender is not None:
            self._appender.close()
        for delivery in list(self._tally.held):
            self.drop(delivery, shed_reason(delivery))

    def _store(
        self, appender: OutboxAppender, built: BuiltPipeline, delivery: Delivery, results: list[Encoded]
    ) -> None:
        try:
            if not appender.add(built, delivery, results):
                self.drop(delivery, DropReason.DUPLICATE)
        except OutboxError as error:
            self._unpublishable(built, delivery, error)

    def _stored(self, group: Sequence[PendingResults]) -> None:
        now, held = time.monotonic(), self._tally.held
        for pending in group:
            if pending.delivery in held:
                self._out(pending.delivery, len(pending.records), now)
        self._wake()

    def _not_stored(self, pending: PendingResults) -> None:
        if pending.delivery in self._tally.held:
            self.drop(pending.delivery, DropReason.OUTBOX)

    def _publish(self, built: BuiltPipeline, delivery: Delivery, results: list[Encoded], now: float) -> None:
        sink, topic, qos = self._sink, built.encoder.topic, built.config.publish.qos
        if qos == 0:
            if not sink.connected:
                self.drop(delivery, DropReason.BROKER_AWAY)
                return
            largest = sink.max_packet_bytes - len(topic)
            if (
                size := max(map(_packet_bytes, results))
            ) > largest:  # the broker would not report it: QoS 0 has no acknowledgement
                self._unpublishable(built, delivery, packet_too_large(size, largest))
                return
        delivery.outstanding = len(results)
        done = partial(self._published, built, delivery, len(results)) if qos else None
        try:
            for result in results:
                sink.publish(topic, result.payload, qos=qos, properties=result.properties, done=done)
        except BusError as error:  # larger than any MQTT packet; other frames are unaffected
            delivery.outstanding = 0
            self._unpublishable(built, delivery, error)
            return
        if qos == 0:
            self._out(delivery, len(results), now)

    def _published(self, built: BuiltPipeline, delivery: Delivery, results: int, error: Exception | None) -> None:
        if delivery not in self._tally.held or not delivery.outstanding:
            return  # settled or being dead-lettered already, because another of its results failed
        if error is not None:
            if not self.closing:
                delivery.outstanding = 0
                self._unpublishable(built, delivery, error)
            return
        delivery.outstanding -= 1
        if delivery.outstanding == 0:
            self._out(delivery, results, time.monotonic())
            self._wake()

    def _out(self, delivery: Delivery, results: int, now: float) -> None:
        """Count and acknowledge a delivery whose results have been accepted or stored."""
        tally = self._tally
        tally.held.discard(delivery)
        tally.out += 1
        tally.results += results
        tally.latency.add(now - delivery.message.received_at)
        tally.last_result_at = time.time()
        if delivery.durable:
            self._source.ack(delivery.message)

    def _unpublishable(self, built: BuiltPipeline, delivery: Delivery, error: Exception) -> None:
        problem = error if isinstance(error, HedgerowError) else BusError(str(error), remedy="Check the broker's log.")
        self._on_event("result-refused", {"error": str(problem), "remedy": problem.remedy})
        self.dead_letter(built, delivery, problem)

    def _publish_dead(self, built: BuiltPipeline, settlement: Settlement) -> None:
        assert settlement.dead is not None  # noqa: S101 - the caller has checked
        if self.full and not settlement.delivery.durable:  # Receive Maximum bounds the durable ones
            self.drop(settlement.delivery, DropReason.BROKER_AWAY)
            return
        done = partial(self._dead_lettered, settlement.delivery, settlement.reason)
        letter, topic, payload = settlement.dead, built.encoder.dead_topic, settlement.dead.payload
        if 0 < self._sink.max_packet_bytes < _packet_bytes(letter) + len(topic):  # base64 takes a third more
            payload = without_payload(payload)
        self._sink.publish(topic, payload, qos=1, properties=letter.properties, done=done)

    def _dead_lettered(self, delivery: Delivery, reason: str, error: Exception | None) -> None:
        if delivery not in self._tally.held or (error is not None and self.closing):
            return  # dropped when the pipeline stopped
        if error is not None:
            # The broker refused the dead letter: only the counter and this event record it.
            self._on_event("dead-letter-refused", {"reason": reason, "error": str(error)})
        self._tally.held.discard(delivery)
        self._tally.count_death(reason)
        self.losses.dead.add(delivery)
        self._source.ack(delivery.message)
        self._wake()


def _packet_bytes(result: Encoded) -> int:
    """Return an upper bound of the packet's size without its topic."""
    return len(result.payload) + len(result.properties) + _HEAD_BYTES
