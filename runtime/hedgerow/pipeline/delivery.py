"""One frame's way through the node, from the message it came in to the acknowledgement that ends it."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from typing import Any

from hedgerow.bus.message import NO_PROPERTIES, Message
from hedgerow.config import PipelineConfig
from hedgerow.errors import FrameError, HedgerowError
from hedgerow.frame import Frame
from hedgerow.pipeline.results import Encoded
from hedgerow.telemetry.clock import Clock
from hedgerow.telemetry.tally import DropReason
from hedgerow.wire.codec import (
    ENVELOPE,
    LONGEST_NAME,
    frame_id,
    mime,
    mime_parameters,
    open_envelope,
    parse_json,
    parse_msgpack,
    timestamp,
)

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


_SENDER_FACTS = ("rate", "channels")
"""Parameters of a content type that become meta. No others: meta is how stages speak to each other."""


class StreamKey:
    """Tells streams apart, as the pipeline's `stream:` says."""

    def __init__(self, config: PipelineConfig) -> None:
        self._by = config.stream.by
        self._level = config.stream.level or 0
        self._field = config.stream.field or ""
        self._content_type = config.content_type or ""

    def __call__(self, message: Message) -> str:
        """The stream a message belongs to.

        Raises: FrameError: the topic has no such level, or the payload no such field, or too long a name in it.
        """
        if self._by == "topic":
            said = message.properties.content_type
            if (mime(said) if said else self._content_type) == ENVELOPE:
                return _short(_field(parse_msgpack(message.payload), "stream") or message.topic)
            return message.topic
        if self._by == "level":
            levels = message.topic.split("/")
            if self._level >= len(levels):
                raise FrameError(f"{message.topic!r} has no level {self._level}", code="no-stream-key")
            return levels[self._level]
        kind = mime(message.properties.content_type or "") or self._content_type
        key = _field((parse_msgpack if "msgpack" in kind else parse_json)(message.payload), self._field)
        if key is None:
            raise FrameError(f"The payload has no field {self._field!r} to tell streams by", code="no-stream-key")
        return _short(key)


def _short(key: str) -> str:
    if len(key) > LONGEST_NAME:
        raise FrameError(
            f"The stream's name has {len(key)} characters, more than {LONGEST_NAME}", code="long-stream-name"
        )
    return key


def _field(body: Any, name: str) -> str | None:
    value = body.get(name) if isinstance(body, dict) else None
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


class FrameMaker:
    """Makes frames of deliveries: identity, time and type from what the message says.

    Attributes:
        clock: this machine's; while it is doubtful, no frame is judged by it.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.clock = Clock()
        self._content_type = config.content_type or ""
        self._tolerance_s = config.clock_tolerance_s
        self._run_id = os.urandom(4).hex()
        self._count = itertools.count()  # lanes share it; next() on it is atomic

    def bare(self, delivery: Delivery, clock_offset_s: float) -> Frame:
        """A frame with what is known without trusting the message's content: for dead letters too.

        Args:
            clock_offset_s: Unix seconds minus monotonic seconds, as of now.
        """
        message = delivery.message
        return Frame(
            message.payload,
            id=frame_id(message.topic, message.packet_id, message.payload)
            if message.qos
            else f"{self._run_id}-{next(self._count):x}",
            stream=delivery.stream,
            topic=message.topic,
            sequence=delivery.sequence,
            captured_at=message.received_at + clock_offset_s,
            content_type=self._content_type,
        )

    def complete(self, frame: Frame, message: Message) -> Frame:
        """The same frame with what its sender says about it.

        Raises: FrameError: what the sender says makes no sense.
        """
        properties = message.properties
        if properties is NO_PROPERTIES and frame.content_type != ENVELOPE:
            return frame
        if properties.content_type:
            frame.content_type = mime(properties.content_type)
            if ";" in properties.content_type:
                said = mime_parameters(properties.content_type)
                frame.meta = {name: said[name] for name in _SENDER_FACTS if name in said}
        for name, value in properties.user_properties:
            if name == "id" and value:
                if len(value) > LONGEST_NAME:
                    raise FrameError(
                        f"The frame's id has {len(value)} characters, more than {LONGEST_NAME}", code="bad-id"
                    )
                frame.id = value
            elif name == "time":
                frame.captured_at = timestamp(value)
            elif name == "traceparent":
                frame.traceparent = value
        if frame.content_type == ENVELOPE:
            stream = frame.stream
            frame = open_envelope(frame)
            frame.stream = stream  # `StreamKey` decided: state and order hang on it, whatever an envelope says
        ahead_s = frame.captured_at - time.time()
        if ahead_s > self._tolerance_s and not self.clock.doubtful:
            raise FrameError(
                f"The frame says it was captured {ahead_s:.0f} s in the future",
                code="captured-in-future",
                remedy="Set the sensor's clock, or this machine's; `clock_tolerance_s` says what is let pass.",
            )
        return frame


def unusable(message: Message, limit: int) -> HedgerowError | None:
    """Why a message cannot become a frame at all, if so."""
    if message.oversized is not None:
        return FrameError(
            f"The payload has {message.oversized} bytes, more than {limit}",
            code="payload-too-large",
            remedy="Send smaller frames, or raise the pipeline's `max_payload_bytes`.",
        )
    if message.malformed is not None:
        return FrameError(f"The message is malformed: {message.malformed}", code="malformed-message")
    return None


def shed_reason(delivery: Delivery) -> DropReason:
    """Why a delivery that still waits is let go when its pipeline stops."""
    return DropReason.RETURNED if delivery.durable else DropReason.SHUTDOWN
