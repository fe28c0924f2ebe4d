"""Maintenance windows: when nodes may be given something new. Pure.

A window is a time of day in a time zone, so it moves with that zone's summer time. What begins in the evening and ends in
the morning belongs to the day on which it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from hedgerow.region.rollouts.planning.spec import DAYS, WindowSection

_LOOK_AHEAD_DAYS: Final = 15
"""Two weeks and today: a window that opens once a week may be left out by summer time in the next one."""


def opens_at(windows: Sequence[WindowSection], now: float) -> float:
    """When something may next be given: Unix seconds; not later than `now` if it may be now."""
    if not windows:
        return now
    return min(begin for window in windows for begin, end in _openings(window, now) if now < end)


def _openings(window: WindowSection, now: float) -> Iterator[tuple[float, float]]:
    """When it opens and closes, from yesterday's on: Unix seconds."""
    zone = ZoneInfo(window.time_zone)
    today = datetime.fromtimestamp(now, zone).date()
    for ahead in range(-1, _LOOK_AHEAD_DAYS):
        day = today + timedelta(days=ahead)
        if DAYS[day.weekday()] not in window.days:
            continue
        overnight = window.closes <= window.opens
        begin = datetime.combine(day, window.opens, zone).timestamp()
        end = datetime.combine(day + timedelta(days=overnight), window.closes, zone).timestamp()
        if begin < end:  # an hour that summer time leaves out has none
            yield begin, end
