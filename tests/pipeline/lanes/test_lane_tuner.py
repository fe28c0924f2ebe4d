"""The number of lanes is found by trying, and only while there is more to do than can be done."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.lanes.lane_tuner import LaneTuner


def run(
    most: int,
    rate: Callable[[int], float],
    seconds: float,
    *,
    machine: Callable[[float], float] = lambda _: 1.0,
    more: bool = True,
) -> tuple[LaneTuner, list[int]]:
    """A simulated pipeline in lists of ten.

    Args:
        rate: frames a second, by lanes in use.
        machine: how fast the machine is, by time.
    Returns: the decider, and how many lanes were in use after each list.
    """
    decider, now, used = LaneTuner(most), 0.0, []
    while now < seconds:
        now += 10 / (rate(decider.lanes) * machine(now))
        decider.finished(10, now, more)
        used.append(decider.lanes)
    return decider, used


@given(st.lists(st.floats(100, 10_000), min_size=1, max_size=6))
def test_it_climbs_to_where_neither_neighbour_is_better(rates: list[float]) -> None:
    """From any start, over any hills."""
    decider, _ = run(len(rates), lambda lanes: rates[lanes - 1], 120)

    used = decider._used
    for neighbour in (used - 1, used + 1):
        if 1 <= neighbour <= len(rates):
            assert rates[neighbour - 1] <= 1.06 * rates[used - 1]


def test_lanes_that_get_in_each_others_way_are_left_out_within_seconds() -> None:
    _, used = run(2, lambda lanes: 12_000 if lanes == 1 else 9_000, 2)

    assert used[0] == 2
    assert used[-1] == 1


def test_a_trial_that_fails_badly_is_not_made_again_soon() -> None:
    """Half the rate for a moment is dear."""
    _, used = run(2, lambda lanes: 600.0 * lanes, 300)

    assert used.count(1) / len(used) < 0.01


def test_a_trial_that_goes_badly_is_broken_off() -> None:
    """Where frames are slow, twelve lists would take seconds."""
    _, used = run(2, lambda lanes: 50.0 * lanes, 60)

    assert 0 < used.count(1) <= 4


def test_a_machine_that_is_slow_for_a_while_changes_nothing() -> None:
    """A trial must beat what came before and what comes after it."""
    dice = random.Random(1)
    decider, _ = run(
        2, lambda _: 8_000, 400, machine=lambda now: (0.5 if int(now / 0.7) % 3 == 0 else 1) * dice.uniform(0.97, 1.03)
    )

    assert decider._used == 2


@pytest.mark.parametrize("most", [1, 2, 5])
def test_without_a_queue_all_lanes_are_in_use(most: int) -> None:
    """Latency is what counts then."""
    _, used = run(most, lambda lanes: 5_000 / lanes, 10, more=False)

    assert set(used) == {most}


@given(st.lists(st.tuples(st.integers(0, 64), st.floats(0, 1), st.booleans())), st.integers(1, 4))
def test_it_never_uses_no_lane_nor_more_than_there_are(lists: list[tuple[int, float, bool]], most: int) -> None:
    decider, now = LaneTuner(most), 0.0
    for frames, took, more in lists:
        now += took
        decider.finished(frames, now, more)
        assert 1 <= decider.lanes <= most
