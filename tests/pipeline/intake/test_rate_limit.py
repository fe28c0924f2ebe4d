"""The rate limit: caps a stream that is too fast, and drops nothing of one that is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.intake.rate_limit import RateLimit

GAPS = st.lists(st.floats(0, 3), max_size=80)


@given(GAPS, st.floats(0.2, 20))
def test_no_interval_has_more_than_the_rate_plus_two(gaps: list[float], per_s: float) -> None:
    """For any interval and any arrival times."""
    limit, at, passed = RateLimit(), 100.0, []
    for gap in gaps:
        at += gap
        if limit.admits("a", at, per_s, 100):
            passed.append(at)

    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= per_s * (passed[last] - start) + 2 + 1e-6


@given(st.lists(st.floats(-0.45, 0.45), max_size=80), st.floats(0.2, 20))
def test_a_sensor_at_the_rate_with_jitter_loses_nothing(jitter: list[float], per_s: float) -> None:
    limit = RateLimit()

    assert all(limit.admits("a", 100 + (number + off) / per_s, per_s, 100) for number, off in enumerate(jitter))


def test_each_stream_has_its_own_rate_and_is_forgotten_when_idle() -> None:
    limit = RateLimit()
    assert [limit.admits(stream, 10.0, 1.0, 100) for stream in "aaabb"] == [True, True, False, True, True]
    assert len(limit) == 2

    limit.sweep(11.5)
    assert [limit.admits(stream, 11.5, 1.0, 100) for stream in "ab"] == [True, True]
    limit.sweep(20)
    assert len(limit) == 0


def test_a_stream_is_forgotten_as_soon_as_its_next_frame_is_due() -> None:
    limit = RateLimit()
    limit.admits("a", 10.0, 1.0, 100)

    limit.sweep(10.9)
    assert len(limit) == 1
    limit.sweep(11.0)
    assert len(limit) == 0


def test_a_changed_rate_applies_from_the_next_frame() -> None:
    """After a reload, for instance."""
    limit = RateLimit()
    assert [limit.admits("a", 10.0 + n / 10, 1.0, 100) for n in range(10)].count(True) == 2
    assert [limit.admits("a", 14.0 + n / 10, 10.0, 100) for n in range(10)].count(True) == 10


@given(st.floats(0, 1e9), st.floats(1e-4, 1e5))
def test_two_simultaneous_frames_pass_and_a_third_does_not(at: float, per_s: float) -> None:
    limit = RateLimit()

    assert [limit.admits("s", at, per_s, 100) for _ in range(3)] == [True, True, at + 1 / per_s == at]


def test_invented_streams_take_no_more_than_a_fixed_number_of_places() -> None:
    limit = RateLimit()
    assert all(limit.admits(f"t#{number}", 10.0, 0.01, 50) for number in range(1000))
    assert len(limit) == 50

    assert not all(limit.admits("t#999", 10.0, 0.01, 50) for _ in range(2)), "the latest are still known"
    assert len(limit) == 50
