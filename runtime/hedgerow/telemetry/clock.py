"""Whether the machine's clock can be believed. Pure.

Nothing expires by it; but results carry times, and frames and certificates are judged by it. A gateway without a battery
wakes up in 1970, or at the time of its last shutdown, until somebody sets its clock.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_BUILT: Final = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
"""No clock of a machine that runs this can rightly say less."""
_JUMP_S: Final = 2.0
_DOUBT_S: Final = 600.0
"""How long a clock that jumped is doubted: which of its two times was wrong, nobody knows."""


class Clock:
    """Follows the machine's clock beside the time that has passed.

    Attributes:
        doubtful: whether it is not set, or has jumped in the last ten minutes.
    """

    def __init__(self) -> None:
        self.doubtful = False
        self._offset: float | None = None
        self._jumped_at = float("-inf")

    def look(self, wall: float, monotonic: float) -> float | None:
        """Compare.

        Args:
            wall: Unix seconds, of a moment.
            monotonic: seconds of the same moment.
        Returns: by how many seconds it has jumped since the last look; None if it has not. Being set right a little at a
            time is no jump.
        """
        offset = wall - monotonic
        jump = 0.0 if self._offset is None else offset - self._offset
        self._offset = offset
        jumped = abs(jump) > _JUMP_S
        if jumped:
            self._jumped_at = monotonic
        self.doubtful = wall < _BUILT or monotonic - self._jumped_at < _DOUBT_S
        return jump if jumped else None
