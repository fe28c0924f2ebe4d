"""Limits the frames per second of each stream, or of each topic. Pure: no clock.

Uses virtual scheduling of the generic cell rate algorithm (ITU-T I.371, annex A) with a tolerance of one interval, so a
sensor that sends at exactly the limit, with some jitter, loses nothing.
"""

from __future__ import annotations

from collections import OrderedDict


class RateLimit:
    """Admits at most `rate × t + 2` frames of a stream in any t seconds.

    Of at most `most` streams at a time: above, the one that was silent for longest begins anew.
    """

    def __init__(self) -> None:
        # Theoretical arrival time of each stream's last frame. Storing that of the next one would mean subtracting the
        # interval again, and the rounding error would refuse the second of two simultaneous frames.
        self._scheduled: OrderedDict[str, float] = OrderedDict()  # by last use
        self._interval_s = 0.0

    def __len__(self) -> int:
        """Return the number of streams with a schedule."""
        return len(self._scheduled)

    def admits(self, stream: str, at: float, per_s: float, most: int) -> bool:
        """Whether a frame received `at` (monotonic seconds) is within `per_s` frames per second."""
        interval_s = self._interval_s = 1 / per_s
        scheduled = self._scheduled.get(stream)
        if scheduled is None:
            while len(self._scheduled) >= most:
                self._scheduled.popitem(last=False)
            self._scheduled[stream] = at
            return True
        self._scheduled.move_to_end(stream)
        if at < scheduled:
            return False
        self._scheduled[stream] = max(scheduled + interval_s, at)
        return True

    def sweep(self, now: float) -> None:
        """Forget streams whose schedule has passed: they start without debt anyway."""
        for stream in [stream for stream, at in self._scheduled.items() if at + self._interval_s <= now]:
            del self._scheduled[stream]
