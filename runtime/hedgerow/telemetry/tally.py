"""Counters of a pipeline: plain numbers, cheap on the fast path.

Conservation law: `received = out + dropped + dead + in flight`, at every moment. Frames in flight are counted from
those actually held, not derived from the other counters, so that the law can be checked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from copy import copy
from enum import StrEnum
from itertools import accumulate
from typing import Any, Final


class DropReason(StrEnum):
    """Why the node itself drops a frame. Stages add their own reasons."""

    EXPIRED = "expired"
    """Older than the queue's `max_age_s`, or past the message's expiry, before it was decoded."""
    LATE = "late"
    """Expected to miss its `deadline_s`, going by how long frames take."""
    RATE = "rate"
    """Its stream exceeded `max_rate_per_stream`, or its topic `max_rate_per_topic`, in frames per second."""
    SUPERSEDED = "superseded"
    """Replaced by a newer frame of the same stream (`policy: latest`)."""
    QUEUE_FULL = "queue-full"
    """The queue was full (`policy: fifo`, or all streams together), or its topic had `max_qos1_frames_per_topic` in it."""
    RETAINED = "retained"
    """A retained message: it repeats an old frame."""
    SHUTDOWN = "shutdown"
    """A QoS 0 frame that arrived, or still waited, when the pipeline stopped."""
    BROKER_AWAY = "broker-away"
    """A QoS 0 result, ready while the broker was unreachable; or a bad QoS 0 frame, while no dead letter could be sent."""
    OUTBOX = "outbox"
    """Its durable result could not be stored: the outbox is full, or its disk fails. QoS 0 only; QoS 1 frames wait."""
    DUPLICATE = "duplicate"
    """A QoS 1 frame delivered again after its durable results were stored; they are not stored twice."""
    RETURNED = "returned-to-broker"
    """A QoS 1 frame that still waited when the pipeline stopped. The broker keeps it and delivers it again."""
    OTHER = "other"
    """Further reasons of a pipeline whose stages give more than a hundred; put numbers into results, not reasons."""


_MOST_REASONS: Final = 100
"""Reasons that are counted separately, because each is a metric and part of every health report."""


BUCKETS_S: tuple[float, ...] = (
    *(round(base * 10.0**power, 6) for power in (-4, -3, -2, -1) for base in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
    60.0,
)


class LatencyHistogram:
    """Latencies in buckets (seconds): cheap to update, precise enough for p50 and p99."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Add a latency."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def add_all(self, latencies_s: Iterable[float]) -> None:
        """Add latencies; faster if equal ones follow each other, as those of frames that one read brought."""
        counts, last_s, bucket, total_s = self.counts, -1.0, 0, 0.0
        for seconds in latencies_s:
            if seconds != last_s:
                last_s, bucket = seconds, bisect_left(BUCKETS_S, seconds)
            counts[bucket] += 1
            total_s += seconds
        self.total_s += total_s

    @property
    def count(self) -> int:
        """Number of latencies."""
        return sum(self.counts)

    def quantile(self, q: float, since: list[int] | None = None) -> float | None:
        """Return the upper edge of the bucket that contains a quantile; None if there are no latencies.

        Args:
            q: 0..1.
            since: earlier counts, to subtract them.
        """
        counts = self.counts if since is None else [now - then for now, then in zip(self.counts, since, strict=True)]
        total = sum(counts)
        if total == 0:
            return None
        rank = max(q * total, 1)
        position = next(position for position, below in enumerate(accumulate(counts)) if below >= rank)
        return BUCKETS_S[min(position, len(BUCKETS_S) - 1)]


class Tally:
    """Counters of one pipeline since the node started."""

    __slots__ = (
        "bytes_in",
        "dead",
        "dropped",
        "held",
        "hung",
        "last_frame_at",
        "last_result_at",
        "latency",
        "out",
        "received",
        "results",
        "stage_columns",
        "stage_frames",
        "stage_s",
    )

    def __init__(self) -> None:
        self.received = 0
        self.bytes_in = 0
        self.out = 0
        self.results = 0
        self.dropped: Counter[str] = Counter()
        self.dead: Counter[str] = Counter()
        self.held: set[Any] = set()
        self.hung: Counter[str] = Counter()
        self.latency = LatencyHistogram()
        self.stage_s: defaultdict[str, float] = defaultdict(float)
        self.stage_frames: Counter[str] = Counter()
        self.stage_columns: Counter[str] = Counter()
        self.last_frame_at: float | None = None
        self.last_result_at: float | None = None

    def count_drop(self, reason: str) -> None:
        """Count a dropped frame."""
        self.dropped[_countable(self.dropped, reason)] += 1

    def count_death(self, reason: str) -> None:
        """Count a dead frame."""
        self.dead[_countable(self.dead, reason)] += 1

    def copy(self) -> Tally:
        """Return a copy that no longer changes."""
        copied = Tally()
        for name in Tally.__slots__:
            setattr(copied, name, copy(getattr(self, name)))
        copied.latency.counts = self.latency.counts.copy()
        return copied

    @property
    def in_flight(self) -> int:
        """Frames received and not settled yet."""
        return len(self.held)

    @property
    def settled(self) -> int:
        """Frames that ended: out, dropped or dead."""
        return self.out + self.dropped.total() + self.dead.total()

    @property
    def balanced(self) -> bool:
        """Whether the conservation law holds."""
        return self.received == self.settled + self.in_flight


def _countable(counts: Counter[str], reason: str) -> str:
    return reason if reason in counts or len(counts) < _MOST_REASONS else DropReason.OTHER.value
