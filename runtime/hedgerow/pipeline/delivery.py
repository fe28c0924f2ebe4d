"""A message that came in and is not settled yet, and what its run has decided about it."""

from __future__ import annotations

from dataclasses import dataclass

from hedgerow.bus.message import Message
from hedgerow.pipeline.result_encoder import Encoded
from hedgerow.telemetry.tally import DropReason

QOS0_MAX_AGE_S = 5.0
"""Age at which a QoS 0 frame expires where the configuration does not say."""


class Delivery:
    """A message that came in and is not settled yet; what waits in the queue.

    Attributes:
        message: as the broker delivered it.
        stream: which stream it belongs to.
        sequence: its number in the stream on this node.
        size: payload bytes.
        expires_at: monotonic seconds after which it is of no use.
        durable: QoS 1: the broker keeps it until it is acknowledged.
        outstanding: results that the broker has not accepted yet.
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
        """Let it expire no later than its sender said."""
        self.expires_at = min(self.expires_at, self.message.received_at + seconds)


@dataclass(slots=True)
class Settlement:
    """What is to be done about a delivery: exactly one of results, dropped, dead.

    Attributes:
        results: what is to be published for it.
        dropped: why it is dropped.
        dead: the dead letter, and `reason` its code.
    """

    delivery: Delivery
    results: list[Encoded] | None = None
    dropped: str | None = None
    dead: Encoded | None = None
    reason: str = ""


def shed_reason(delivery: Delivery) -> DropReason:
    """Why a delivery that still waits is let go when its pipeline stops."""
    return DropReason.RETURNED if delivery.durable else DropReason.SHUTDOWN
