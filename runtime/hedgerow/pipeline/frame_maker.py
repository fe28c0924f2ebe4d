"""Makes frames from messages: identity, capture time and content type."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

from hedgerow.bus.message import NO_PROPERTIES, Message
from hedgerow.config import PipelineConfig
from hedgerow.errors import FrameError, HedgerowError
from hedgerow.frame import Frame
from hedgerow.pipeline.delivery import Delivery
from hedgerow.telemetry.clock import Clock
from hedgerow.wire.codec import (
    ENVELOPE,
    accepted,
    frame_id,
    mime,
    open_envelope,
    stated_meta,
    timestamp,
)
from hedgerow.wire.trace import trace_context


class FrameMaker:
    """Makes frames from deliveries.

    Attributes:
        clock: this machine's clock; while it is doubtful, capture times are not checked against it.
        on_event: called with events for operators.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.clock = Clock()
        self.on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _detail: None
        self._content_type = mime(config.content_type or "")
        self._meta = stated_meta(config.content_type or "")
        self._tolerance_s = config.clock_tolerance_s
        self._run_id = os.urandom(4).hex()
        self._count = itertools.count()  # lanes share it; next() on it is atomic

    def bare(self, delivery: Delivery, clock_offset_s: float) -> Frame:
        """Return a frame without anything from the message's content; usable for dead letters too.

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
            meta=self._meta,
        )

    def complete(self, frame: Frame, message: Message) -> Frame:
        """Return the frame with the properties that its sender has set.

        Raises: FrameError: a property is invalid.
        """
        properties = message.properties
        if properties is NO_PROPERTIES and frame.content_type != ENVELOPE:
            return frame
        if properties.content_type:
            frame.content_type = mime(accepted("content type", properties.content_type, if_long="unknown-content-type"))
            if frame.meta or ";" in properties.content_type:
                frame.meta = stated_meta(properties.content_type)
        for name, value in properties.user_properties:
            if name == "id" and value:
                frame.id = accepted("frame id", value, if_long="bad-id")
            elif name == "time":
                frame.captured_at = timestamp(value)
            elif name == "traceparent":
                frame.traceparent = value
        if frame.content_type == ENVELOPE:
            frame = open_envelope(frame)
        if frame.traceparent is not None and (trace := trace_context(frame.traceparent)) != frame.traceparent:
            if trace is None:
                self.on_event("traceparent-ignored", {"topic": frame.topic, "traceparent": frame.traceparent[:60]})
            frame.traceparent = trace
        ahead_s = frame.captured_at - time.time()
        if ahead_s > self._tolerance_s and not self.clock.doubtful:
            raise FrameError(
                f"The frame's capture time is {ahead_s:.0f} s in the future",
                code="captured-in-future",
                remedy="Set the sensor's or this machine's clock; `clock_tolerance_s` is the limit.",
            )
        return frame


def message_error(message: Message, limit: int) -> HedgerowError | None:
    """Return why a message cannot become a frame; None if it can."""
    if message.oversized is not None:
        return FrameError(
            f"The payload has {message.oversized} bytes; the limit is {limit}",
            code="payload-too-large",
            remedy="Send smaller frames, or raise the pipeline's `max_payload_bytes`.",
        )
    if message.malformed is not None:
        return FrameError(f"The message is malformed: {message.malformed}", code="malformed-message")
    return None
