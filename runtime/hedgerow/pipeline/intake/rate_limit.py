"""How many frames a second a stream may bring. Pure: no clock.

The virtual scheduling of the generic cell rate algorithm (ITU-T I.371, annex A), with one interval of tolerance: a sensor
that sends just as fast as it may, and not quite evenly, loses nothing.
"""

from __future__ import annotations


class RateLimit:
    """Lets through at most `rate × t + 2` frames of a stream in any t seconds."""

    def __init__(self) -> None:
        # By stream: when its last frame would have come if it had kept to the rate. Not when its next one would: to take the
        # interval off again would be off by a rounding, and the second of two frames of one moment refused.
        self._kept: dict[str, float] = {}
        self._interval_s = 0.0

    def __len__(self) -> int:
        """Streams that something is known about."""
        return len(self._kept)

    def admits(self, stream: str, at: float, per_s: float) -> bool:
        """Whether a frame that came `at` (monotonic seconds) may pass, at so many frames a second."""
        interval_s = self._interval_s = 1 / per_s
        kept = self._kept.get(stream)
        if kept is None:
            self._kept[stream] = at
            return True
        if at < kept:
            return False
        self._kept[stream] = max(kept + interval_s, at)
        return True

    def sweep(self, now: float) -> None:
        """Forget streams that have kept to their rate: nothing would be held against them."""
        self._kept = {stream: kept for stream, kept in self._kept.items() if kept + self._interval_s > now}
