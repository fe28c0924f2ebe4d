"""A message received from the broker."""

from __future__ import annotations

from hedgerow.bus.acknowledgements import Unacked
from hedgerow.bus.properties import MalformedPacket, PublishProperties
from hedgerow.errors import FrameError

NO_PROPERTIES = PublishProperties()
"""The properties of a message that has none."""


class Message:
    """A received PUBLISH.

    Attributes:
        topic: where it was published.
        payload: bytes; a large one is a read-only view of its own buffer. Empty if `oversized`.
        qos: 0 or 1.
        retain: whether it is a retained message from before the subscription.
        dup: whether the broker may have sent it before.
        packet_id: MQTT's packet identifier; 0 for QoS 0.
        received_at: `time.monotonic()` of the read that completed it.
        raw_properties: encoded MQTT 5 properties, without their length prefix.
        oversized: size of a payload above `max_payload_bytes`, which was skipped; else None.
        malformed: what is wrong with the message, else None. Do not trust the topic then: it is only printable.
    """

    __slots__ = (
        "_properties",
        "dup",
        "malformed",
        "oversized",
        "packet_id",
        "payload",
        "qos",
        "raw_properties",
        "received_at",
        "retain",
        "topic",
        "unacked",
    )

    def __init__(
        self,
        topic: str,
        payload: bytes | memoryview,
        flags: int,
        packet_id: int,
        received_at: float,
        raw_properties: bytes = b"",
        unacked: Unacked | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = flags >> 1 & 3
        self.retain = flags & 1 == 1
        self.dup = flags & 8 == 8
        self.packet_id = packet_id
        self.received_at = received_at
        self.oversized: int | None = None
        self.malformed: str | None = None
        self.raw_properties = raw_properties
        self._properties: PublishProperties | None = None
        self.unacked = unacked

    @property
    def properties(self) -> PublishProperties:
        """The MQTT 5 properties, decoded on first use.

        Raises: FrameError: they are malformed (`malformed-properties`).
        """
        if self._properties is None:
            if not self.raw_properties:
                return NO_PROPERTIES
            try:
                self._properties = PublishProperties(self.raw_properties)
            except MalformedPacket as error:
                raise FrameError(f"On {self.topic}: {error}", code="malformed-properties") from error
        return self._properties

    def __repr__(self) -> str:
        return f"<Message {self.topic!r} {len(self.payload)} B qos={self.qos} id={self.packet_id}>"
