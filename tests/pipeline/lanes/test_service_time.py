"""The estimate that decides what is worth starting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.lanes.service_time import ServiceTime


def test_nothing_is_promised_before_the_first_list() -> None:
    assert ServiceTime().needs(8) == 0


def test_the_first_list_counts_whole_and_half_of_it_is_doubted() -> None:
    pace = ServiceTime()
    assert (pace.mean_s, pace.deviation_s) == (0, 0)
    pace.took(4, 0.5)

    assert (pace.mean_s, pace.deviation_s) == (0.125, 0.0625)
    assert [pace.needs(frames) for frames in (0, 1, 3)] == [0, 0.25, 0.75]


def test_of_a_later_list_the_mean_takes_an_eighth_and_the_deviation_a_quarter() -> None:
    pace = ServiceTime(mean_s=1.0, deviation_s=0.5)
    pace.took(2, 6.0)

    assert (pace.mean_s, pace.deviation_s) == (1.25, 0.875)


def test_doubt_takes_an_eighth_off() -> None:
    pace = ServiceTime(mean_s=1.0, deviation_s=0.5)
    pace.doubt()

    assert (pace.mean_s, pace.deviation_s) == (0.875, 0.4375)


def test_a_steady_pace_is_learnt() -> None:
    pace = ServiceTime()
    for _ in range(100):
        pace.took(4, 0.040)

    assert 0.010 <= pace.needs(1) < 0.0101


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.001, 1.0)), min_size=1))
def test_more_frames_never_need_less(runs: list[tuple[int, float]]) -> None:
    pace = ServiceTime()
    for frames, seconds in runs:
        pace.took(frames, seconds)

    assert 0 < pace.needs(1) <= pace.needs(2) <= pace.needs(64)


def test_an_unsteady_pace_is_given_more_room() -> None:
    steady, unsteady = ServiceTime(), ServiceTime()
    for number in range(200):
        steady.took(1, 0.010)
        unsteady.took(1, 0.005 if number % 2 else 0.015)

    assert unsteady.needs(1) > 1.5 * steady.needs(1)


@given(st.floats(0.001, 3600.0))
def test_doubt_wears_any_stall_off(stall_s: float) -> None:
    """While nothing is worth starting, nothing is learnt; what was learnt must not last for ever."""
    pace = ServiceTime()
    pace.took(1, stall_s)
    for _ in range(200):
        pace.doubt()

    assert 0 < pace.needs(1) < 0.001
