"""The lane tuner: finds the number of lanes by trial, and only under overload."""

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
    """Simulate a pipeline with lists of ten frames.

    Args:
        rate: frames per second by number of lanes.
        machine: speed of the machine over time.
    Returns: the tuner, and the number of lanes after each list.
    """
    tuner, now, used = LaneTuner(most), 0.0, []
    while now < seconds:
        now += 10 / (rate(tuner.lanes) * machine(now))
        tuner.finished(10, now, more)
        used.append(tuner.lanes)
    return tuner, used


@given(st.lists(st.floats(100, 10_000), min_size=1, max_size=6))
def test_it_climbs_to_a_local_maximum(rates: list[float]) -> None:
    """Whatever the rates."""
    tuner, _ = run(len(rates), lambda lanes: rates[lanes - 1], 120)

    used = tuner._current
    for neighbour in (used - 1, used + 1):
        if 1 <= neighbour <= len(rates):
            assert rates[neighbour - 1] <= 1.06 * rates[used - 1]


def test_contending_lanes_are_reduced_within_seconds() -> None:
    _, used = run(2, lambda lanes: 12_000 if lanes == 1 else 9_000, 2)

    assert used[0] == 2
    assert used[-1] == 1


def test_a_trial_that_fails_badly_is_not_repeated_soon() -> None:
    """Running at half the rate, even briefly, is expensive."""
    _, used = run(2, lambda lanes: 600.0 * lanes, 300)

    assert used.count(1) / len(used) < 0.01


def test_a_trial_that_fails_badly_ends_early() -> None:
    """With slow frames twelve lists would take seconds."""
    _, used = run(2, lambda lanes: 50.0 * lanes, 60)

    assert 0 < used.count(1) <= 4


def test_a_machine_that_becomes_faster_or_slower_changes_nothing() -> None:
    """A trend would favour what is measured last, or first."""
    for trend in (0.02, -0.002):
        tuner, _ = run(2, lambda _: 8_000, 200, machine=lambda now, trend=trend: max(0.1, 1 + trend * now))  # type: ignore[misc]

        assert tuner._current == 2


def test_a_temporarily_slow_machine_changes_nothing() -> None:
    """A trial must win in both of its halves."""
    dice = random.Random(1)
    tuner, _ = run(
        2, lambda _: 8_000, 400, machine=lambda now: (0.5 if int(now / 0.7) % 3 == 0 else 1) * dice.uniform(0.97, 1.03)
    )

    assert tuner._current == 2


@pytest.mark.parametrize("most", [1, 2, 5])
def test_without_a_backlog_all_lanes_are_used(most: int) -> None:
    """Latency matters more then."""
    _, used = run(most, lambda lanes: 5_000 / lanes, 10, more=False)

    assert set(used) == {most}


@given(st.lists(st.tuples(st.integers(0, 64), st.floats(0, 1), st.booleans())), st.integers(1, 4))
def test_the_number_of_lanes_stays_within_bounds(lists: list[tuple[int, float, bool]], most: int) -> None:
    tuner, now = LaneTuner(most), 0.0
    for frames, took, more in lists:
        now += took
        tuner.finished(frames, now, more)
        assert 1 <= tuner.lanes <= most


class Simulation:
    """Takes a tuner through measurements at given rates: twelve lists of 1/32 s each."""

    def __init__(self, most: int, first: int | None = None) -> None:
        self.cpu_s = 0.0
        self.tuner = LaneTuner(most, first, lambda: self.cpu_s)
        self.now = 0.0

    def measure(
        self, rate: int, *, lists: int = 12, list_s: float = 1 / 32, starved: int = 0, cpu_ms: float = 1.0
    ) -> int:
        """Run one measurement, with this processor time for a frame; return the number of lanes after it."""
        self.tuner.finished(0, self.now, True)
        for number in range(lists):
            self.now += list_s
            self.cpu_s += int(rate * list_s) * cpu_ms / 1e3
            self.tuner.finished(int(rate * list_s), self.now, number >= starved)
        return self.tuner.lanes

    def measure_all(self, *rates: int) -> list[int]:
        return [self.measure(rate) for rate in rates]

    def trial(self, current: tuple[int, float], tried: tuple[int, float]) -> int:
        """Run a whole trial, with a rate and processor time each; return the number of lanes after it."""
        for rate, cpu_ms in (current, tried, tried, current):
            self.measure(rate, cpu_ms=cpu_ms)
        return self.tuner.lanes

    def end_pause(self) -> int:
        """Let the pause pass; return its seconds."""
        pause_s = round(self.tuner._pause_until - self.now)
        self.now = max(self.now, self.tuner._pause_until)
        return pause_s


def test_a_measurement_takes_at_least_twelve_lists_and_300_ms() -> None:
    def ended_at(*times: float) -> list[bool]:
        tuner = LaneTuner(2)
        tuner.finished(1, 0.0, True)
        ended = []
        for at in times:
            tuner.finished(1, at, True)
            ended.append(tuner.lanes == 1)
        return ended

    assert ended_at(*(number / 100 for number in range(1, 13)), 0.29, 0.3) == [*[False] * 13, True]
    assert ended_at(*range(1, 13)) == [*[False] * 11, True]


@pytest.mark.parametrize(
    ("rates", "lanes", "why"),
    [
        ((3200, 3520, 3520, 3200), 1, "one lane is better"),
        ((3200, 3328, 3328, 3200), 2, "not by enough"),
        ((3200, 3520, 3520, 3520), 2, "the machine became faster during the trial"),
        ((3520, 3520, 3520, 3200), 2, "the machine became slower after it"),
        ((3200, 3520, 3840, 4160), 2, "the machine becomes faster all the time"),
        ((3200, 4224, 4608, 4160), 1, "one lane is better, though the machine becomes faster too"),
    ],
)
def test_a_trial_must_be_better_by_5_percent_in_both_halves(rates: tuple[int, ...], lanes: int, why: str) -> None:
    assert Simulation(2).measure_all(*rates) == [1, 1, 2, lanes], why


@pytest.mark.parametrize(
    ("one", "two", "lanes", "why"),
    [
        ((3200, 1.0), (6400, 1.0), 2, "twice the frames for the same processor time each"),
        ((3200, 1.0), (3840, 1.1), 2, "more frames than they cost"),
        ((3200, 1.0), (3520, 1.5), 1, "a tenth more frames for half as much processor time again"),
        ((3200, 1.0), (3200, 1.0), 1, "nothing gained"),
        ((3200, 1.0), (2560, 0.5), 1, "fewer frames"),
    ],
)
def test_more_lanes_must_bring_more_frames_than_they_cost_processor_time(
    one: tuple[int, float], two: tuple[int, float], lanes: int, why: str
) -> None:
    assert Simulation(2, first=1).trial(one, two) == lanes, why


@pytest.mark.parametrize(
    ("two", "one", "lanes", "why"),
    [
        ((3200, 1.0), (3136, 0.8), 1, "a fifth less processor time for 2 % fewer frames"),
        ((3200, 1.0), (3136, 0.95), 2, "saves no more than it costs"),
        ((3200, 1.0), (2880, 0.5), 2, "a tenth of the frames is too much"),
    ],
)
def test_fewer_lanes_may_cost_a_few_frames_if_they_save_more_processor_time(
    two: tuple[int, float], one: tuple[int, float], lanes: int, why: str
) -> None:
    assert Simulation(2).trial(two, one) == lanes, why


@given(
    st.tuples(st.integers(320, 6400), st.floats(0.1, 10)),
    st.tuples(st.integers(320, 6400), st.floats(0.1, 10)),
)
def test_what_a_trial_has_decided_the_opposite_trial_confirms(one: tuple[int, float], two: tuple[int, float]) -> None:
    """Else a pipeline would change its lanes again and again."""
    if Simulation(2).trial(two, one) == 1:
        assert Simulation(2, first=1).trial(one, two) == 1
    if Simulation(2, first=1).trial(one, two) == 2:
        assert Simulation(2).trial(two, one) == 2


def test_it_can_begin_with_one_lane_and_tries_two() -> None:
    simulation = Simulation(2, first=1)

    assert simulation.tuner.lanes == 1
    assert simulation.measure_all(3200, 6400, 6400, 3200) == [2, 2, 1, 2]


def test_a_trial_below_75_percent_ends_after_three_lists() -> None:
    badly = Simulation(2)
    badly.measure(3200)
    assert badly.measure(1600, lists=3, list_s=0.125) == 2
    assert badly.end_pause() == 640

    not_yet = Simulation(2)
    not_yet.measure(3200)
    assert not_yet.measure(1600, lists=2, list_s=0.25) == 1, "two lists are too few"

    just = Simulation(2)
    just.measure(3200)
    assert just.measure(2400, lists=3, list_s=0.125) == 1, "75 % does not fail badly"
    assert len(just.tuner._done) == 1


def test_a_trial_that_fails_badly_sets_the_longest_pause_after_a_full_measurement_too() -> None:
    simulation = Simulation(2)
    simulation.measure(3200)
    assert simulation.measure(1600) == 2
    assert simulation.end_pause() == 640


def test_a_trial_at_75_percent_is_completed_and_only_doubles_the_pause() -> None:
    simulation = Simulation(2)

    assert simulation.measure_all(3200, 2400, 2400, 3200) == [1, 1, 2, 2]
    assert simulation.end_pause() == 20


def test_each_failed_trial_doubles_the_pause_up_to_the_longest() -> None:
    simulation = Simulation(2)
    pauses = []
    for _ in range(8):
        assert simulation.measure_all(3200, 3200, 3200, 3200) == [1, 1, 2, 2]
        pauses.append(simulation.end_pause())

    assert pauses == [20, 40, 80, 160, 320, 640, 640, 640]


@pytest.mark.parametrize(("rate", "ends"), [(6400, True), (1600, True), (3840, False), (2560, False)])
def test_another_load_ends_the_pause(rate: int, ends: bool) -> None:
    """By a rate that is half as high again, or a third lower, for three seconds."""
    simulation = Simulation(2)
    simulation.measure(3200)
    simulation.measure(1600)
    assert simulation.tuner._pause_until > simulation.now + 600

    lanes = [simulation.measure(rate, list_s=1 / 8) for _ in range(4)]

    assert lanes == [2, 2, 2, 1 if ends else 2]


def test_a_short_stall_or_an_idle_time_does_not_end_the_pause() -> None:
    simulation = Simulation(2)
    simulation.measure(3200)
    simulation.measure(1600)
    for _ in range(3):
        simulation.measure(800, list_s=1 / 8)
        simulation.measure(800, list_s=1 / 8)
        simulation.measure(3200, list_s=1 / 8)
    for _ in range(4):
        simulation.measure(800, list_s=1 / 8, starved=2)

    assert simulation.tuner._pause_until > simulation.now + 500


def test_after_a_successful_trial_the_next_step_is_tried_at_once_until_the_end() -> None:
    simulation = Simulation(3)

    assert simulation.measure_all(3200, 4000, 4000, 3200) == [2, 2, 3, 2]
    assert simulation.measure_all(4000, 4800, 4800, 4000) == [1, 1, 2, 1], "without a pause"
    assert simulation.end_pause() == 10
    assert simulation.measure_all(4800, 4800, 4800, 4800) == [2, 2, 1, 1], "one lane is the minimum"
    assert simulation.end_pause() == 20


def test_after_a_failed_trial_the_other_direction_is_tried() -> None:
    simulation = Simulation(3)
    simulation.measure_all(3200, 4000, 4000, 3200)
    simulation.measure_all(4000, 4000, 4000, 4000)
    assert simulation.tuner.lanes == 2
    simulation.end_pause()

    assert simulation.measure_all(4000, 4000, 4000, 4000) == [3, 3, 2, 2]
    simulation.end_pause()
    assert simulation.measure(4000) == 1


def test_the_first_trial_uses_fewer_lanes() -> None:
    """If all lanes are used at first; later, too, fewer lanes are tried before more."""
    assert Simulation(3).measure(3200) == 2

    simulation = Simulation(3)
    simulation.tuner._current = 2
    assert simulation.measure(3200) == 1


def test_a_successful_trial_upwards_continues_to_the_highest_number() -> None:
    simulation = Simulation(4)
    simulation.measure_all(3200, 4000, 4000, 3200)
    simulation.measure_all(4000, 4800, 4800, 4000)
    assert simulation.tuner._current == 2
    simulation.measure_all(4800, 3840, 3840, 4800)
    simulation.end_pause()

    assert simulation.measure_all(4800, 6400, 6400, 4800) == [3, 3, 2, 3]
    assert simulation.measure(6400) == 4, "without a pause"


def test_frames_count_in_one_measurement_only() -> None:
    tuner = LaneTuner(2)
    for run in range(2):
        tuner.finished(1, float(run), True)
        for number in range(1, 13):
            tuner.finished(32, run + number / 32, True)

    assert [measured.rate for measured in tuner._done] == [1024.0, 1024.0]


def test_a_measurement_with_more_than_10_percent_starved_lists_is_discarded() -> None:
    simulation = Simulation(2)
    assert simulation.measure(3200, starved=2) == 2
    assert simulation.measure(3200, starved=1) == 1
    assert simulation.measure(3200, starved=2) == 2, "a starved trial is discarded too"
    assert simulation.measure_all(3200, 4000, 4000, 3200) == [1, 1, 2, 1]

    tenth = LaneTuner(2)
    tenth.finished(0, 0.0, True)
    for number in range(20):
        tenth.finished(10, 0.01 * number if number < 19 else 0.5, number >= 2)
    assert tenth.lanes == 1, "two of twenty are allowed"
