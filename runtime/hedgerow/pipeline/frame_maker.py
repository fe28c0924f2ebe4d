"""From a message to a frame: identity, time and type from what its sender says."""

from __future__ import annotations

import itertools
import os
import time

from hedgerow.bus.message import NO_PROPERTIES, Message
from hedgerow.config import PipelineConfig
from hedgerow.errors import FrameError, HedgerowError
from hedgerow.frame import Frame
from hedgerow.pipeline.delivery import Delivery
from hedgerow.telemetry.clock import Clock
from hedgerow.wire.codec import (
    ENVELOPE,
    LONGEST_NAME,
    frame_id,
    mime,
    mime_parameters,
    open_envelope,
    timestamp,
)

_SENDER_FACTS = ("rate", "channels")
"""Parameters of a content type that become meta. No others: meta is how stages speak to each other."""


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
