"""Decoded messages from the sites, ready to be stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hedgerow.bus.outbox.epochs import EpochEnd
from hedgerow.bus.outbox.records import Gap, Number
from hedgerow.topics import Address
from hedgerow.wire.messages import Instance, RegionStoreHealth, clean

if TYPE_CHECKING:  # not at run time: frames import numpy, which a region does not need
    from hedgerow.frame import Buffer


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """Base of all records.

    Attributes:
        address: the node that sent it; None if the topic names none.
        size: bytes of the payload.
        received_at: Unix seconds.
        fresh: False for a retained message, which may be old.
        wants_ack: whether the node's outbox requests an acknowledgement at once.
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
        number: its number in the node's outbox; None if it is not durable.
        sender_id: the CloudEvents id that the sender gave it.
        properties: user properties as JSON, if the payload does not contain them.
        check: its `record_check`; None: not durable.
        was: numbers that it had before its outbox began a new epoch.
        ended: the end of the epoch before, as its outbox says.
        named: the node that it names, if that is not the one of its topic.
    """

    pipeline: str
    number: Number | None
    sender_id: str | None
    captured_at: float
    content_type: str
    properties: str | None
    payload: Buffer
    check: int | None = None
    was: tuple[Number, ...] = ()
    ended: EpochEnd | None = None
    named: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class GapRecord(StoreRecord):
    """A gap that an outbox declares: numbers it will never send; `ended` as of a result."""

    epoch: str
    gap: Gap
    ended: EpochEnd | None = None


@dataclass(frozen=True, slots=True)
class EventRecord(StoreRecord):
    """Something that happened at a node."""

    kind: str
    sender_id: str | None
    at: float
    payload: Buffer


@dataclass(frozen=True, slots=True)
class HealthRecord(StoreRecord):
    """A health report. `reasons` is a JSON list; `bytes_in` counts frame bytes since the session began.

    Attributes:
        uptime_s: how long the session lasts.
        instance: where it takes place, as it says itself; its texts are clean.
        region: what its outbox knows of the region's store; None: it has none, or is of an earlier version.
    """

    at: float
    session: str
    bytes_in: int
    state: str
    reasons: str
    payload: Buffer
    uptime_s: float = field(default=0.0, kw_only=True)
    instance: Instance = field(default=Instance(), kw_only=True)
    region: RegionStoreHealth | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class StatusRecord(StoreRecord):
    """A node's status, and the session it refers to.

    Attributes:
        stopped: whether an offline node said so itself, as it stopped; otherwise its broker published its will.
    """

    online: bool
    stopped: bool
    session: str
    payload: Buffer


@dataclass(frozen=True, slots=True)
class ReportedRecord(StoreRecord):
    """A node's report of what it runs."""

    payload: Buffer


@dataclass(frozen=True, slots=True)
class RejectedRecord(StoreRecord):
    """A message that cannot be used.

    Attributes:
        number: of a durable result that sending again would not fix, so it is acknowledged; otherwise None.
        payload: the first bytes of it.
        site: whose it is; "" if its topic names none.
        check: of a durable result; None: it is not known, since it was refused unread.
    """

    topic: str
    reason: str
    detail: str
    number: Number | None
    payload: bytes
    site: str = ""
    check: int | None = None


@dataclass(frozen=True, slots=True)
class RefusedRecord(StoreRecord):
    """Messages of a site that were refused unread."""

    site: str
    reason: str
    detail: str
    count: int


@dataclass(frozen=True, slots=True)
class OtherService:
    """Another service of the region; its texts are clean. Times are Unix seconds."""

    instance: str
    store: str
    host: str
    address: str
    since: float
    last_at: float


@dataclass(frozen=True, slots=True)
class ServicesRecord(StoreRecord):
    """All other services of the region that collect now."""

    services: tuple[OtherService, ...]


@dataclass(frozen=True, slots=True)
class PingRecord(StoreRecord):
    """A ping to a node and its outcome; `round_trip_s` is None if no reply arrived in time."""

    round_trip_s: float | None
    clock_offset_s: float | None


def reject(record: StoreRecord, reason: str, detail: str, *, durable: bool = False) -> RejectedRecord:
    """Return the rejection of a record.

    Args:
        record: the record.
        reason: a code.
        detail: for humans.
        durable: whether sending it again would not fix it.
    """
    topic = "" if record.address is None else f"{type(record).__name__.lower()} of {record.address}"
    number, check = (record.number, record.check) if durable and isinstance(record, ResultRecord) else (None, None)
    payload = getattr(record, "payload", b"")
    return RejectedRecord(
        record.address, record.size, record.received_at, record.fresh, topic, reason, clean(detail, 500), number, bytes(payload[:4096]),
        "" if record.address is None else record.address.site, check,
    )  # fmt: skip
