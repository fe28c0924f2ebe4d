"""Tells whether one name is used by two processes at once: examples at each limit, and random histories."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.region.store.twins.contest import ALONE_REPORTS, PERIOD_S, Change, Contest

FIRST_S = 1.0
LATENCY_S = 4.0
"""Longest latency of an honest path that holds nothing back."""


@dataclass
class Path:
    """Carries reports in order: some are lost, and while it stalls it holds all back."""

    random: Random
    loss: float = 0.0
    stalls: list[tuple[float, float]] = field(default_factory=list)
    last: float = 0.0

    def arrival(self, sent: float) -> float | None:
        if self.random.random() < self.loss:
            return None
        at = sent + self.random.random() * LATENCY_S
        for start, end in self.stalls:
            if start <= at < end:
                at = end
        self.last = max(self.last, at)
        return self.last


@dataclass(frozen=True)
class Process:
    who: str
    start: float
    end: float
    path: Path
    copied_at: float = 0.0
    """Its uptime when it started: that of the process of which it is a copy."""

    def sends(self) -> list[float]:
        count = max(0, ceil((self.end - self.start - FIRST_S) / PERIOD_S))
        return [self.start + FIRST_S + n * PERIOD_S for n in range(count)]


def changes(processes: list[Process], restarts: tuple[float, ...] = ()) -> list[tuple[float, str]]:
    """Return when a contest began or ended; the region restarts at the given times."""
    contest, found, left = Contest(), [], sorted(restarts)
    sends = sorted((sent, n) for n, process in enumerate(processes) for sent in process.sends())
    reports = []
    for sent, n in sends:
        if (at := processes[n].path.arrival(sent)) is not None:
            reports.append((at, sent, processes[n].who, sent - processes[n].start + processes[n].copied_at))
    for at, _, who, uptime_s in sorted(reports):
        while left and left[0] <= at:
            left.pop(0)
            contest = Contest(contest.rivals)
        if (change := contest.report(who, uptime_s, at)) is not None:
            found.append((at, change))
    return found


@st.composite
def honest(draw: st.DrawFn) -> tuple[list[Process], tuple[float, ...]]:
    """One node: it restarts, crashes in a loop and moves between two sites; nothing of it is ever twice."""
    random = Random(draw(st.integers(0, 2**32)))
    stalls: list[list[tuple[float, float]]] = []
    for _ in range(2):
        mine, at = [], 0.0
        for _ in range(draw(st.integers(0, 4))):
            at += draw(st.floats(60, 400))
            mine.append((at, at + draw(st.floats(1, 900))))
            at = mine[-1][1]
        stalls.append(mine)
    paths = [Path(random, draw(st.sampled_from((0.0, 0.1, 0.5))), mine) for mine in stalls]
    processes, at = [], 0.0
    for number in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from((0.0, 0.0, 1.0, 20.0, 400.0)))
        length = draw(st.sampled_from((0.5, 2.0, 12.0, 60.0, 500.0)))
        processes.append(Process(f"r{number}", at, at + length, paths[draw(st.booleans())]))
        at += length
    return processes, tuple(draw(st.lists(st.floats(0, 3000), max_size=3)))


@given(honest())
def test_restarts_moves_and_messages_that_waited_are_no_twins(history: tuple[list[Process], tuple[float, ...]]) -> None:
    assert changes(*history) == []


@given(st.integers(0, 2**32), st.floats(0, 3600), st.floats(65, 500), st.booleans())
def test_two_at_once_are_found_within_two_periods_until_one_is_gone(
    seed: int, begin: float, length: float, one_path: bool
) -> None:
    random = Random(seed)
    paths = [Path(random), Path(random)]
    processes = [Process("first", 0, begin + length + 400, paths[0])]
    processes.append(Process("second", begin, begin + length, paths[0] if one_path else paths[1]))
    found = changes(processes)
    assert [change for _, change in found] == ["began", "ended"]
    (began, _), (ended, _) = found
    assert began - begin <= 2 * PERIOD_S + FIRST_S + LATENCY_S
    gone_s = ended - (begin + length)
    assert (ALONE_REPORTS - 3) * PERIOD_S <= gone_s <= (ALONE_REPORTS + 1) * PERIOD_S + 2 * LATENCY_S


@given(st.integers(0, 2**32), st.floats(60, 3600))
def test_a_twin_that_crashes_in_a_loop_is_found(seed: int, begin: float) -> None:
    paths = [Path(Random(seed)), Path(Random(seed + 1))]
    twins = [Process(f"t{n}", begin + 12 * n, begin + 12 * n + 2, paths[1]) for n in range(25)]
    found = changes([Process("first", 0, begin + 300, paths[0]), *twins])
    assert [change for _, change in found] == ["began"]


@given(st.integers(0, 2**32), st.floats(200, 3600), st.floats(80, 190))
def test_a_copy_of_the_running_process_is_found_though_its_id_is_the_same(seed: int, begin: float, age: float) -> None:
    """A snapshot of a virtual machine, started beside it."""
    path = Path(Random(seed))
    copy = Process("one", begin, begin + 60, path, copied_at=begin - age)
    found = changes([Process("one", 0, begin + 300, path), copy])
    assert [change for _, change in found] == ["began", "ended"]
    assert found[0][0] - begin <= 3 * PERIOD_S + LATENCY_S


@pytest.mark.parametrize("jump_s", [-86_400, -30, 30, 86_400])
def test_a_machine_that_sleeps_or_wakes_is_no_twin(jump_s: float) -> None:
    """A monotonic clock stands still while its machine sleeps; here that of the node (late) or that of the region (early)."""
    contest, uptime_s, at = Contest(), 1e5, 1e5
    for turn in range(60):
        assert contest.report("one", uptime_s, at) is None
        uptime_s, at = uptime_s + PERIOD_S, at + PERIOD_S
        if turn % 7 == 6:
            uptime_s, at = (uptime_s, at + jump_s) if jump_s > 0 else (uptime_s - jump_s, at)


# Examples at the limits


class Name:
    """A name, and what its contest says to each report."""

    def __init__(self, rivals: tuple[str, str] | None = None) -> None:
        self.contest = Contest(rivals)
        self.said: list[Change | None] = []

    def hear(self, *reports: tuple[str, float, float]) -> list[Change]:
        """Take reports: who, uptime, time. Returns: what began or ended with them."""
        self.said = [self.contest.report(*report) for report in reports]
        return [change for change in self.said if change is not None]


def twins(at: float = 0.0) -> tuple[tuple[str, float, float], ...]:
    """Two runs that report in turns, as few reports as show it."""
    return ("a", 1000, at), ("b", 1000, at + 5), ("a", 1010, at + 10), ("b", 1010, at + 15)


def test_two_returns_of_two_runs_are_a_contest() -> None:
    name = Name()
    assert name.hear(*twins()) == ["began"]
    assert name.said == [None, None, None, "began"]
    assert name.contest.rivals == ("b", "a")
    assert name.hear(("a", 1020, 20)) == []
    assert name.contest.rivals == ("a", "b")


def test_one_return_is_none() -> None:
    assert Name().hear(*twins()[:3]) == []


@pytest.mark.parametrize(("late_s", "counts"), [(-5.01, False), (-5.0, True), (0, True), (5.0, True), (5.01, False)])
def test_a_report_counts_if_it_keeps_pace(late_s: float, counts: bool) -> None:
    name = Name()
    found = name.hear(
        ("a", 1000, 0), ("b", 1000, 4), ("a", 1010, 10 + late_s), ("b", 1012, 16), ("a", 1020 + late_s, 20 + late_s * 2)
    )
    assert (found[:1] == ["began"] and name.said[3] == "began") == counts


def test_the_same_report_again_is_no_return() -> None:
    name = Name()
    assert (
        name.hear(("a", 1000, 0), ("b", 1000, 1), ("a", 1000, 2), ("b", 1000, 3), ("a", 1000, 4), ("b", 1000, 4)) == []
    )
    assert name.contest.rivals is None


@pytest.mark.parametrize(("apart_s", "counts"), [(30.0, True), (30.01, False)])
def test_the_returns_of_two_runs_are_close(apart_s: float, counts: bool) -> None:
    later = 10 + apart_s
    found = Name().hear(("a", 1000, 0), ("b", 1000, 5), ("a", 1010, 10), ("b", 1000 + later - 5, later))
    assert (found == ["began"]) == counts


@pytest.mark.parametrize(("last", "counts"), [(70.0, True), (70.01, False)])
def test_three_returns_of_one_run_are_a_contest(last: float, counts: bool) -> None:
    """Its twin ends before it can report twice."""
    found = Name().hear(
        ("a", 1000, 0), ("b", 1000, 5), ("a", 1010, 10), ("c", 1000, 15), ("a", 1040, 40), ("d", 1000, 45), ("a", 1000 + last, last)
    )  # fmt: skip
    assert (found == ["began"]) == counts


def test_two_returns_of_one_run_are_none() -> None:
    assert Name().hear(("a", 1000, 0), ("b", 1000, 5), ("a", 1010, 10), ("c", 1000, 15), ("a", 1020, 20)) == []


@pytest.mark.parametrize(("after_s", "counts"), [(4.99, False), (5.0, True)])
def test_the_last_report_before_a_start_may_arrive_after_it(after_s: float, counts: bool) -> None:
    """b starts at 10; a has reported at 5, and its next one is heard shortly after that start."""
    name = Name()
    found = name.hear(("a", 1000, 5), ("b", 1, 11), ("a", 1005 + after_s, 10 + after_s), ("b", 11, 21))
    assert (found == ["began"]) == counts


def test_a_run_that_goes_on_after_it_counts_with_its_next_report() -> None:
    name = Name()
    assert name.hear(("a", 1000, 2), ("b", 1, 11), ("a", 1010, 12), ("a", 1020, 22)) == []
    assert name.hear(("b", 21, 31)) == ["began"]


def test_an_earlier_start_is_believed() -> None:
    """Of a run's reports, the one that came fastest tells when it started."""
    name = Name()
    assert name.hear(("a", 1000, 0), ("b", 1, 14), ("b", 6, 15), ("a", 1016, 16), ("b", 16, 25)) == ["began"]


@pytest.mark.parametrize(
    ("reports", "first", "ends"), [(6, 20.0, True), (5, 20.0, False), (6, 25.01, False), (6, 25.0, True)]
)
def test_a_contest_ends_when_one_is_alone_for_six_reports(reports: int, first: float, ends: bool) -> None:
    name = Name()
    name.hear(*twins())
    times = [first, *(70.0 - 2 * n for n in reversed(range(reports - 1)))]
    found = name.hear(*(("a", 1000 + at, at) for at in times))
    assert (found == ["ended"]) == ends
    assert (name.contest.rivals is None) == ends


def test_after_its_end_it_begins_anew() -> None:
    name = Name()
    name.hear(*twins())
    assert name.hear(*(("b", 1005 + at, 10 + at) for at in range(10, 80, 10))) == ["ended"]
    assert name.hear(("a", 1085, 85)) == [], "one return, however many there were before"
    assert name.hear(("b", 1085, 90)) == ["began"]


def test_what_was_known_is_neither_told_again_nor_ended_by_a_single_report() -> None:
    name = Name(("a", "b"))
    assert name.hear(*twins()) == []
    assert name.contest.rivals == ("b", "a")
    name = Name(("a", "b"))
    assert name.hear(*(("a", 1000 + at, at) for at in range(0, 50, 10))) == []
    assert name.hear(("a", 1050, 50)) == ["ended"]


@pytest.mark.parametrize(("back_s", "counts"), [(60.0, False), (60.01, True)])
def test_an_uptime_far_below_is_that_of_a_copy(back_s: float, counts: bool) -> None:
    name = Name()
    reports = [("a", 1000.0, 0.0), ("a", 1000 - back_s, 0.0)]
    for at in (10.0, 20.0):
        reports += [("a", 1000 + at, at), ("a", 1000 + at - back_s, at)]
    assert (name.hear(*reports) == ["began"]) == counts
    if counts:
        assert name.contest.rivals == ("a", "a")


def test_the_last_eight_runs_are_remembered() -> None:
    for others, counts in ((7, True), (8, False)):
        name = Name()
        name.hear(("a", 1000, 0), *((f"b{n}", 1000, 1 + n) for n in range(others)))
        found = name.hear(("a", 1010, 10), (f"b{others - 1}", 1011 - others, 11))
        assert (found == ["began"]) == counts
