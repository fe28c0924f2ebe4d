"""Counts lost frames by the topic they came on, so that health can name a sensor. Pure, and bounded whatever senders invent."""

from __future__ import annotations

from typing import Final

from hedgerow.pipeline.delivery import Delivery
from hedgerow.telemetry.tally import DropReason

_MOST_TOPICS: Final = 64
_OVERLOAD: Final = frozenset({DropReason.EXPIRED, DropReason.RATE, DropReason.SUPERSEDED, DropReason.QUEUE_FULL})
"""Drops of frames that came faster than they are processed, or than they may."""
_LIMITED: Final = frozenset({DropReason.SUPERSEDED, DropReason.QUEUE_FULL})


class LossesByTopic:
    """Frames dead-lettered, or dropped under overload, since `clear`.

    Where a level of the topic names the stream, up to that level: a sensor may invent the levels below.

    Above the limit the topic with the fewest gives its place, and its count, to the new one: "space-saving" (Metwally, Agrawal and
    El Abbadi, ICDT 2005). So a topic with more than 1/64 of all is always among them, and no count is too low.

    Attributes:
        limited: QoS 1 frames among them that were dropped above `max_qos1_frames_per_topic`.
    """

    __slots__ = ("_counts", "limited")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.limited = 0

    def dropped(self, delivery: Delivery, reason: str) -> None:
        """Count a dropped frame, if overload is the reason."""
        if reason in _OVERLOAD:
            self._count(delivery)
            self.limited += delivery.durable and reason in _LIMITED

    def dead(self, delivery: Delivery) -> None:
        """Count a dead-lettered frame."""
        self._count(delivery)

    def most(self) -> tuple[str, int] | None:
        """Return the topic with the most, and how many; None: nothing is lost."""
        return max(self._counts.items(), key=lambda each: each[1], default=None)

    def clear(self) -> None:
        """Begin anew."""
        self._counts.clear()
        self.limited = 0

    def _count(self, delivery: Delivery) -> None:
        counts, topic = self._counts, delivery.stream.partition("#")[0]
        if topic not in counts and len(counts) >= _MOST_TOPICS:
            counts[topic] = counts.pop(min(counts, key=counts.__getitem__))
        counts[topic] = counts.get(topic, 0) + 1
