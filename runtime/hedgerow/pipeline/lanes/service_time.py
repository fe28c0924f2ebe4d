"""How long a list of frames will take, learnt from those before it. Pure.

Mean and deviation are smoothed as TCP does with round trips (V. Jacobson, "Congestion avoidance and control", SIGCOMM
1988; RFC 6298 §2), and what is promised is the mean with two deviations on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DOUBT: Final = 7 / 8


@dataclass(slots=True)
class ServiceTime:
    """Seconds a frame takes in a list; nothing is known before the first list.

    Attributes:
        mean_s: smoothed seconds a frame.
        deviation_s: smoothed difference from it.
    """

    mean_s: float = 0.0
    deviation_s: float = 0.0

    def took(self, frames: int, seconds: float) -> None:
        """Learn from a list that has run."""
        each = seconds / frames
        if self.mean_s == 0.0:
            self.mean_s, self.deviation_s = each, each / 2
            return
        self.deviation_s += (abs(each - self.mean_s) - self.deviation_s) / 4
        self.mean_s += (each - self.mean_s) / 8

    def doubt(self) -> None:
        """Believe a little less in it: nothing can be learnt while nothing runs.

        Else one stall would be enough to shed everything as late for ever after.
        """
        self.mean_s *= _DOUBT
        self.deviation_s *= _DOUBT

    def needs(self, frames: int) -> float:
        """Seconds that a list of so many frames will take, in all likelihood."""
        return frames * (self.mean_s + 2 * self.deviation_s)
