"""Deliveries and settlements: a message in progress, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hedgerow.bus.message import Message
from hedgerow.pipeline.result_encoder import Encoded
from hedgerow.telemetry.tally import DropReason

QOS0_MAX_AGE_S = 5.0
"""Default maximum age of a QoS 0 frame."""


class Delivery:
    """A received message that is not settled yet.

    Attributes:
        message: the message as the broker delivered it.
        stream: stream of the frame.
        sequence: number of the frame in its stream on this node.
        size: payload bytes.
        expires_at: monotonic seconds after which the frame is useless.
        durable: QoS 1: the broker keeps it until it is acknowledged.
        outstanding: number of results that the broker has not accepted yet.
        dispatched_at: monotonic seconds when it left the queue.
    """

    __slots__ = ("dispatched_at", "durable", "expires_at", "message", "outstanding", "sequence", "size", "stream")

    def __init__(self, message: Message, stream: str, sequence: int, max_age_s: float | None) -> None:
        self.message = message
        self.stream = stream
        self.sequence = sequence
        self.size = len(message.payload)
        self.durable = message.qos > 0
        self.outstanding = 0
        self.dispatched_at = 0.0
        if max_age_s is None:
            max_age_s = float("inf") if self.durable else QOS0_MAX_AGE_S
        self.expires_at = message.received_at + max_age_s

    def expire_in(self, seconds: float) -> None:
        """Expire no later than this many seconds after arrival."""
        self.expires_at = min(self.expires_at, self.message.received_at + seconds)


@dataclass(slots=True)
class Settlement:
    """How a delivery ends: exactly one of `results`, `dropped` and `dead` is set.

    Attributes:
        results: encoded results to publish.
        dropped: reason for dropping it.
        dead: encoded dead letter; `reason` is its code.
    """

    delivery: Delivery
    results: list[Encoded] | None = None
    dropped: str | None = None
    dead: Encoded | None = None
    reason: str = ""


@dataclass(slots=True)
class BatchSettlement:
    """How deliveries of different streams end that gave one result each: those that went through the stages as columns."""

    deliveries: Sequence[Delivery]
    results: Sequence[Encoded]

    def each(self) -> list[Settlement]:
        """Return a settlement for each delivery."""
        return [
            Settlement(delivery, results=[result])
            for delivery, result in zip(self.deliveries, self.results, strict=True)
        ]


def shed_reason(delivery: Delivery) -> DropReason:
    """Return the drop reason for a queued delivery when its pipeline stops."""
    return DropReason.RETURNED if delivery.durable else DropReason.SHUTDOWN
