"""A stream that brings too much is held to its rate; one that brings what it may loses nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.intake.rate_limit import RateLimit

GAPS = st.lists(st.floats(0, 3), max_size=80)


@given(GAPS, st.floats(0.2, 20))
def test_no_stretch_of_time_has_more_than_the_rate_and_two(gaps: list[float], per_s: float) -> None:
    """Whichever stretch, and however the frames come."""
    limit, at, passed = RateLimit(), 100.0, []
    for gap in gaps:
        at += gap
        if limit.admits("a", at, per_s):
            passed.append(at)

    for first, begin in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= per_s * (passed[last] - begin) + 2 + 1e-6


@given(st.lists(st.floats(-0.45, 0.45), max_size=80), st.floats(0.2, 20))
def test_a_sensor_that_keeps_to_the_rate_unevenly_loses_nothing(jitter: list[float], per_s: float) -> None:
    limit = RateLimit()

    assert all(limit.admits("a", 100 + (number + off) / per_s, per_s) for number, off in enumerate(jitter))


def test_streams_do_not_share_a_rate_and_are_forgotten_once_they_have_kept_it() -> None:
    limit = RateLimit()
    assert [limit.admits(stream, 10.0, 1.0) for stream in "aaabb"] == [True, True, False, True, True]
    assert len(limit) == 2

    limit.sweep(11.5)
    assert [limit.admits(stream, 11.5, 1.0) for stream in "ab"] == [True, True]
    limit.sweep(20)
    assert len(limit) == 0


def test_a_stream_is_forgotten_as_soon_as_its_next_frame_is_due() -> None:
    limit = RateLimit()
    limit.admits("a", 10.0, 1.0)

    limit.sweep(10.9)
    assert len(limit) == 1
    limit.sweep(11.0)
    assert len(limit) == 0


def test_another_rate_counts_from_the_next_frame_on() -> None:
    """As after a reload."""
    limit = RateLimit()
    assert [limit.admits("a", 10.0 + n / 10, 1.0) for n in range(10)].count(True) == 2
    assert [limit.admits("a", 14.0 + n / 10, 10.0) for n in range(10)].count(True) == 10


@given(st.floats(0, 1e9), st.floats(1e-4, 1e5))
def test_two_frames_of_one_moment_pass_and_a_third_does_not(at: float, per_s: float) -> None:
    limit = RateLimit()

    assert [limit.admits("s", at, per_s) for _ in range(3)] == [True, True, at + 1 / per_s == at]
