"""Exact behaviour of the fetch window and the token bucket."""

from __future__ import annotations

import pytest

from hedgerow.blobs.fetch.pacing import FetchWindow, TokenBucket


def window(*replies: tuple[float, float]) -> FetchWindow:
    """Return a window after replies: pairs of reply time and arrival."""
    fetch_window = FetchWindow()
    for took_s, now in replies:
        fetch_window.on_reply(took_s, now)
    return fetch_window


# The window's size


def test_the_initial_window_is_two_chunks() -> None:
    assert (FetchWindow().size, FetchWindow().smoothed_rtt_s) == (2.0, None)


def test_slow_start_grows_the_window_by_one_per_undelayed_reply() -> None:
    assert window((0.2, 0.0)).size == 3.0
    assert window((0.2, 0.0), (0.2, 1.0)).size == 4.0
    assert window((0.2, 0.0), (0.15, 1.0)).size == 4.0


def test_growth_falls_as_the_delay_nears_100_ms() -> None:
    assert window((0.2, 0.0), (0.25, 1.0)).size == pytest.approx(3.5)
    assert window((0.1, 0.0), (0.2, 1.0)).size == 3.0
    assert window((0.1, 0.0), (0.2, 1.0), (0.1, 2.0)).size == 4.0, "a delay of exactly the target is not too long"


def test_a_larger_delay_shrinks_the_window_and_ends_slow_start() -> None:
    shrunk = window((0.2, 0.0), (0.35, 1.0))
    assert shrunk.size == pytest.approx(3 - 0.5 / 3)

    size = shrunk.size
    shrunk.on_reply(0.2, 2.0)
    assert shrunk.size == pytest.approx(size + 1 / size)


def test_one_reply_shrinks_the_window_by_at_most_one_over_its_size() -> None:
    assert window((0.2, 0.0), (9.0, 1.0)).size == pytest.approx(3 - 1 / 3)


def test_the_window_is_between_1_and_64_chunks() -> None:
    assert window(*((0.2, 0.01 * number) for number in range(61))).size == 63.0
    assert window(*((0.2, 0.01 * number) for number in range(99))).size == 64.0
    slow = window((0.2, 0.0), *((9.0, 1.0 + number) for number in range(30)))
    assert slow.size == 1.0


def test_the_base_is_the_shortest_time_of_ten_minutes() -> None:
    """A reply 100 ms above the base leaves the window unchanged; without an older base the window grows."""
    assert window((0.1, 0.0), (0.2, 600.0)).size == pytest.approx(3.0)
    assert window((0.1, 0.0), (0.2, 600.5)).size == pytest.approx(4.0)


def test_base_times_expire_by_the_minute() -> None:
    in_the_first = window((0.2, 1000.0), (0.1, 1059.9))
    in_the_second = window((0.2, 1000.0), (0.1, 1060.0))
    at_its_end = window((0.2, 940.0), (0.2, 1000.0), (0.1, 1059.9))

    for fetch_window in (in_the_first, in_the_second, at_its_end):
        fetch_window.on_reply(0.2, 1600.5)
    assert (in_the_first.size, in_the_second.size) == (pytest.approx(5.0), pytest.approx(4.0))
    assert at_its_end.size == pytest.approx(6.0)
    still = window((0.2, 0.0), (0.1, 60.0), (0.2, 660.0))
    assert still.size == pytest.approx(4.0)
    gone = window((0.2, 0.0), (0.1, 60.0), (0.2, 660.5))
    assert gone.size == pytest.approx(5.0)


def test_a_minute_does_not_inherit_the_base_of_the_last() -> None:
    fetch_window = window((0.1, 0.0), (0.3, 60.0), (0.3, 70.0))
    size = fetch_window.size

    fetch_window.on_reply(0.4, 600.5)
    assert fetch_window.size == pytest.approx(size), "the base is 0.3 s now"


def test_every_minute_keeps_its_shortest_time() -> None:
    fetch_window = window((0.3, 0.0), (0.2, 30.0), (0.4, 59.0), (0.3, 61.0), (0.3, 125.0))
    size = fetch_window.size

    fetch_window.on_reply(0.3, 126.0)
    assert fetch_window.size == pytest.approx(size), "the base is still 0.2 s"


# Losses


def test_a_loss_halves_the_window_once_per_round_trip() -> None:
    fetch_window = window(*((0.25, 0.0) for _ in range(6)))
    assert fetch_window.size == 8.0

    fetch_window.on_loss(10.0)
    fetch_window.on_loss(10.24)
    assert fetch_window.size == 4.0
    fetch_window.on_loss(10.25)
    assert fetch_window.size == 2.0
    fetch_window.on_loss(20.0)
    fetch_window.on_loss(30.0)
    assert fetch_window.size == 1.0


def test_a_loss_ends_slow_start() -> None:
    fetch_window = window(*((0.2, 0.0) for _ in range(6)))
    fetch_window.on_loss(1.0)

    fetch_window.on_reply(0.2, 2.0)
    assert fetch_window.size == pytest.approx(4.25)


# Timeouts


def test_the_timeout_starts_at_30_s_and_is_at_least_2_s() -> None:
    assert FetchWindow().timeout_s == 30.0
    assert window((0.4, 0.0)).timeout_s == 2.0


def test_the_timeout_is_twice_the_usual_time_plus_four_deviations() -> None:
    first = window((1.0, 0.0))
    assert (first.smoothed_rtt_s, first.timeout_s) == (1.0, pytest.approx(2 * 1.0 + 4 * 0.5))

    first.on_reply(1.8, 1.0)
    assert first.smoothed_rtt_s == pytest.approx(1.1)
    assert first.timeout_s == pytest.approx(2 * 1.1 + 4 * (0.5 + (0.8 - 0.5) / 4))
    first.on_reply(1.1, 2.0)
    assert first.timeout_s == pytest.approx(2 * 1.1 + 4 * 0.575 * 0.75)


def test_the_timeout_is_at_most_two_minutes() -> None:
    assert window((29.0, 0.0)).timeout_s == pytest.approx(116.0)
    assert window((31.0, 0.0)).timeout_s == 120.0


def test_an_immediate_reply_counts_as_a_microsecond() -> None:
    assert window((0.0, 0.0)).smoothed_rtt_s == 1e-6


def test_a_late_reply_raises_the_timeout() -> None:
    first = FetchWindow()
    first.on_late_reply(5.0)
    assert (first.smoothed_rtt_s, first.timeout_s, first.size) == (5.0, 20.0, 2.0)

    first.on_late_reply(4.9)
    assert (first.smoothed_rtt_s, first.timeout_s) == (5.0, 20.0)
    first.on_reply(5.0, 0.0)
    assert first.timeout_s < 20.0
    first.on_late_reply(5.0)
    assert first.timeout_s < 20.0
    first.on_late_reply(6.0)
    assert (first.smoothed_rtt_s, first.timeout_s) == (6.0, 24.0)


# The bucket


def test_a_bucket_without_a_limit_never_delays() -> None:
    bucket = TokenBucket(None)
    bucket.take(10**12, 5.0)

    assert bucket.free_at(5.0) == 5.0


def test_requested_bytes_delay_the_next_request() -> None:
    bucket = TokenBucket(100)
    assert bucket.free_at(5.0) == 5.0

    bucket.take(50, 5.0)
    assert bucket.free_at(5.0) == 5.5
    assert bucket.free_at(5.2) == 5.5
    assert bucket.free_at(5.6) == 5.6
    bucket.take(100, 5.2)
    assert bucket.free_at(5.2) == 6.5


def test_unused_rate_is_not_saved() -> None:
    bucket = TokenBucket(100)
    bucket.take(50, 0.0)
    bucket.take(200, 1000.0)

    assert bucket.free_at(1000.0) == 1002.0
