"""How many lanes to use at once. Pure: no clock, no threads.

Python runs one thread at a time. Lanes that wait for a model, or for a library that lets go of the interpreter, gain by
company; lanes that spend their time in Python only get into each other's way. Which it is cannot be known beforehand, so
it is tried.

Rules:
- Only while more waits than can be done: else the rate tells what came, not what can be done.
- A trial is one turn between two turns of what is in use, and must beat both: a machine that got busier in between
  changes nothing.
- Each trial that fails makes the next one come later, and one that fails badly, much later.
"""

from __future__ import annotations

from typing import Final

_TURN_S: Final = 0.3
_TURN_LISTS: Final = 12
_FEWEST_LISTS: Final = 3
"""Enough to see that a trial goes badly."""
_STARVED: Final = 0.1
"""Part of the lists after which nothing waited, above which a turn says nothing."""
_BETTER: Final = 1.05
_MUCH_WORSE: Final = 0.75
_FIRST_PAUSE_S: Final = 10.0
_LONGEST_PAUSE_S: Final = 640.0


class LaneTuner:
    """Finds the number of lanes that gives the highest rate.

    Args:
        most: lanes there are.
    Attributes:
        lanes: how many to use now, 1 to `most`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.lanes = most
        self._used = most
        self._step = -1
        self._pause_s = _FIRST_PAUSE_S
        self._rest_until = 0.0
        self._rates: list[float] = []
        self._began: float | None = None
        self._frames = 0
        self._lists = 0
        self._starved = 0

    def finished(self, frames: int, now: float, more: bool) -> None:
        """Note a list that has run.

        Args:
            frames: how many were in it.
            now: monotonic seconds.
            more: whether work waited for the lane that ran it.
        """
        if self.most == 1 or now < self._rest_until:
            return
        if self._began is None:
            self._began = now
            return
        self._frames += frames
        self._lists += 1
        self._starved += not more
        took_s = now - self._began
        if took_s >= _TURN_S and self._lists >= (_FEWEST_LISTS if self._goes_badly(took_s) else _TURN_LISTS):
            self._turn_over(now, took_s)

    def _goes_badly(self, took_s: float) -> bool:
        """Whether this is a trial that need not be looked at any longer."""
        return len(self._rates) == 1 and self._frames / took_s < _MUCH_WORSE * self._rates[0]

    def _begin_anew(self) -> None:
        self.lanes = self._used
        self._rates.clear()

    def _turn_over(self, now: float, took_s: float) -> None:
        rate, starved = self._frames / took_s, self._starved / self._lists
        self._began, self._frames, self._lists, self._starved = None, 0, 0, 0
        if starved > _STARVED:
            self._begin_anew()
            return
        self._rates.append(rate)
        if len(self._rates) == 1:
            if not 1 <= self._used + self._step <= self.most:
                self._step = -self._step
            self.lanes = self._used + self._step
        elif len(self._rates) == 2 and rate >= _MUCH_WORSE * self._rates[0]:
            self.lanes = self._used
        else:
            self._judge(now, *self._rates)
            self._begin_anew()

    def _judge(self, now: float, before: float, tried: float, after: float = 0.0) -> None:
        if tried > _BETTER * max(before, after):
            self._used += self._step
            self._pause_s = _FIRST_PAUSE_S
            if 1 <= self._used + self._step <= self.most:
                return  # on in that direction, at once
        else:
            self._step = -self._step
            much = tried < _MUCH_WORSE * before
            self._pause_s = _LONGEST_PAUSE_S if much else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._rest_until = now + self._pause_s
