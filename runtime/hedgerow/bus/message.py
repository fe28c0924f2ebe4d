"""A message that came from the broker."""

from __future__ import annotations

from hedgerow.bus.acknowledgements import Unacked
from hedgerow.bus.properties import MalformedPacket, PublishProperties
from hedgerow.errors import FrameError

NO_PROPERTIES = PublishProperties()
"""The properties of a message that has none."""


class Message:
    """A PUBLISH that came in.

    Attributes:
        topic: where it was published.
        payload: bytes, or for a large one a read-only view of a buffer of its own. Empty if `oversized`.
        qos: 0 or 1.
        retain: whether the broker had kept it from before the subscription.
        dup: whether the broker says it may have sent it before.
        packet_id: MQTT's packet identifier; 0 for QoS 0.
        received_at: `time.monotonic()` of the read it came with.
        raw_properties: its MQTT 5 properties, encoded, without their length in front.
        oversized: the payload's size in bytes when that is above `max_payload_bytes` and it was skipped, else None.
        malformed: what is wrong with the message itself, else None; the topic is then readable but not to be trusted.
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
        """The MQTT 5 properties, decoded when first asked for.

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
