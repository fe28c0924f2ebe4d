"""Counts lost frames by the topic they came on, so that health can name a sensor. Pure, and bounded whatever senders invent."""

from __future__ import annotations

from typing import Final

from hedgerow.pipeline.delivery import Delivery
from hedgerow.telemetry.tally import DropReason

_MOST_TOPICS: Final = 64
_OVERLOAD: Final = frozenset({DropReason.EXPIRED, DropReason.RATE, DropReason.SUPERSEDED, DropReason.QUEUE_FULL})
"""Drops of frames that came faster than they are processed, or than they may."""
_LIMITED: Final = frozenset({DropReason.SUPERSEDED, DropReason.QUEUE_FULL})


class TopicCounts:
    """Counts frames by stream, all that a topic names itself as one, and remembers a topic of each.

    Above the limit, one of each is taken away (Misra and Gries, Science of Computer Programming 2, 1982), which costs no more than
    the counting did. So whoever has more than 1/65 of all is among them, and a count is too low by 1/65 of all at most.
    """

    __slots__ = ("_counts", "_topics")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._topics: dict[str, str] = {}

    def __len__(self) -> int:
        """Return the number of streams that are counted now."""
        return len(self._counts)

    def add(self, delivery: Delivery) -> None:
        """Count a frame."""
        counts, name = self._counts, delivery.stream.partition("#")[0]
        count = counts.get(name)
        if count is not None:
            counts[name] = count + 1
        elif len(counts) < _MOST_TOPICS:
            counts[name], self._topics[name] = 1, delivery.message.topic
        else:
            self._counts = {each: count - 1 for each, count in counts.items() if count > 1}
            self._topics = {each: self._topics[each] for each in self._counts}

    def most(self) -> tuple[str, int] | None:
        """Return a topic of the stream with the most, and how many; None: nothing was counted."""
        name, count = max(self._counts.items(), key=lambda each: each[1], default=("", 0))
        return (self._topics[name], count) if count else None

    def clear(self) -> None:
        """Begin anew."""
        self._counts.clear()
        self._topics.clear()


class Losses:
    """Frames lost since `clear`.

    Attributes:
        dead: those dead-lettered.
        shed: those dropped under overload.
        limited: QoS 1 frames that were dropped above `max_qos1_frames_per_topic`.
    """

    __slots__ = ("dead", "limited", "shed")

    def __init__(self) -> None:
        self.dead, self.shed = TopicCounts(), TopicCounts()
        self.limited = 0

    def dropped(self, delivery: Delivery, reason: str) -> None:
        """Count a dropped frame, if overload is the reason."""
        if reason in _OVERLOAD:
            self.shed.add(delivery)
            self.limited += delivery.durable and reason in _LIMITED

    def most(self) -> tuple[str, int] | None:
        """Return the topic with the most, dead or shed, and how many; None: nothing is lost."""
        found = [most for counts in (self.dead, self.shed) if (most := counts.most()) is not None]
        return max(found, key=lambda each: each[1], default=None)

    def clear(self) -> None:
        """Begin anew."""
        self.dead.clear()
        self.shed.clear()
        self.limited = 0
