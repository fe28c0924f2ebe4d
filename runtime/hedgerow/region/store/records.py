"""What messages from the sites come to: one item each, ready to be stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hedgerow.bus.outbox.records import Gap, Number
from hedgerow.topics import Address
from hedgerow.wire.messages import clean

if TYPE_CHECKING:  # a region has no frames, nor the arrays that come with them
    from hedgerow.frame import Buffer


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """Anything that came.

    Attributes:
        address: of the node it came from; None if the topic does not say.
        size: bytes of its payload.
        received_at: Unix seconds.
        fresh: whether it was said just now; what a broker retained may be old.
        asks: whether the node's outbox wants to hear at once that it is stored.
    """

    address: Address | None
    size: int
    received_at: float
    fresh: bool
    wants_ack: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class ResultRecord(StoreRecord):
    """A result.

    Attributes:
        number: in the node's outbox; None if it is not durable.
        said_id: the id of its CloudEvents attributes.
        properties: the user properties, JSON, where the payload does not hold them itself.
    """

    pipeline: str
    number: Number | None
    sender_id: str | None
    captured_at: float
    content_type: str
    properties: str | None
    payload: Buffer


@dataclass(frozen=True, slots=True)
class GapRecord(StoreRecord):
    """A gap that an outbox declares: numbers that will never come."""

    epoch: str
    gap: Gap


@dataclass(frozen=True, slots=True)
class EventRecord(StoreRecord):
    """Something that happened at a node."""

    kind: str
    sender_id: str | None
    at: float
    payload: Buffer


@dataclass(frozen=True, slots=True)
class HealthRecord(StoreRecord):
    """A node's measure of itself; `reasons` is a JSON list, `bytes_in` those of frames since its session began."""

    at: float
    session: str
    bytes_in: int
    state: str
    reasons: str
    payload: Buffer


@dataclass(frozen=True, slots=True)
class StatusRecord(StoreRecord):
    """A node's status: online or offline, with the session it speaks of."""

    online: bool
    session: str
    payload: Buffer


@dataclass(frozen=True, slots=True)
class ReportedRecord(StoreRecord):
    """What a node says it runs."""

    payload: Buffer


@dataclass(frozen=True, slots=True)
class RejectedRecord(StoreRecord):
    """A message that cannot be used.

    Attributes:
        number: of a durable result that would not be any better if it came again, so it is acknowledged.
        payload: its beginning.
    """

    topic: str
    reason: str
    detail: str
    number: Number | None
    payload: bytes


@dataclass(frozen=True, slots=True)
class PingRecord(StoreRecord):
    """A ping to a node and what became of it; `round_trip_s` is None if no answer came in time."""

    round_trip_s: float | None
    clock_offset_s: float | None


def reject(record: StoreRecord, reason: str, detail: str, *, durable: bool = False) -> RejectedRecord:
    """An item as one that cannot be used.

    Args:
        durable: whether it would not be any better if it came again.
    """
    topic = "" if record.address is None else f"{type(record).__name__.lower()} of {record.address}"
    number: Number | None = record.number if durable and isinstance(record, ResultRecord) else None
    payload = getattr(record, "payload", b"")
    return RejectedRecord(
        record.address, record.size, record.received_at, record.fresh, topic, reason, clean(detail, 500), number, bytes(payload[:4096])
    )  # fmt: skip
