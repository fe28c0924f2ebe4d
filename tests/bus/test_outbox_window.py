"""What the outbox sends next, and what a region keeps of numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.outbox.ledger import Ledger, Ranges
from hedgerow.bus.outbox.records import PRIORITIES, Ack, Gap, Number, OutboxEntry, PreviousEpoch, key_of, read_gap
from hedgerow.bus.outbox.window import ReadRequest, SendWindow, split_window

COUNTS = st.integers(0, 500)


def entry(sequence: int, priority: int = 0, size: int = 10) -> OutboxEntry:
    key = key_of(priority, sequence)
    return OutboxEntry(key, key, "t", b"", b"x" * (size - 1))


def window(most: int = 4, max_bytes: int = 10_000, stored: int = 0) -> SendWindow:
    made = SendWindow(most, max_bytes, 0.5)
    made.reset([key_of(p, 1) for p in range(PRIORITIES)], next_keys(stored))
    return made


def next_keys(stored: int) -> list[int]:
    return [key_of(0, stored + 1), *(key_of(p, 1) for p in range(1, PRIORITIES))]


@given(st.integers(2, 300), st.floats(0, 1), COUNTS, COUNTS, COUNTS, COUNTS)
def test_both_find_room_and_the_window_holds(
    most: int, share: float, live: int, backlog: int, live_in_flight: int, backlog_in_flight: int
) -> None:
    new, old = split_window(
        most,
        share,
        live=live,
        backlog=backlog,
        live_in_flight=live_in_flight,
        backlog_in_flight=backlog_in_flight,
    )
    free = most - live_in_flight - backlog_in_flight

    assert 0 <= new <= live
    assert 0 <= old <= backlog
    assert new + old <= max(0, free)
    assert old == 0 or backlog_in_flight + old <= max(1, most * share)  # the rest is for what is new
    if backlog and free > 0 and backlog_in_flight == 0:
        assert old >= 1  # never starved
    if not backlog:
        assert new == min(live, max(0, free))  # nothing is kept free for nobody


@given(st.integers(2, 40), st.integers(1, 6), st.integers(20, 200))
def test_new_records_go_within_a_round_while_the_backlog_shrinks(most: int, a_round: int, stored: int) -> None:
    """A region that acknowledges all it gets once a round; new records come more slowly than it takes them."""
    a_round = min(a_round, most - max(1, most // 2))
    made = window(most, stored=stored)
    there = {entry(n).key: entry(n) for n in range(1, stored + 1)}
    last_old, next_sequence = key_of(0, stored), stored + 1
    for _ in range(2 * stored):
        new = [entry(next_sequence + n) for n in range(a_round)]
        next_sequence += a_round
        there.update((one.key, one) for one in new)
        made.appended(new, next_keys(next_sequence - 1), up=True)
        sent, request = made.next(0.0)
        assert sent == new  # at once, whatever waits
        if request is not None:
            keys = sorted(key for key in there if request.start <= key < request.end)
            sent = sent + made.offer(request, [there[key] for key in keys[: request.limit]], 0.0)
        for one in sent:
            made.acked(Ack("e", {}, {0: [(one.key, one.key)]}), 0.0)
            del there[one.key]
    assert not any(key <= last_old for key in there)


def test_what_was_sent_before_something_acknowledged_goes_again() -> None:
    made = window()
    made.appended([entry(n) for n in (1, 2, 3)], next_keys(3), up=True)
    made.next(0.0)
    made.acked(Ack("e", {0: 1}, {0: [(3, 3)]}), 0.0)
    sent, request = made.next(0.0)

    assert sent == []
    assert request == ReadRequest(key_of(0, 2), key_of(0, 4), 2, 5000)
    assert made.offer(request, [entry(2), entry(3)], 0.0)[0] == entry(2)


def test_with_nothing_heard_for_long_one_is_sent_again_and_then_ever_more_rarely() -> None:
    made = window()
    made.appended([entry(1), entry(2)], next_keys(2), up=True)
    made.next(0.0)

    assert not made.probe(29.0)
    assert made.probe(31.0)
    _, request = made.next(31.0)
    assert request is not None
    assert made.offer(request, [entry(1), entry(2)], 31.0) == [entry(1)]
    assert not made.probe(31.0 + 59.0)
    assert made.probe(31.0 + 61.0)


def test_a_read_that_began_before_a_rewind_does_not_move_past_it() -> None:
    made = window(stored=10)
    _, request = made.next(0.0)
    assert request is not None
    made.rewind(key_of(0, 1))
    made.offer(request, [entry(1), entry(2)], 0.0)
    made.acked(Ack("e", {0: 2}), 0.0)
    _, request = made.next(0.0)

    assert request is not None
    assert request.start == key_of(0, 1)


def test_large_records_fill_the_window_before_many_do() -> None:
    made = window(most=100, max_bytes=1000)
    made.appended([entry(n, size=400) for n in range(1, 10)], next_keys(9), up=True)
    sent, _ = made.next(0.0)

    assert made.in_flight == 3
    assert len(sent) == 7  # two wait, of as many bytes as a window may have; the others go past it


@given(
    st.integers(2, 300), st.floats(0.01, 0.99), st.integers(100, 3000), st.integers(0, 400), st.integers(0, 400),
    st.lists(st.integers(1, 2000), min_size=1, max_size=5),
)  # fmt: skip
def test_a_region_that_answers_only_when_it_is_asked_holds_up_nobody(
    most: int, share: float, max_bytes: int, old: int, new: int, sizes: list[int]
) -> None:
    """Whatever the window: it asks before it is full. What is left unanswered in the end is less than a window of it."""
    made = SendWindow(most, max_bytes, share)
    made.reset([key_of(p, 1) for p in range(PRIORITIES)], next_keys(old))
    there = {entry(n).key: entry(n, size=sizes[n % len(sizes)]) for n in range(1, old + new + 1)}
    unsent, came = set(there), dict[int, OutboxEntry]()
    made.appended(
        [entry(n, size=sizes[n % len(sizes)]) for n in range(old + 1, old + new + 1)], next_keys(old + new), up=True
    )
    while True:
        sent, request = made.next(0.0)
        if request is not None:
            found = [there[key] for key in sorted(there) if request.start <= key < request.end][: request.limit]
            read = list(itertools.takewhile(lambda one, budget=[request.max_bytes]: _spend(budget, one), found))
            sent = sent + made.offer(request, read or found[:1], 0.0)
        if not sent and request is None:
            break
        came.update((one.key, one) for one in sent)
        unsent -= came.keys()
        if any(made.wants_ack(one.key) for one in sent):
            ranges = [(key, key) for key in came]
            made.acked(Ack("e", {}, {0: ranges}), 0.0)
            for key in came:
                there.pop(key, None)
            came.clear()
    assert unsent == set()


def _spend(budget: list[int], one: OutboxEntry) -> bool:
    """As the store reads: so many bytes, and one entry whatever its size."""
    budget[0] -= one.size
    return budget[0] >= 0


def test_a_burst_after_a_quiet_time_waits_for_the_window_though_little_was_heard() -> None:
    """The region answers quiet outboxes in its own time: only a window that stays full is a reason to go past it."""
    made = window()
    made.appended([entry(1)], next_keys(1), up=True)
    made.next(100.0)
    made.appended([entry(n) for n in range(2, 9)], next_keys(8), up=True)

    assert [one.key for one in made.next(109.0)[0]] == [key_of(0, n) for n in (2, 3, 4)]
    assert made.next(109.9)[0] == []
    assert [one.key for one in made.next(110.1)[0]] == [key_of(0, n) for n in (5, 6, 7, 8)], "it stays full"


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 10))))
def test_ranges_are_a_set(added: list[tuple[int, int]]) -> None:
    ranges, model = Ranges(), set[int]()
    for first, length in added:
        new = set(range(first, first + length + 1))
        assert ranges.add(first, first + length) == bool(new - model)
        model |= new
    beyond = ranges.beyond(1000)

    through = next(n for n in range(100) if n + 1 not in model)
    assert ranges.through == through
    assert {n for first, last in beyond for n in range(first, last + 1)} == {n for n in model if n > through}
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(beyond))


def test_an_acknowledgement_and_a_gap_are_read_as_they_were_written() -> None:
    ledger = Ledger("e")
    for sequence in (1, 2, 5):
        assert ledger.add(Number("e", 3, sequence))
    assert not ledger.add(Number("e", 3, 2))
    gap = Gap(key_of(3, 3), key_of(3, 3), {"expired": 1}, (PreviousEpoch("d", (4,) * 10), PreviousEpoch(None, None)))

    assert Ack.decode(ledger.ack().encode()) == Ack("e", {3: 2}, {3: [(5, 5)]})
    assert read_gap(gap.message("e")) == ("e", gap)
    assert ledger.add_gap(gap)
    assert ledger.ack().through == {3: 3}


@given(
    st.binary()
    | st.sampled_from([b"1", b"{}", b'{"epoch":"e","through":{"11":1}}', b'{"epoch":"e","through":{"1":-1}}'])
)
def test_what_is_no_acknowledgement_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - bytes may be wrong in many ways
        Ack.decode(payload)
    with pytest.raises(ValueError):  # noqa: PT011
        read_gap(payload)
