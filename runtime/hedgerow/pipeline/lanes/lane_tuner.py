"""Finds the number of lanes with the highest throughput, by trial. Pure: no clock, no threads.

Python runs one thread at a time. Lanes that wait for a model, or for a library that releases the interpreter lock,
benefit from more lanes; lanes that run Python code only contend for the lock. Which applies cannot be known beforehand.

Rules:
- Measures only under overload: otherwise the rate shows the load, not the capacity.
- A trial runs between two measurements of the current number, and must beat both, so a change in the machine's load
  does not decide it.
- Each failed trial doubles the pause before the next; one that fails badly sets the longest pause.
"""

from __future__ import annotations

from typing import Final

_MEASURE_S: Final = 0.3
_MEASURE_LISTS: Final = 12
_FEWEST_LISTS: Final = 3
"""Enough to see that a trial fails badly."""
_STARVED: Final = 0.1
"""Share of lists that left an empty queue, above which a measurement does not count."""
_BETTER: Final = 1.05
_MUCH_WORSE: Final = 0.75
_FIRST_PAUSE_S: Final = 10.0
_LONGEST_PAUSE_S: Final = 640.0


class LaneTuner:
    """Finds the number of lanes that processes the most frames per second.

    Args:
        most: number of lanes available.
    Attributes:
        lanes: number of lanes to use now, 1 to `most`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.lanes = most
        self._current = most
        self._step = -1
        self._pause_s = _FIRST_PAUSE_S
        self._pause_until = 0.0
        self._rates: list[float] = []
        self._started: float | None = None
        self._frames = 0
        self._lists = 0
        self._starved = 0

    def finished(self, frames: int, now: float, more: bool) -> None:
        """Note a list that has run.

        Args:
            frames: number of frames in it.
            now: monotonic seconds.
            more: whether more frames were queued when it finished.
        """
        if self.most == 1 or now < self._pause_until:
            return
        if self._started is None:
            self._started = now
            return
        self._frames += frames
        self._lists += 1
        self._starved += not more
        took_s = now - self._started
        if took_s >= _MEASURE_S and self._lists >= (_FEWEST_LISTS if self._fails_badly(took_s) else _MEASURE_LISTS):
            self._measured(now, took_s)

    def _fails_badly(self, took_s: float) -> bool:
        """Whether the trial in progress is so slow that it can end early."""
        return len(self._rates) == 1 and self._frames / took_s < _MUCH_WORSE * self._rates[0]

    def _restart(self) -> None:
        self.lanes = self._current
        self._rates.clear()

    def _measured(self, now: float, took_s: float) -> None:
        rate, starved = self._frames / took_s, self._starved / self._lists
        self._started, self._frames, self._lists, self._starved = None, 0, 0, 0
        if starved > _STARVED:
            self._restart()
            return
        self._rates.append(rate)
        if len(self._rates) == 1:
            if not 1 <= self._current + self._step <= self.most:
                self._step = -self._step
            self.lanes = self._current + self._step
        elif len(self._rates) == 2 and rate >= _MUCH_WORSE * self._rates[0]:
            self.lanes = self._current
        else:
            self._judge(now, *self._rates)
            self._restart()

    def _judge(self, now: float, before: float, tried: float, after: float = 0.0) -> None:
        if tried > _BETTER * max(before, after):
            self._current += self._step
            self._pause_s = _FIRST_PAUSE_S
            if 1 <= self._current + self._step <= self.most:
                return  # try the next step in that direction at once
        else:
            self._step = -self._step
            badly = tried < _MUCH_WORSE * before
            self._pause_s = _LONGEST_PAUSE_S if badly else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._pause_until = now + self._pause_s
