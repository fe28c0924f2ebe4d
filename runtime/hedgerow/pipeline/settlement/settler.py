"""Where every frame's way ends: its results published, its dead letter published, or dropped; then acknowledged.

The only place that acknowledges and that counts what became of frames. A delivery is held, and so in flight, until it
is settled here, exactly once.

    results ──▶ the broker, or for a durable pipeline the outbox ──▶ acknowledgement of their frame
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from hedgerow.bus.causes import packet_too_large
from hedgerow.bus.client import Client
from hedgerow.bus.outbox import Outbox, OutboxError
from hedgerow.errors import BusError, HedgerowError
from hedgerow.pipeline.built_pipeline import BuiltPipeline
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.delivery import Delivery, Settlement, shed_reason
from hedgerow.pipeline.result_encoder import Encoded
from hedgerow.pipeline.settlement.outbox_keeper import OutboxKeeper, PendingResults
from hedgerow.telemetry.tally import DropReason, Tally

MOST_OUTSTANDING = 2048
"""Results the broker has yet to accept, above which a pipeline takes no more frames out of its queue."""

MOST_OUTSTANDING_BYTES = 64 << 20
"""The same in bytes of payload. Above it, a bad frame of QoS 0 is dropped instead of dead-lettered."""


class Settler:
    """Settles the deliveries of one pipeline. For the event loop's thread.

    Args:
        source: the link that frames came in on: where they are acknowledged.
        sink: the link that results go out on.
        tally: what became of frames.
        on_event: takes what operators should know.
        wake: called when the broker has accepted something.
        outbox: where the results of a durable pipeline go.
    Attributes:
        closing: the links are being closed, so what they could not do is no refusal.
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
        self._source = source
        self._sink = sink
        self._tally = tally
        self._on_event = on_event
        self._wake = wake
        self._keeper = None if outbox is None else OutboxKeeper(outbox, self._stored, self._not_stored)

    @property
    def full(self) -> bool:
        """Whether the broker, or the outbox, has as much to accept as may wait for it."""
        sink, keeper = self._sink, self._keeper
        if sink.outstanding >= MOST_OUTSTANDING or sink.outstanding_bytes >= MOST_OUTSTANDING_BYTES:
            return True
        return keeper is not None and (keeper.results >= MOST_OUTSTANDING or keeper.size >= MOST_OUTSTANDING_BYTES)

    @property
    def storing(self) -> bool:
        """Whether results wait for the outbox, which needs no broker."""
        return self._keeper is not None and self._keeper.results > 0

    def settle(self, built: BuiltPipeline, settlements: Iterable[Settlement]) -> None:
        """Do what a list's run has decided."""
        held, now = self._tally.held, time.monotonic()
        keeper = self._keeper
        for settlement in settlements:
            delivery = settlement.delivery
            if delivery not in held:
                continue  # given up when the pipeline was stopped
            if settlement.results is not None:
                if keeper is None:
                    self._publish(built, delivery, settlement.results, now)
                else:
                    self._keep(keeper, built, delivery, settlement.results)
            elif settlement.dead is not None:
                self._publish_dead(built, settlement)
            else:
                self.drop(delivery, settlement.dropped or "dropped")
        if keeper is not None:
            keeper.flush()

    def bury(self, built: BuiltPipeline, delivery: Delivery, error: HedgerowError) -> None:
        """Dead-letter a delivery that never reached a lane, or came back from one."""
        self._publish_dead(built, built.bury(delivery, error))

    def drop(self, delivery: Delivery, reason: str) -> None:
        """Drop a delivery; one that goes back to the broker is not acknowledged."""
        self._tally.held.discard(delivery)
        self._tally.dropped[str(reason)] += 1
        if reason is not DropReason.RETURNED:
            self._source.ack(delivery.message)

    def give_up(self) -> None:
        """Drop whatever is still held: the pipeline has stopped."""
        if self._keeper is not None:
            self._keeper.close()
        for delivery in list(self._tally.held):
            self.drop(delivery, shed_reason(delivery))

    def _keep(self, keeper: OutboxKeeper, built: BuiltPipeline, delivery: Delivery, results: list[Encoded]) -> None:
        try:
            if not keeper.keep(built, delivery, results):
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
            if (size := max(map(_packet_bytes, results))) > largest:  # nobody would tell us later
                self._unpublishable(built, delivery, packet_too_large(size, largest))
                return
        delivery.outstanding = len(results)
        done = partial(self._published, built, delivery, len(results)) if qos else None
        try:
            for result in results:
                sink.publish(topic, result.payload, qos=qos, properties=result.properties, done=done)
        except BusError as error:  # larger than any packet; its neighbours go on
            delivery.outstanding = 0
            self._unpublishable(built, delivery, error)
            return
        if qos == 0:
            self._out(delivery, len(results), now)

    def _published(self, built: BuiltPipeline, delivery: Delivery, results: int, error: Exception | None) -> None:
        if delivery not in self._tally.held or not delivery.outstanding:
            return  # settled, or about to be dead-lettered, by an earlier part's failure
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
        """The results are safe."""
        tally = self._tally
        tally.held.discard(delivery)
        tally.out += 1
        tally.results += results
        tally.latency.add(now - delivery.message.received_at)
        tally.last_result_at = time.time()
        if delivery.durable:
            self._source.ack(delivery.message)

    def _unpublishable(self, built: BuiltPipeline, delivery: Delivery, error: Exception) -> None:
        refusal = (
            error if isinstance(error, HedgerowError) else BusError(str(error), remedy="Look at the broker's log.")
        )
        self._on_event("result-refused", {"error": str(refusal), "remedy": refusal.remedy})
        self.bury(built, delivery, refusal)

    def _publish_dead(self, built: BuiltPipeline, settlement: Settlement) -> None:
        assert settlement.dead is not None  # noqa: S101 - the caller looked
        if self.full and not settlement.delivery.durable:  # the durable are no more than Receive Maximum
            self.drop(settlement.delivery, DropReason.BROKER_AWAY)
            return
        done = partial(self._buried, settlement.delivery, settlement.reason)
        letter = settlement.dead
        self._sink.publish(built.encoder.dead_topic, letter.payload, qos=1, properties=letter.properties, done=done)

    def _buried(self, delivery: Delivery, reason: str, error: Exception | None) -> None:
        if delivery not in self._tally.held or (error is not None and self.closing):
            return  # given up when the pipeline was stopped
        if error is not None:
            # Refused too: the counter and the event are all that is left to tell of it.
            self._on_event("dead-letter-refused", {"reason": reason, "error": str(error)})
        self._tally.held.discard(delivery)
        self._tally.dead[reason] += 1
        self._source.ack(delivery.message)
        self._wake()


def _packet_bytes(result: Encoded) -> int:
    """Most that a packet with this result has, but for its topic."""
    return len(result.payload) + len(result.properties) + 16
