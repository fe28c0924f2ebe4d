"""Detects a machine's clock that is not set or jumps. Pure.

Results carry the clock's times, and frames and certificates are checked against it. A gateway without a battery-backed
clock boots in 1970, or at the time of its last shutdown, until its clock is set.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_BUILT: Final = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
"""Earlier than any release of this code, so an earlier reading means that the clock is not set."""
_JUMP_S: Final = 2.0
_DOUBT_S: Final = 600.0
"""How long a clock is doubted after a jump: either the old or the new time may be wrong."""


class Clock:
    """Compares the machine's clock with elapsed time.

    Attributes:
        doubtful: whether the clock is not set, or jumped in the last ten minutes.
    """

    def __init__(self) -> None:
        self.doubtful = False
        self._offset: float | None = None
        self._jumped_at = float("-inf")

    def check(self, wall: float, monotonic: float) -> float | None:
        """Compare two readings of the same moment with the previous ones.

        Args:
            wall: Unix seconds.
            monotonic: seconds of a monotonic clock.
        Returns: seconds by which the clock jumped since the last check; None if it did not. Slewing, e.g. by NTP, is not
            a jump.
        """
        offset = wall - monotonic
        jump = 0.0 if self._offset is None else offset - self._offset
        self._offset = offset
        jumped = abs(jump) > _JUMP_S
        if jumped:
            self._jumped_at = monotonic
        self.doubtful = wall < _BUILT or monotonic - self._jumped_at < _DOUBT_S
        return jump if jumped else None
