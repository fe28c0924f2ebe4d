"""The estimate that decides which frames would miss their deadline."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.lanes.service_time import ServiceTime


def test_the_estimate_is_zero_before_the_first_list() -> None:
    assert ServiceTime().needs(8) == 0


def test_the_first_list_sets_the_mean_and_half_of_it_as_deviation() -> None:
    estimate = ServiceTime()
    assert (estimate.mean_s, estimate.deviation_s) == (0, 0)
    estimate.took(4, 0.5)

    assert (estimate.mean_s, estimate.deviation_s) == (0.125, 0.0625)
    assert [estimate.needs(frames) for frames in (0, 1, 3)] == [0, 0.25, 0.75]


def test_later_lists_change_the_mean_by_an_eighth_and_the_deviation_by_a_quarter() -> None:
    estimate = ServiceTime(mean_s=1.0, deviation_s=0.5)
    estimate.took(2, 6.0)

    assert (estimate.mean_s, estimate.deviation_s) == (1.25, 0.875)


def test_decay_lowers_the_estimate_by_an_eighth() -> None:
    estimate = ServiceTime(mean_s=1.0, deviation_s=0.5)
    estimate.decay()

    assert (estimate.mean_s, estimate.deviation_s) == (0.875, 0.4375)


def test_the_estimate_converges_to_a_steady_time() -> None:
    estimate = ServiceTime()
    for _ in range(100):
        estimate.took(4, 0.040)

    assert 0.010 <= estimate.needs(1) < 0.0101


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.001, 1.0)), min_size=1))
def test_more_frames_never_take_less_time(runs: list[tuple[int, float]]) -> None:
    estimate = ServiceTime()
    for frames, seconds in runs:
        estimate.took(frames, seconds)

    assert 0 < estimate.needs(1) <= estimate.needs(2) <= estimate.needs(64)


def test_varying_times_raise_the_estimate() -> None:
    steady, unsteady = ServiceTime(), ServiceTime()
    for number in range(200):
        steady.took(1, 0.010)
        unsteady.took(1, 0.005 if number % 2 else 0.015)

    assert unsteady.needs(1) > 1.5 * steady.needs(1)


@given(st.floats(0.001, 3600.0))
def test_decay_recovers_from_any_stall(stall_s: float) -> None:
    """While every frame is dropped as late, nothing runs that would correct the estimate."""
    estimate = ServiceTime()
    estimate.took(1, stall_s)
    for _ in range(200):
        estimate.decay()

    assert 0 < estimate.needs(1) < 0.001
