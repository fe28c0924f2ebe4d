"""Makes frames from messages: identity, capture time and content type."""

from __future__ import annotations

import itertools
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hedgerow.bus.message import NO_PROPERTIES, Message
from hedgerow.columns.frame_batch import FrameBatch
from hedgerow.config import PipelineConfig
from hedgerow.errors import FrameError, HedgerowError, internal
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


class MadeFrames(NamedTuple):
    """The frames of a list of deliveries.

    Attributes:
        batch: those that are alike, as columns; None: none.
        rows: position in the list of each row, ascending.
        frames: the others, with nothing wrong with them.
        owners: position in the list of each of these, ascending.
        failed: position in the list, frame as far as it is known, and error of each message that is no valid frame.
    """

    batch: FrameBatch | None
    rows: Sequence[int]
    frames: Sequence[Frame]
    owners: Sequence[int]
    failed: Sequence[tuple[int, Frame, HedgerowError]]

    def frame(self, position: int) -> Frame:
        """Return the frame at a position of the list as it was made."""
        at = bisect_left(self.rows, position)
        if at < len(self.rows) and self.rows[at] == position:
            assert self.batch is not None  # noqa: S101 - it has rows
            return self.batch.frame(at)
        return self.frames[bisect_left(self.owners, position)]


class _Row(NamedTuple):
    """What a message states, if it fits into columns."""

    id: str | None
    captured_at: float | None
    traceparent: str | None
    content_type: str
    meta: Mapping[str, str]


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

    def frames(self, deliveries: Sequence[Delivery], clock_offset_s: float, *, columns: bool) -> MadeFrames:
        """Make the frames of a list.

        Args:
            clock_offset_s: Unix seconds minus monotonic seconds, as of now.
            columns: make columns of frames that are alike; a list with two frames of one stream never becomes columns.
        """
        batch: FrameBatch | None = None
        rows: Sequence[int] = ()
        if columns and len({delivery.stream for delivery in deliveries}) == len(deliveries):
            batch, rows = self._columns(deliveries, clock_offset_s)
        frames, owners, failed = list[Frame](), list[int](), list[tuple[int, Frame, HedgerowError]]()
        if len(rows) == len(deliveries):
            return MadeFrames(batch, rows, frames, owners, failed)
        others: Sequence[int] = range(len(deliveries))
        if rows:
            others = sorted(set(others).difference(rows))
        for position in others:
            delivery = deliveries[position]
            frame = self.bare(delivery, clock_offset_s)
            try:
                frames.append(self.complete(frame, delivery.message))
                owners.append(position)
            except Exception as error:  # noqa: BLE001 - no message may cost the others of its list
                failed.append((position, frame, error if isinstance(error, FrameError) else internal(error)))
        return MadeFrames(batch, rows, frames, owners, failed)

    def _columns(
        self, deliveries: Sequence[Delivery], clock_offset_s: float
    ) -> tuple[FrameBatch | None, Sequence[int]]:
        """Return the frames that are like most of the list, as columns, and their positions in it."""
        plain = _Row(None, None, None, self._content_type, self._meta)
        rows: Sequence[int] = range(len(deliveries))
        stated: Sequence[_Row] = ()  # empty: nothing
        if any(delivery.message.raw_properties for delivery in deliveries):
            rows, stated = self._alike(deliveries, plain)
            if not rows:
                return None, ()
            deliveries = [deliveries[position] for position in rows]
        elif plain.content_type == ENVELOPE:
            return None, ()
        first = stated[0] if stated else plain
        messages = [delivery.message for delivery in deliveries]
        captured_at = [message.received_at + clock_offset_s for message in messages]
        traceparents: list[str | None] | None = None
        if stated:
            ids = [row.id or self._id(message) for row, message in zip(stated, messages, strict=True)]
            times = zip(stated, captured_at, strict=True)
            captured_at = [received if row.captured_at is None else row.captured_at for row, received in times]
            if any(row.traceparent for row in stated):
                traceparents = [row.traceparent for row in stated]
        else:
            ids = [self._id(message) for message in messages]
        return FrameBatch(
            tuple([message.payload for message in messages]),
            ids=tuple(ids),
            streams=tuple([delivery.stream for delivery in deliveries]),
            topics=tuple([message.topic for message in messages]),
            sequences=tuple([delivery.sequence for delivery in deliveries]),
            captured_at=tuple(captured_at),
            content_type=first.content_type,
            traceparents=traceparents,
            meta=first.meta,
        ), rows

    def _alike(self, deliveries: Sequence[Delivery], plain: _Row) -> tuple[list[int], list[_Row]]:
        """Return the positions of those messages that state the same content type as most, and what they state.

        Not as the first: one sensor with a type of its own would take the columns from all others.
        """
        kinds: dict[Any, tuple[list[int], list[_Row]]] = {}
        for position, delivery in enumerate(deliveries):
            row = self._row(delivery.message, plain) if delivery.message.raw_properties else plain
            if row is not None and row.content_type != ENVELOPE:
                positions, stated = kinds.setdefault((row.content_type, *row.meta.items()), ([], []))
                positions.append(position)
                stated.append(row)
        return max(kinds.values(), key=lambda kind: len(kind[0]), default=([], []))

    def _row(self, message: Message, plain: _Row) -> _Row | None:
        """Return what a message with properties states; None: it has to become a frame, which may fail."""
        frame_id, captured_at, traceparent, content_type, meta = plain
        try:
            properties = message.properties
            if properties.content_type:
                content_type, meta = _stated_type(properties.content_type)
            for name, value in properties.user_properties:
                if name == "id" and value:
                    frame_id = accepted("frame id", value, if_long="bad-id")
                elif name == "time":
                    captured_at = timestamp(value)
                elif name == "traceparent":
                    traceparent = value
        except Exception:  # noqa: BLE001 - `complete` raises it again
            return None
        if (traceparent is not None and trace_context(traceparent) != traceparent) or content_type == ENVELOPE:
            return None
        if captured_at is not None and self._is_ahead(captured_at):
            return None
        return _Row(frame_id, captured_at, traceparent, content_type, meta)

    def _id(self, message: Message) -> str:
        if message.qos:
            return frame_id(message.topic, message.packet_id, message.payload)
        return f"{self._run_id}-{next(self._count):x}"

    def _is_ahead(self, captured_at: float) -> bool:
        return captured_at - time.time() > self._tolerance_s and not self.clock.doubtful

    def bare(self, delivery: Delivery, clock_offset_s: float) -> Frame:
        """Return a frame without anything from the message's content; usable for dead letters too.

        Args:
            clock_offset_s: Unix seconds minus monotonic seconds, as of now.
        """
        message = delivery.message
        return Frame(
            message.payload,
            id=self._id(message),
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
            frame.content_type, frame.meta = _stated_type(properties.content_type)
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
        if self._is_ahead(frame.captured_at):
            raise FrameError(
                f"The frame's capture time is {frame.captured_at - time.time():.0f} s in the future",
                code="captured-in-future",
                remedy="Set the sensor's or this machine's clock; `clock_tolerance_s` is the limit.",
            )
        return frame


def _stated_type(content_type: str) -> tuple[str, dict[str, str]]:
    """Return the content type that a sender states, and its parameters.

    Raises: FrameError: it is too long, or not accepted.
    """
    media_type = mime(accepted("content type", content_type, if_long="unknown-content-type"))
    return media_type, stated_meta(content_type)


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
