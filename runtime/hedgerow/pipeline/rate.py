"""How many frames a second a stream may bring. Pure: no clock.

The virtual scheduling of the generic cell rate algorithm (ITU-T I.371, annex A), with one interval of tolerance: a sensor
that sends just as fast as it may, and not quite evenly, loses nothing.
"""

from __future__ import annotations


class RateLimit:
    """Lets through at most `rate × t + 2` frames of a stream in any t seconds."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}  # by stream: when its next frame would come if it kept to the rate

    def __len__(self) -> int:
        """Streams that something is known about."""
        return len(self._due)

    def admits(self, stream: str, at: float, per_s: float) -> bool:
        """Whether a frame that came `at` (monotonic seconds) may pass, at so many frames a second."""
        interval_s = 1 / per_s
        due = self._due.get(stream, at)
        if at < due - interval_s:
            return False
        self._due[stream] = max(due, at) + interval_s
        return True

    def sweep(self, now: float) -> None:
        """Forget streams that have kept to their rate: nothing would be held against them."""
        self._due = {stream: due for stream, due in self._due.items() if due > now}
