"""How much may be on its way over the WAN at once, and how fast: so that results keep flowing. Pure.

Rules:
- The window follows delay, not loss: as soon as answers take longer than an idle link needs, something queues, and that
  something holds up everybody. LEDBAT, RFC 6817: a share of the link that yields to all other traffic.
- What is timed is a whole chunk, from being asked for to being here, so the shortest time known has its sending in it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

TARGET_S: Final = 0.1
"""How much longer than on an idle link an answer may take: RFC 6817 §2.4.2 allows no more."""
MOST: Final = 64
_BASE_S: Final = 600.0
"""The shortest time of so long counts; routes change (RFC 6817 §4.2)."""
_SLOTS: Final = 10
_FIRST_TIMEOUT_S: Final = 30.0
"""Nothing is known yet: enough for two chunks at 150 kbit/s, so that a slow link is not asked twice for the same."""
_TIMEOUT_S: Final = (2.0, 120.0)


class FetchWindow:
    """Chunks that may be on their way at once.

    Attributes:
        size: so many; always at least 1.
        smoothed_s: how long an answer takes; None: nobody knows yet.
    """

    def __init__(self) -> None:
        self.size = 2.0
        self.smoothed_s: float | None = None
        self._deviation_s = 0.0
        self._starting = True
        self._bases: deque[tuple[float, float]] = deque()  # begin of the slot, shortest time in it
        self._shrunk_at = float("-inf")

    def answered(self, took_s: float, now: float) -> None:
        """A chunk came, so long after it was asked for."""
        took_s = max(took_s, 1e-6)
        if self.smoothed_s is None:
            self.smoothed_s, self._deviation_s = took_s, took_s / 2
        else:  # RFC 6298
            self._deviation_s += (abs(took_s - self.smoothed_s) - self._deviation_s) / 4
            self.smoothed_s += (took_s - self.smoothed_s) / 8
        off = (TARGET_S - (took_s - self._base(took_s, now))) / TARGET_S
        if off < 0:
            self._starting = False
        gain = 1.0 if self._starting else 1 / self.size
        self._resize(self.size + gain * max(-1.0, off))

    def late(self, took_s: float) -> None:
        """A chunk came that had been asked for again; so long after the first time. Answers may take that long."""
        if self.smoothed_s is None or took_s > self.smoothed_s:
            self.smoothed_s, self._deviation_s = took_s, took_s / 2

    def lost(self, now: float) -> None:
        """An answer did not come in time. Halves the window, once for all that was lost together."""
        self._starting = False
        if self.smoothed_s is None or now - self._shrunk_at >= self.smoothed_s:
            self._shrunk_at = now
            self._resize(self.size / 2)

    @property
    def timeout_s(self) -> float:
        """How long to wait for an answer before it counts as lost."""
        if self.smoothed_s is None:
            return _FIRST_TIMEOUT_S
        return min(max(2 * self.smoothed_s + 4 * self._deviation_s, _TIMEOUT_S[0]), _TIMEOUT_S[1])

    def _base(self, took_s: float, now: float) -> float:
        if not self._bases or now - self._bases[-1][0] >= _BASE_S / _SLOTS:
            self._bases.append((now, took_s))
        else:
            begin, shortest = self._bases[-1]
            self._bases[-1] = begin, min(shortest, took_s)
        while now - self._bases[0][0] > _BASE_S:
            self._bases.popleft()
        return min(shortest for _, shortest in self._bases)

    def _resize(self, size: float) -> None:
        self.size = min(max(size, 1.0), float(MOST))


class Bucket:
    """Bytes a second that may be asked for.

    Args:
        bytes_per_s: so many; None: no limit.
    """

    def __init__(self, bytes_per_s: int | None) -> None:
        self._rate = bytes_per_s
        self._free_at = float("-inf")

    def take(self, size: int, now: float) -> None:
        """So many bytes were asked for, by whomever."""
        if self._rate is not None:
            self._free_at = self.free_at(now) + size / self._rate

    def free_at(self, now: float) -> float:
        """When something may be asked for."""
        return max(self._free_at, now)
