"""Limits the frames per second of each stream. Pure: no clock.

Uses virtual scheduling of the generic cell rate algorithm (ITU-T I.371, annex A) with a tolerance of one interval, so a
sensor that sends at exactly the limit, with some jitter, loses nothing.
"""

from __future__ import annotations


class RateLimit:
    """Admits at most `rate × t + 2` frames of a stream in any t seconds."""

    def __init__(self) -> None:
        # Theoretical arrival time of each stream's last frame. Storing that of the next one would mean subtracting the
        # interval again, and the rounding error would refuse the second of two simultaneous frames.
        self._scheduled: dict[str, float] = {}
        self._interval_s = 0.0

    def __len__(self) -> int:
        """Return the number of streams with a schedule."""
        return len(self._scheduled)

    def admits(self, stream: str, at: float, per_s: float) -> bool:
        """Whether a frame received `at` (monotonic seconds) is within `per_s` frames per second."""
        interval_s = self._interval_s = 1 / per_s
        scheduled = self._scheduled.get(stream)
        if scheduled is None:
            self._scheduled[stream] = at
            return True
        if at < scheduled:
            return False
        self._scheduled[stream] = max(scheduled + interval_s, at)
        return True

    def sweep(self, now: float) -> None:
        """Forget streams whose schedule has passed: they start without debt anyway."""
        self._scheduled = {stream: at for stream, at in self._scheduled.items() if at + self._interval_s > now}
