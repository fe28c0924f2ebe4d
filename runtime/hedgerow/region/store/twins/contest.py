"""Tells whether one name is used by two processes at once, from the reports that arrive under it. Pure.

A process that has ended reports no more. So a name's reports come from one run, then from the next, and so on; if a run
reports again although another has reported since, both are alive. Two things look like that and are not:

- A message that waited somewhere, and arrives after those of the next run. It does not keep pace: the uptime in it is older
  than its arrival. Only reports that keep pace with the one before of the same run count.
- Reports of an earlier run that come all at once, when what held them lets go. Between them nothing keeps pace.

A run is told by its id, which it makes at its start. Of a copied process (a virtual machine's snapshot) both have one id, and
one uptime jumps between two lines.

No wall clock is used, neither that of the nodes nor that of the region.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

PERIOD_S: Final = 10.0
"""Interval of the reports."""
ALONE_REPORTS: Final = 6
"""Reports of one run alone, over at least as many periods, after which its twin counts as gone."""
_PACE_S: Final = PERIOD_S / 2
"""How far the time between two reports may differ from the difference of their uptimes."""
_BETWEEN_S: Final = 3 * PERIOD_S
"""Longest time between the returns of two runs, or twice that between three of one, that are one contest."""
_COPY_S: Final = 60.0
"""An uptime this much below the last one of the same run is that of a copy of the process."""
_MAX_RUNS: Final = 8

Change = Literal["began", "ended"]


@dataclass(slots=True)
class Run:
    """A process that reported. `at` and `started_at` are times of a monotonic clock, in seconds; it may have started earlier."""

    who: str
    uptime_s: float
    at: float
    started_at: float

    def take(self, uptime_s: float, at: float) -> None:
        """Take a report of it."""
        self.uptime_s, self.at = uptime_s, at
        self.started_at = min(self.started_at, at - uptime_s)

    def pace(self, uptime_s: float, at: float) -> float:
        """Return how many seconds a report is from where this run's next one is expected."""
        return abs((uptime_s - self.uptime_s) - (at - self.at))


class Contest:
    """The runs that report under one name.

    Args:
        rivals: two that were alive at once when this was last known; None: nobody was.
    Attributes:
        rivals: the last two runs that are alive at once; None: there is at most one.
    """

    def __init__(self, rivals: tuple[str, str] | None = None) -> None:
        self.rivals = rivals
        self._runs: list[Run] = []  # the last one reported last
        self._returns: deque[tuple[Run, float]] = deque(maxlen=3)
        self._early: Run | None = None
        self._alone_since = 0.0
        self._alone_reports = 0

    def report(self, who: str, uptime_s: float, at: float) -> Change | None:
        """Take a report.

        Args:
            who: id of the run.
            uptime_s: how long it has been running.
            at: when the report arrived, in seconds of a monotonic clock.
        Returns: whether a contest began or ended with it.
        """
        holder = self._runs[-1] if self._runs else None
        run = self._run(who, uptime_s, at)
        is_new = run is None
        if run is None:
            run, counts = Run(who, uptime_s, at, at - uptime_s), True
        else:
            counts = uptime_s > run.uptime_s and run.pace(uptime_s, at) <= _PACE_S
            run.take(uptime_s, at)
        if run is holder:
            self._alone_reports += 1
            other, self._early = self._early, None
            return self._return(run, other, at) if other is not None and counts else self._end(at)
        if not counts:
            return None  # it has waited somewhere, and tells nothing about now
        self._runs = [*(one for one in self._runs if one is not run), run][-_MAX_RUNS:]
        self._early = None
        self._alone_since, self._alone_reports = at, 1
        if holder is None or is_new:
            return None
        if (
            at < holder.started_at + _PACE_S
        ):  # it may have been under way when the other one started: the next one counts
            self._early = holder
            return None
        return self._return(run, holder, at)

    def _run(self, who: str, uptime_s: float, at: float) -> Run | None:
        runs = [run for run in self._runs if run.who == who and uptime_s >= run.uptime_s - _COPY_S]
        return min(runs, key=lambda run: run.pace(uptime_s, at), default=None)

    def _return(self, run: Run, other: Run, at: float) -> Change | None:
        self._returns.append((run, at))
        if not self._is_contest():
            return None
        before, self.rivals = self.rivals, (run.who, other.who)
        return None if before else "began"

    def _is_contest(self) -> bool:
        """Whether two runs came back shortly after each other, or one three times: the other starts again and again."""
        last, at = self._returns[-1]
        for count, (run, since) in enumerate(reversed(self._returns), 1):
            if run is not last and at - since <= _BETWEEN_S:
                return True
            if count == 3 and at - since <= 2 * _BETWEEN_S:
                return True
        return False

    def _end(self, at: float) -> Change | None:
        if self.rivals is None or self._alone_reports < ALONE_REPORTS:
            return None
        if at - self._alone_since < (ALONE_REPORTS - 1) * PERIOD_S - _PACE_S:
            return None
        self.rivals = None
        self._returns.clear()
        return "ended"
