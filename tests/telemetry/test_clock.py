"""Detecting a clock that is not set or jumps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.telemetry.clock import Clock

NOW = 1_800_000_000.0


def test_a_steady_clock_is_trusted() -> None:
    clock = Clock()
    assert [clock.check(NOW + s * 1.0001, 50.0 + s) for s in range(100)] == [None] * 100
    assert not clock.doubtful


@given(st.floats(2.1, 1e9) | st.floats(-5e7, -2.1))
def test_a_clock_is_doubtful_for_ten_minutes_after_a_jump(by_s: float) -> None:
    clock = Clock()
    clock.check(NOW, 50.0)
    jump = clock.check(NOW + 1 + by_s, 51.0)
    assert jump is not None
    assert abs(jump - by_s) < 1e-3
    assert clock.doubtful
    assert clock.check(NOW + 2 + by_s, 52.0) is None
    assert clock.doubtful
    assert clock.check(NOW + 700 + by_s, 750.0) is None
    assert not clock.doubtful


def test_a_clock_is_doubtful_until_it_is_set() -> None:
    clock = Clock()
    clock.check(12.0, 5.0)
    assert clock.doubtful
    assert clock.check(NOW, 6.0) is not None
    assert clock.doubtful
    clock.check(NOW + 700, 706.0)
    assert not clock.doubtful
