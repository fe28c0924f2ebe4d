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


class Turns:
    """Takes a decider through turns at so many frames a second: twelve lists of a thirty-second of a second."""

    def __init__(self, most: int) -> None:
        self.decider = LaneTuner(most)
        self.now = 0.0

    def turn(self, rate: int, *, lists: int = 12, each_s: float = 1 / 32, starved: int = 0) -> int:
        """Returns: the lanes to use after it."""
        self.decider.finished(0, self.now, True)
        for number in range(lists):
            self.now += each_s
            self.decider.finished(int(rate * each_s), self.now, number >= starved)
        return self.decider.lanes

    def turns(self, *rates: int) -> list[int]:
        return [self.turn(rate) for rate in rates]

    def rest_s(self) -> int:
        """Seconds until a list begins a turn again."""
        for seconds in range(1000):
            self.decider.finished(0, self.now + seconds, True)
            if self.decider._began is not None:
                self.decider._began = None
                self.now += seconds
                return seconds
        raise AssertionError("it rests for ever")


def test_a_turn_is_twelve_lists_and_three_tenths_of_a_second_at_least() -> None:
    def ends(*times: float) -> list[bool]:
        decider = LaneTuner(2)
        decider.finished(1, 0.0, True)
        ended = []
        for at in times:
            decider.finished(1, at, True)
            ended.append(decider.lanes == 1)
        return ended

    assert ends(*(number / 100 for number in range(1, 13)), 0.29, 0.3) == [*[False] * 13, True]
    assert ends(*range(1, 13)) == [*[False] * 11, True]


def test_a_trial_is_one_turn_between_two_and_must_beat_both_by_a_twentieth() -> None:
    assert Turns(2).turns(3200, 3520, 3200) == [1, 2, 1], "one lane is better"
    assert Turns(2).turns(3200, 3360, 3200) == [1, 2, 2], "not by enough"
    assert Turns(2).turns(3200, 3520, 3520) == [1, 2, 2], "the machine has got faster"
    assert Turns(2).turns(3520, 3520, 3200) == [1, 2, 2], "the machine was faster before"


def test_a_trial_of_less_than_three_quarters_needs_three_lists_to_be_judged() -> None:
    badly = Turns(2)
    badly.turn(3200)
    assert badly.turn(1600, lists=3, each_s=0.125) == 2
    assert badly.rest_s() == 640

    not_yet = Turns(2)
    not_yet.turn(3200)
    assert not_yet.turn(1600, lists=2, each_s=0.25) == 1, "two lists say nothing"

    just = Turns(2)
    just.turn(3200)
    assert just.turn(2400, lists=3, each_s=0.125) == 1, "three quarters are not bad"
    assert just.decider._rates == [3200.0]


def test_a_bad_trial_of_many_lists_is_not_waited_out_either() -> None:
    turns = Turns(2)
    turns.turn(3200)
    assert turns.turn(1600) == 2
    assert turns.rest_s() == 640


def test_three_quarters_are_looked_at_again_and_are_no_disaster() -> None:
    turns = Turns(2)

    assert turns.turns(3200, 2400) == [1, 2]
    assert turns.decider._rates == [3200, 2400]
    assert turns.turn(3200) == 2
    assert turns.rest_s() == 20


def test_each_trial_that_fails_doubles_the_pause_up_to_the_longest() -> None:
    turns = Turns(2)
    rests = []
    for _ in range(8):
        assert turns.turns(3200, 3200, 3200) == [1, 2, 2]
        rests.append(turns.rest_s())

    assert rests == [20, 40, 80, 160, 320, 640, 640, 640]


def test_a_trial_that_succeeds_goes_on_in_that_direction_and_rests_at_the_end() -> None:
    turns = Turns(3)

    assert turns.turns(3200, 4000, 3200) == [2, 3, 2]
    assert turns.turns(4000, 4800, 4000) == [1, 2, 1], "at once"
    assert turns.rest_s() == 10
    assert turns.turns(4800, 4800, 4800) == [2, 1, 1], "there is no way further down"
    assert turns.rest_s() == 20


def test_after_a_failure_the_other_direction_is_tried() -> None:
    turns = Turns(3)
    turns.turns(3200, 4000, 3200)
    turns.turns(4000, 4000, 4000)
    assert turns.decider.lanes == 2
    turns.rest_s()

    assert turns.turn(4000) == 3
    assert turns.turns(4000, 4000) == [2, 2]
    turns.rest_s()
    assert turns.turn(4000) == 1


def test_the_first_trial_is_of_fewer_lanes() -> None:
    """All are in use at first; and where there are some on both sides, fewer are tried first."""
    assert Turns(3).turn(3200) == 2

    turns = Turns(3)
    turns.decider._used = 2
    assert turns.turn(3200) == 1


def test_from_the_middle_the_highest_number_is_reached_at_once() -> None:
    turns = Turns(4)
    turns.turns(3200, 4000, 3200)
    turns.turns(4000, 4800, 4000)
    assert turns.decider._used == 2
    turns.turns(4800, 3600, 4800)
    turns.rest_s()

    assert turns.turns(4800, 6400, 4800) == [3, 2, 3]
    assert turns.turn(6400) == 4, "at once"


def test_frames_count_in_one_turn_only() -> None:
    decider = LaneTuner(2)
    for turn in range(2):
        decider.finished(1, float(turn), True)
        for number in range(1, 13):
            decider.finished(32, turn + number / 32, True)

    assert decider._rates == [1024.0, 1024.0]


def test_a_turn_with_more_than_a_tenth_of_its_lists_starved_begins_anew() -> None:
    turns = Turns(2)
    assert turns.turn(3200, starved=2) == 2
    assert turns.turn(3200, starved=1) == 1
    assert turns.turn(3200, starved=2) == 2, "nor does a trial count then"
    assert turns.turns(3200, 4000, 3200) == [1, 2, 1]

    tenth = LaneTuner(2)
    tenth.finished(0, 0.0, True)
    for number in range(20):
        tenth.finished(10, 0.01 * number if number < 19 else 0.5, number >= 2)
    assert tenth.lanes == 1, "two of twenty may be"
