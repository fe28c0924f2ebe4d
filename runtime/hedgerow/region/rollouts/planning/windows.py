"""Maintenance windows: when changes may start. Pure.

A window is a time of day in a time zone, so it follows that zone's daylight saving time. An overnight window belongs to the
day on which it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from hedgerow.region.rollouts.planning.spec import DAYS, WindowSection

_LOOK_AHEAD_DAYS: Final = 15
"""Two weeks and today: daylight saving time may skip the next opening of a weekly window."""


def opens_at(windows: Sequence[WindowSection], now: float) -> float:
    """Return when changes may next start, in Unix seconds; at most `now` if they may start now."""
    if not windows:
        return now
    return min(begin for window in windows for begin, end in _openings(window, now) if now < end)


def _openings(window: WindowSection, now: float) -> Iterator[tuple[float, float]]:
    """Yield when a window opens and closes, from yesterday on, in Unix seconds."""
    zone = ZoneInfo(window.time_zone)
    today = datetime.fromtimestamp(now, zone).date()
    for ahead in range(-1, _LOOK_AHEAD_DAYS):
        day = today + timedelta(days=ahead)
        if DAYS[day.weekday()] not in window.days:
            continue
        overnight = window.closes <= window.opens
        begin = datetime.combine(day, window.opens, zone).timestamp()
        end = datetime.combine(day + timedelta(days=overnight), window.closes, zone).timestamp()
        if begin < end:  # empty if daylight saving time skips it
            yield begin, end
