"""Finds the best number of lanes, by trial. Pure: no threads, and the clocks are the caller's.

Python runs one thread at a time. Lanes that wait for a model, or for a library that releases the interpreter lock,
benefit from more lanes; lanes that run Python code only contend for the lock. Which applies cannot be known beforehand.

Rules:
- Measures only under overload: otherwise the rate shows the load, not the capacity.
- A trial is two measurements between two of the current number (A-B-B-A), and must win in both halves: then neither a
  trend, such as a warm-up, nor a change in the machine's load decides it.
- More lanes must bring more frames than they cost processor time; fewer lanes may cost a few frames if they save more.
- Each failed trial doubles the pause before the next; one that fails badly sets the longest pause. A change of the load, seen
  by the rate, ends the pause.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

_MEASURE_S: Final = 0.3
_MEASURE_LISTS: Final = 12
_FEWEST_LISTS: Final = 3
"""Enough to see that a trial fails badly."""
_STARVED: Final = 0.1
"""Share of lists that left an empty queue, above which a measurement does not count."""
_BETTER: Final = 1.05
_ALIKE: Final = 0.95
_CHEAPER: Final = 0.9
_MUCH_WORSE: Final = 0.75
_FIRST_PAUSE_S: Final = 10.0
_LONGEST_PAUSE_S: Final = 640.0
_WATCH_S: Final = 1.0
_OTHER_LOAD: Final = 1.5
_OTHER_LOAD_TIMES: Final = 3
"""Measurements in a row, of at least a second each, that show another rate."""


class Measurement(NamedTuple):
    """What a number of lanes achieves.

    Attributes:
        rate: frames per second.
        cpu_s: processor time of the process for a frame.
    """

    rate: float
    cpu_s: float


class LaneTuner:
    """Finds the number of lanes that processes the most frames per second, if these are worth their processor time.

    Args:
        most: number of lanes available.
        first: number of lanes to begin with; default: all.
        cpu_time: returns the processor time of the process, seconds.
    Attributes:
        lanes: number of lanes to use now, 1 to `most`.
    """

    def __init__(self, most: int, first: int | None = None, cpu_time: Callable[[], float] = lambda: 0.0) -> None:
        self.most = most
        self.lanes = self._current = most if first is None else first
        self._cpu_time = cpu_time
        self._step = -1
        self._pause_s = _FIRST_PAUSE_S
        self._pause_until = 0.0
        self._done: list[Measurement] = []  # of the trial in progress
        self._usual_rate = 0.0  # before the pause
        self._unusual = 0  # measurements in a row
        self._started: float | None = None
        self._started_cpu_s = 0.0
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
        if self.most == 1:
            return
        if self._started is None:
            self._started, self._started_cpu_s = now, self._cpu_time()
            return
        self._frames += frames
        self._lists += 1
        self._starved += not more
        took_s, paused = now - self._started, now < self._pause_until
        fewest = _FEWEST_LISTS if not paused and self._fails_badly(took_s) else _MEASURE_LISTS
        if took_s < (_WATCH_S if paused else _MEASURE_S) or self._lists < fewest:
            return
        cpu_s = (self._cpu_time() - self._started_cpu_s) / max(self._frames, 1)
        measured, starved = Measurement(self._frames / took_s, cpu_s), self._starved / self._lists
        self._started, self._frames, self._lists, self._starved = None, 0, 0, 0
        if paused:
            self._watch(measured, starved)
        elif starved > _STARVED:
            self._restart()
        else:
            self._measured(measured, now)

    def _watch(self, measured: Measurement, starved: float) -> None:
        """End the pause if the load has changed."""
        low, high = sorted((measured.rate, self._usual_rate))
        self._unusual = self._unusual + 1 if starved <= _STARVED and low and high > _OTHER_LOAD * low else 0
        if self._unusual >= _OTHER_LOAD_TIMES:
            self._unusual, self._pause_s, self._pause_until = 0, _FIRST_PAUSE_S, 0.0

    def _fails_badly(self, took_s: float) -> bool:
        """Whether the trial in progress is so slow that it can end early."""
        return len(self._done) == 1 and self._frames / took_s < _MUCH_WORSE * self._done[0].rate

    def _restart(self) -> None:
        self.lanes = self._current
        self._done.clear()

    def _measured(self, measured: Measurement, now: float) -> None:
        done = self._done
        done.append(measured)
        if len(done) == 1:
            if not 1 <= self._current + self._step <= self.most:
                self._step = -self._step
            self.lanes = self._current + self._step
        elif len(done) == 2 and measured.rate < _MUCH_WORSE * done[0].rate:
            self._pause_s = _LONGEST_PAUSE_S
            self._failed(now)
        elif len(done) == 3:
            self.lanes = self._current
        elif len(done) == 4:
            if self._wins(done[1], done[0]) and self._wins(done[2], done[3]):
                self._succeeded(now)
            else:
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
                self._failed(now)

    def _wins(self, tried: Measurement, current: Measurement) -> bool:
        rate = tried.rate / (current.rate or 1.0)
        cost = tried.cpu_s / current.cpu_s if current.cpu_s else 1.0
        if self._step > 0:
            return rate > _BETTER and rate >= cost
        return rate > _BETTER or (rate >= _ALIKE and cost <= _CHEAPER * rate)

    def _succeeded(self, now: float) -> None:
        self._current += self._step
        self._pause_s = _FIRST_PAUSE_S
        if not 1 <= self._current + self._step <= self.most:  # else the next step in that direction is tried at once
            self._begin_pause(self._done[1].rate, now)
        self._restart()

    def _failed(self, now: float) -> None:
        self._step = -self._step
        self._begin_pause(self._done[0].rate, now)
        self._restart()

    def _begin_pause(self, usual_rate: float, now: float) -> None:
        self._usual_rate, self._unusual, self._pause_until = usual_rate, 0, now + self._pause_s
