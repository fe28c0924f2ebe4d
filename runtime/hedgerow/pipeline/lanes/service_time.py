"""Estimates how long a list of frames will take, from earlier lists. Pure.

Mean and deviation are smoothed as TCP smooths round trips (V. Jacobson, "Congestion avoidance and control", SIGCOMM
1988; RFC 6298 §2). The estimate is the mean plus two deviations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DECAY: Final = 7 / 8


@dataclass(slots=True)
class ServiceTime:
    """Time per frame in a list; zero until the first list has run.

    Attributes:
        mean_s: smoothed seconds per frame.
        deviation_s: smoothed deviation from the mean.
    """

    mean_s: float = 0.0
    deviation_s: float = 0.0

    def took(self, frames: int, seconds: float) -> None:
        """Learn from a list that has run."""
        per_frame = seconds / frames
        if self.mean_s == 0.0:
            self.mean_s, self.deviation_s = per_frame, per_frame / 2
            return
        self.deviation_s += (abs(per_frame - self.mean_s) - self.deviation_s) / 4
        self.mean_s += (per_frame - self.mean_s) / 8

    def decay(self) -> None:
        """Lower the estimate a little, because nothing runs that could correct it.

        Otherwise a single stall would cause every later frame to be dropped as late.
        """
        self.mean_s *= _DECAY
        self.deviation_s *= _DECAY

    def needs(self, frames: int) -> float:
        """Return the seconds that a list of this many frames will take at most, very likely."""
        return frames * (self.mean_s + 2 * self.deviation_s)
