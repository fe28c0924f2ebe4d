"""Maintenance windows at their edges."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hedgerow.region.rollouts.planning.spec import WindowSection
from hedgerow.region.rollouts.planning.windows import opens_at


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def opens(now: str, *windows: WindowSection) -> str:
    """Return when changes may start, from now on."""
    return datetime.fromtimestamp(max(at(now), opens_at(windows, at(now))), UTC).strftime("%Y-%m-%d %H:%M:%S")


DAY = WindowSection(begin="09:00", end="17:00")
NIGHT = WindowSection(begin="22:00", end="06:00")


def test_without_windows_changes_may_start_now() -> None:
    assert opens_at([], 12.5) == 12.5


@pytest.mark.parametrize(
    ("now", "then"),
    [
        ("2026-05-04 08:59:59", "2026-05-04 09:00:00"),
        ("2026-05-04 09:00:00", "2026-05-04 09:00:00"),
        ("2026-05-04 16:59:59", "2026-05-04 16:59:59"),
        ("2026-05-04 17:00:00", "2026-05-05 09:00:00"),
    ],
)
def test_a_window_opens_and_closes_on_the_second(now: str, then: str) -> None:
    assert opens(now, DAY) == then


@pytest.mark.parametrize(
    ("now", "then"),
    [
        ("2026-05-04 21:59:59", "2026-05-04 22:00:00"),
        ("2026-05-05 05:59:59", "2026-05-05 05:59:59"),
        ("2026-05-05 06:00:00", "2026-05-05 22:00:00"),
    ],
)
def test_an_overnight_window_belongs_to_the_evening(now: str, then: str) -> None:
    assert opens(now, NIGHT) == then


def test_a_window_that_closes_when_it_opens_lasts_24_hours() -> None:
    all_of_monday = WindowSection(days=("mon",), begin="12:00", end="12:00")

    assert opens("2026-05-04 12:00:00", all_of_monday) == "2026-05-04 12:00:00"
    assert opens("2026-05-05 11:59:59", all_of_monday) == "2026-05-05 11:59:59"
    assert opens("2026-05-05 12:00:00", all_of_monday) == "2026-05-11 12:00:00"


def test_the_earliest_opening_counts() -> None:
    assert opens("2026-05-04 18:00:00", DAY, NIGHT) == "2026-05-04 22:00:00"
    assert opens("2026-05-04 07:00:00", NIGHT, DAY) == "2026-05-04 09:00:00"
    assert opens("2026-05-04 23:00:00", DAY, NIGHT) == "2026-05-04 23:00:00"


def test_a_weekly_window_that_has_just_closed_opens_in_a_week() -> None:
    sundays = WindowSection(days=("sun",), begin="10:00", end="11:00")

    assert opens("2026-05-03 11:00:00", sundays) == "2026-05-10 10:00:00"


@pytest.mark.parametrize("minute", ["00", "30"])
def test_a_window_skipped_by_daylight_saving_time_opens_a_week_later(minute: str) -> None:
    """On 29 March 2026, Berlin skips 02:00 to 03:00, and the Sunday before has passed."""
    sundays = WindowSection(days=("sun",), begin=f"02:{minute}", end="03:00", time_zone="Europe/Berlin")

    assert opens("2026-03-22 01:59:59", sundays) == "2026-03-22 01:59:59"
    assert opens("2026-03-22 02:00:00", sundays) == f"2026-04-05 00:{minute}:00"
    assert opens("2026-03-28 12:00:00", sundays) == f"2026-04-05 00:{minute}:00"
