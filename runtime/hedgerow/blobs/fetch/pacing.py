"""Congestion window and rate limit for chunks over the WAN, so that results keep flowing. Pure.

Rules:
- The window follows delay, not loss: a reply that takes longer than on an idle link means a queue that delays all traffic. As
  in LEDBAT (RFC 6817), fetching yields to all other traffic.
- The measured time is that of a whole chunk, from request to arrival, so the base time includes its transmission.
"""

from __future__ import annotations

from collections import deque
from typing import Final

TARGET_S: Final = 0.1
"""Queueing delay to aim for; RFC 6817 §2.4.2 allows no more."""
_MAX_SIZE: Final = 64
_BASE_S: Final = 600.0
"""Period whose shortest reply time is the base; it is limited because routes change (RFC 6817 §4.2)."""
_SLOTS: Final = 10
_FIRST_TIMEOUT_S: Final = 30.0
"""Timeout before the first reply: enough for two chunks at 150 kbit/s, so that a slow link is not asked twice."""
_TIMEOUT_S: Final = (2.0, 120.0)


class FetchWindow:
    """Limit on chunks in flight.

    Attributes:
        size: the limit; at least 1.
        smoothed_rtt_s: smoothed time from request to arrival of a chunk; None before the first reply.
    """

    def __init__(self) -> None:
        self.size = 2.0
        self.smoothed_rtt_s: float | None = None
        self._deviation_s = 0.0
        self._starting = True
        self._bases: deque[tuple[float, float]] = deque()  # start of the slot, shortest time in it
        self._shrunk_at = float("-inf")

    def on_reply(self, took_s: float, now: float) -> None:
        """Adjust the window to a reply that took this long."""
        took_s = max(took_s, 1e-6)
        if self.smoothed_rtt_s is None:
            self.smoothed_rtt_s, self._deviation_s = took_s, took_s / 2
        else:  # RFC 6298
            self._deviation_s += (abs(took_s - self.smoothed_rtt_s) - self._deviation_s) / 4
            self.smoothed_rtt_s += (took_s - self.smoothed_rtt_s) / 8
        headroom = (TARGET_S - (took_s - self._base(took_s, now))) / TARGET_S
        if headroom < 0:
            self._starting = False
        gain = 1.0 if self._starting else 1 / self.size
        self._resize(self.size + gain * max(-1.0, headroom))

    def on_late_reply(self, took_s: float) -> None:
        """Raise the expected reply time: a chunk arrived this long after its first request, after it had been given up."""
        if self.smoothed_rtt_s is None or took_s > self.smoothed_rtt_s:
            self.smoothed_rtt_s, self._deviation_s = took_s, took_s / 2

    def on_loss(self, now: float) -> None:
        """Halve the window after a timeout, once for all losses within one round trip."""
        self._starting = False
        if self.smoothed_rtt_s is None or now - self._shrunk_at >= self.smoothed_rtt_s:
            self._shrunk_at = now
            self._resize(self.size / 2)

    @property
    def timeout_s(self) -> float:
        """Time after which a reply counts as lost."""
        if self.smoothed_rtt_s is None:
            return _FIRST_TIMEOUT_S
        return min(max(2 * self.smoothed_rtt_s + 4 * self._deviation_s, _TIMEOUT_S[0]), _TIMEOUT_S[1])

    def _base(self, took_s: float, now: float) -> float:
        if not self._bases or now - self._bases[-1][0] >= _BASE_S / _SLOTS:
            self._bases.append((now, took_s))
        else:
            start, shortest = self._bases[-1]
            self._bases[-1] = start, min(shortest, took_s)
        while now - self._bases[0][0] > _BASE_S:
            self._bases.popleft()
        return min(shortest for _, shortest in self._bases)

    def _resize(self, size: float) -> None:
        self.size = min(max(size, 1.0), float(_MAX_SIZE))


class TokenBucket:
    """Limit on requested bytes per second.

    Args:
        bytes_per_s: the limit; None: unlimited.
    """

    def __init__(self, bytes_per_s: int | None) -> None:
        self._rate = bytes_per_s
        self._free_at = float("-inf")

    def take(self, size: int, now: float) -> None:
        """Account for requested bytes, whichever node requested them."""
        if self._rate is not None:
            self._free_at = self.free_at(now) + size / self._rate

    def free_at(self, now: float) -> float:
        """Return when the next request is permitted."""
        return max(self._free_at, now)
