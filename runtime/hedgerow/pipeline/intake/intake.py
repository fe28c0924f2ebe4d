"""Intake of a pipeline: counts the messages from its link and queues them as deliveries."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from hedgerow.bus.message import Message
from hedgerow.config import QueueSection
from hedgerow.errors import FrameError, HedgerowError, internal
from hedgerow.pipeline.built_pipeline import BuiltPipeline
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.delivery import Delivery, shed_reason
from hedgerow.pipeline.frame_maker import message_error
from hedgerow.pipeline.intake.known_streams import KnownStreams
from hedgerow.pipeline.intake.placement import Placement
from hedgerow.pipeline.intake.queue import FrameQueue
from hedgerow.pipeline.intake.rate_limit import RateLimit
from hedgerow.pipeline.intake.stream_key import StreamKey, sensor_topic
from hedgerow.pipeline.settlement.settler import Settler
from hedgerow.telemetry.tally import DropReason, Tally
from hedgerow.text import visible

_FULL: Final = 0.9
"""Share of the window for QoS 1 frames from which it counts as full."""
_FLOOD_TOLD_S: Final = 60.0
FLOOD_REMEDY: Final = (
    "Let it send less; or set the pipeline's `receive_maximum: 10000` and `queue: {max_qos1_frames_per_topic: 5000}`, or "
    "`{max_rate_per_topic: …}`, which drop and count what is above them. Frames of other topics wait behind it at the broker meanwhile."
)


class Intake:
    """Counts messages, gives each a stream and a sequence number, and queues it. For the event loop's thread.

    Args:
        built: the pipeline.
        settler: settles messages that are not queued, or that make room for others.
        tally: counters of the pipeline.
        on_event: called with events for operators.
    Attributes:
        queues: one shared by all lanes, or one per lane where each stream is pinned to a lane.
        stopping: drop new messages instead of queueing them.
    """

    def __init__(self, built: BuiltPipeline, settler: Settler, tally: Tally, on_event: EventSink) -> None:
        self.stopping = False
        self.queues: tuple[FrameQueue[Delivery], ...] = tuple(
            FrameQueue(built.config.queue) for _ in range(built.lanes if built.pinned else 1)
        )
        self._settler = settler
        self._tally = tally
        self._streams = KnownStreams()
        self._placement = Placement(len(self.queues))
        self._rate = RateLimit()
        self._topic_rate = RateLimit()
        self._on_event = on_event
        self._floods_at: float | None = None  # when it was last told
        self.use(built)

    def use(self, built: BuiltPipeline) -> None:
        """Apply the configuration of another built pipeline from the next message on."""
        self._built = built
        self._stream_key = StreamKey(built.config)
        for queue in self.queues:
            queue.limits = _share(built.config.queue, len(self.queues))

    def queue_of(self, lane: int) -> FrameQueue[Delivery]:
        """Return the queue that a lane takes frames from."""
        return self.queues[lane % len(self.queues)]

    @property
    def queued(self) -> int:
        """Number of queued frames."""
        return sum(map(len, self.queues))

    @property
    def has_ready(self) -> bool:
        """Whether a frame can be taken from a queue now."""
        return any(queue.has_ready for queue in self.queues)

    @property
    def streams(self) -> int:
        """Number of streams with a sequence number; at most `max_streams`."""
        return len(self._streams)

    def forgotten(self, streams: Iterable[str]) -> list[str]:
        """Return the streams among these that are no longer tracked."""
        known = self._streams.names
        return [
            stream for stream in streams if stream not in known
        ]  # a difference of sets would go through all known ones

    def _forget(self, stream: str) -> None:
        """Discard a stream's state in the stages; while one of them uses it, `forgotten` tells when its list has run."""
        if not any(queue.runs(stream) for queue in self.queues):
            self._built.forget(stream)

    def receive(self, messages: Sequence[Message]) -> None:
        """Account for messages and queue them."""
        tally, queues, built, stream_key = self._tally, self.queues, self._built, self._stream_key
        tally.received += len(messages)
        max_age_s, deadline_s = built.config.queue.max_age_s, built.config.queue.deadline_s
        per_s, admits = built.config.queue.max_rate_per_stream, self._rate.admits
        topic_per_s, topic_admits = built.config.queue.max_rate_per_topic, self._topic_rate.admits
        number_of, most = self._streams.next_number, built.config.stream.max_streams
        for message in messages:
            tally.bytes_in += len(message.payload)
            stream, expiry_s = message.topic, None
            problem: HedgerowError | None = None
            if message.oversized is None and message.malformed is None:
                try:
                    stream = stream_key(message)
                    expiry_s = message.properties.expiry_s
                except Exception as error:  # noqa: BLE001 - no message may cost the others of its read
                    problem = error if isinstance(error, FrameError) else internal(error)
            else:
                problem = message_error(message, built.config.max_payload_bytes)
            delivery = Delivery(message, stream, number_of(stream, most, self._forget), max_age_s)
            if expiry_s is not None:
                delivery.expire_in(expiry_s)
            if deadline_s is not None:
                delivery.expire_in(deadline_s)
            tally.held.add(delivery)
            if problem is not None:
                self._settler.dead_letter(built, delivery, problem)
            elif message.retain:
                self._settler.drop(delivery, DropReason.RETAINED)
            elif self.stopping:
                self._settler.drop(delivery, shed_reason(delivery))
            elif (
                topic_per_s is not None and not topic_admits(message.topic, message.received_at, topic_per_s, most)
            ) or (per_s is not None and not admits(stream, message.received_at, per_s, most)):
                self._settler.drop(delivery, DropReason.RATE)
            else:
                queue = queues[self._placement(stream)] if len(queues) > 1 else queues[0]
                for shed, reason in queue.put(delivery):
                    self._settler.drop(shed, reason)
        if messages:
            tally.last_frame_at = time.time()

    def expire(self) -> None:
        """Drop expired frames, and clean up after streams that are gone."""
        now = time.monotonic()
        for queue in self.queues:
            for delivery, reason in queue.expire(now):
                self._settler.drop(delivery, reason)
        for rate in (self._rate, self._topic_rate):
            if rate:
                rate.sweep(now)
        self._report_flood(now)
        if len(self._placement) > len(self._streams):
            self._placement.sweep(self._streams.names, lambda stream, lane: self.queues[lane].holds(stream))

    def flooding(self) -> tuple[str, int] | None:
        """Return the topic that fills the window for QoS 1 frames, so that the broker holds back all others, and its frames."""
        window = self._built.config.receive_maximum
        if len(self._streams) < 2:
            return None
        for queue in self.queues:
            if len(queue) < window * _FULL:
                continue
            item, frames = queue.largest()
            if item is not None and frames > window / 2:
                return sensor_topic(item.message.topic, self._built.config.stream), frames
        return None

    def _report_flood(self, now: float) -> None:
        """Tell of it once a minute."""
        if self._floods_at is not None and now < self._floods_at + _FLOOD_TOLD_S:
            return
        if (found := self.flooding()) is not None:
            self._floods_at = now
            topic, frames = found
            self._on_event("topic-floods", {"topic": visible(topic), "waiting": frames, "remedy": FLOOD_REMEDY})

    def drop_queued(self) -> None:
        """Drop every queued frame."""
        for queue in self.queues:
            for delivery in list(queue.drain()):
                self._settler.drop(delivery, shed_reason(delivery))


def _share(limits: QueueSection, parts: int) -> QueueSection:
    """Return the limits of one of several queues that share the configured limits."""
    if parts == 1:
        return limits
    shares = {"max_frames": max(1, limits.max_frames // parts), "max_bytes": max(1024, limits.max_bytes // parts)}
    return limits.model_copy(update=shares)
