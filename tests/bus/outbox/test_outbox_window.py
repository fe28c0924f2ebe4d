"""The outbox's send window, and the region's ledger."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.outbox.epochs import KeyAck
from hedgerow.bus.outbox.ledger import Ledger, Ranges
from hedgerow.bus.outbox.records import PRIORITIES, Ack, Gap, Number, OutboxEntry, PreviousEpoch, key_of, read_gap
from hedgerow.bus.outbox.window import ReadRequest, SendWindow, split_window

COUNTS = st.integers(0, 500)


def entry(sequence: int, priority: int = 0, size: int = 10) -> OutboxEntry:
    key = key_of(priority, sequence)
    return OutboxEntry(key, key, "t", b"", b"x" * (size - 1))


def key_ack(*numbers: Any) -> KeyAck:
    """Return an acknowledgement of an epoch that is the file's first, by numbers only."""
    return KeyAck(Ack("e", *numbers).ranges(), None, beyond=False)


def window(max_entries: int = 4, max_bytes: int = 10_000, stored: int = 0) -> SendWindow:
    send_window = SendWindow(max_entries, max_bytes, 0.5)
    send_window.reset([key_of(p, 1) for p in range(PRIORITIES)], next_keys(stored))
    return send_window


def next_keys(stored: int) -> list[int]:
    return [key_of(0, stored + 1), *(key_of(p, 1) for p in range(1, PRIORITIES))]


@given(st.integers(2, 300), st.floats(0, 1), COUNTS, COUNTS, COUNTS, COUNTS)
def test_neither_new_records_nor_the_backlog_starve_in_the_window(
    max_entries: int, share: float, live: int, backlog: int, live_in_flight: int, backlog_in_flight: int
) -> None:
    new, old = split_window(
        max_entries,
        share,
        live=live,
        backlog=backlog,
        live_in_flight=live_in_flight,
        backlog_in_flight=backlog_in_flight,
    )
    free = max_entries - live_in_flight - backlog_in_flight

    assert 0 <= new <= live
    assert 0 <= old <= backlog
    assert new + old <= max(0, free)
    assert old == 0 or backlog_in_flight + old <= max(1, max_entries * share)  # the rest is for new records
    if backlog and free > 0 and backlog_in_flight == 0:
        assert old >= 1  # the backlog does not starve
    if not backlog:
        assert new == min(live, max(0, free))  # without a backlog, new records get the whole window


@given(st.integers(2, 40), st.integers(1, 6), st.integers(20, 200))
def test_new_records_are_sent_at_once_while_the_backlog_shrinks(max_entries: int, per_round: int, stored: int) -> None:
    """The region acknowledges everything once per round; new records arrive more slowly than it accepts them."""
    per_round = min(per_round, max_entries - max(1, max_entries // 2))
    send_window = window(max_entries, stored=stored)
    stored_entries = {entry(n).key: entry(n) for n in range(1, stored + 1)}
    last_old, next_sequence = key_of(0, stored), stored + 1
    for _ in range(2 * stored):
        new = [entry(next_sequence + n) for n in range(per_round)]
        next_sequence += per_round
        stored_entries.update((sent_entry.key, sent_entry) for sent_entry in new)
        send_window.appended(new, next_keys(next_sequence - 1), up=True)
        sent, request = send_window.next(0.0)
        assert sent == new  # at once, whatever the backlog
        if request is not None:
            keys = sorted(key for key in stored_entries if request.start <= key < request.end)
            sent = sent + send_window.offer(request, [stored_entries[key] for key in keys[: request.limit]], 0.0)
        for sent_entry in sent:
            send_window.acked(key_ack({}, {0: [(sent_entry.key, sent_entry.key)]}), 0.0)
            del stored_entries[sent_entry.key]
    assert not any(key <= last_old for key in stored_entries)


def test_entries_sent_before_an_acknowledged_one_are_resent() -> None:
    send_window = window()
    send_window.appended([entry(n) for n in (1, 2, 3)], next_keys(3), up=True)
    send_window.next(0.0)
    send_window.acked(key_ack({0: 1}, {0: [(3, 3)]}), 0.0)
    sent, request = send_window.next(0.0)

    assert sent == []
    assert request == ReadRequest(key_of(0, 2), key_of(0, 4), 2, 5000)
    assert send_window.offer(request, [entry(2), entry(3)], 0.0)[0] == entry(2)


def test_a_probe_is_sent_after_silence_at_growing_intervals() -> None:
    send_window = window()
    send_window.appended([entry(1), entry(2)], next_keys(2), up=True)
    send_window.next(0.0)

    assert not send_window.probe(29.0)
    assert send_window.probe(31.0)
    _, request = send_window.next(31.0)
    assert request is not None
    assert send_window.offer(request, [entry(1), entry(2)], 31.0) == [entry(1)]
    assert not send_window.probe(31.0 + 59.0)
    assert send_window.probe(31.0 + 61.0)


def test_probes_follow_a_reconnect_quickly_until_the_region_replies() -> None:
    """A region that reconnects after the node misses what the node sent in between, and cannot know of it."""
    send_window = window(max_entries=20)
    send_window.link_up(0.0)
    send_window.appended([entry(1), entry(2)], next_keys(2), up=True)
    send_window.next(0.0)

    assert [send_window.wants_ack(key_of(0, sequence)) for sequence in (1, 2)] == [True, False]
    probes = []
    for tenths in range(160):
        if send_window.probe(now := tenths / 10):
            probes.append(now)
            _, request = send_window.next(now)
            assert request is not None
            (resent,) = send_window.offer(request, [entry(1), entry(2)], now)
            assert send_window.wants_ack(resent.key)
    assert probes == [1.0, 3.0, 7.0, 15.0]

    send_window.acked(key_ack({0: 2}, {0: [(2, 2)]}), 16.0)
    send_window.appended([entry(3)], next_keys(3), up=True)
    send_window.next(16.0)

    assert not send_window.probe(45.9)
    assert send_window.probe(46.0)


def test_a_reconnect_with_records_in_flight_sends_one_of_them_as_a_probe() -> None:
    send_window = window()
    send_window.appended([entry(1), entry(2)], next_keys(2), up=True)
    send_window.next(0.0)
    send_window.link_up(10.0)
    _, request = send_window.next(10.0)

    assert request is not None
    assert send_window.offer(request, [entry(1), entry(2)], 10.0) == [entry(1)]
    assert not send_window.probe(10.9)
    assert send_window.probe(11.0)


def test_each_probe_is_sent_although_lost_records_fill_the_backlogs_share() -> None:
    """New records and the backlog fill the window, and all are lost: the place of a new one is not the backlog's, but a probe's."""
    send_window = window(max_entries=16, stored=20)
    stored = {entry(n).key: entry(n) for n in range(1, 31)}
    send_window.link_up(0.0)
    send_window.appended([entry(n) for n in range(21, 31)], next_keys(30), up=True)
    flood(send_window, stored, 0.0)
    assert send_window.in_flight == 16
    send_window.link_down()
    send_window.link_up(1.0)
    flood(send_window, stored, 1.0)
    probed: list[int] = []
    for tenths in range(20, 400):
        now = tenths / 10
        if send_window.probe(now):
            probed.append(len(flood(send_window, stored, now)))

    assert probed == [1] * len(probed)
    assert len(probed) >= 4


def flood(send_window: SendWindow, stored: dict[int, OutboxEntry], now: float) -> list[OutboxEntry]:
    """Send what the window permits, and return it."""
    sent: list[OutboxEntry] = []
    while True:
        entries, request = send_window.next(now)
        sent += entries
        if request is None:
            return sent
        keys = [key for key in sorted(stored) if request.start <= key < request.end]
        sent += send_window.offer(request, [stored[key] for key in keys[: request.limit]], now)


def test_a_read_requested_before_a_rewind_does_not_move_the_cursor_past_it() -> None:
    send_window = window(stored=10)
    _, request = send_window.next(0.0)
    assert request is not None
    send_window.rewind(key_of(0, 1))
    send_window.offer(request, [entry(1), entry(2)], 0.0)
    send_window.acked(key_ack({0: 2}), 0.0)
    _, request = send_window.next(0.0)

    assert request is not None
    assert request.start == key_of(0, 1)


def test_large_records_fill_the_window_by_bytes() -> None:
    send_window = window(max_entries=100, max_bytes=1000)
    send_window.appended([entry(n, size=400) for n in range(1, 10)], next_keys(9), up=True)
    sent, _ = send_window.next(0.0)

    assert send_window.in_flight == 3
    assert len(sent) == 7  # two wait, the bytes of one window; the others are sent past it


@given(
    st.integers(2, 300), st.floats(0.01, 0.99), st.integers(100, 3000), st.integers(0, 400), st.integers(0, 400),
    st.lists(st.integers(1, 2000), min_size=1, max_size=5),
)  # fmt: skip
def test_a_region_that_acknowledges_only_on_request_never_stalls_the_window(
    max_entries: int, share: float, max_bytes: int, old: int, new: int, sizes: list[int]
) -> None:
    """A window of any size requests an acknowledgement before it is full, so everything is sent."""
    send_window = SendWindow(max_entries, max_bytes, share)
    send_window.reset([key_of(p, 1) for p in range(PRIORITIES)], next_keys(old))
    stored_entries = {entry(n).key: entry(n, size=sizes[n % len(sizes)]) for n in range(1, old + new + 1)}
    unsent, received = set(stored_entries), dict[int, OutboxEntry]()
    send_window.appended(
        [entry(n, size=sizes[n % len(sizes)]) for n in range(old + 1, old + new + 1)], next_keys(old + new), up=True
    )
    while True:
        sent, request = send_window.next(0.0)
        if request is not None:
            found = [stored_entries[key] for key in sorted(stored_entries) if request.start <= key < request.end][
                : request.limit
            ]
            read = list(itertools.takewhile(lambda each, budget=[request.max_bytes]: _spend(budget, each), found))
            sent = sent + send_window.offer(request, read or found[:1], 0.0)
        if not sent and request is None:
            break
        received.update((sent_entry.key, sent_entry) for sent_entry in sent)
        unsent -= received.keys()
        if any(send_window.wants_ack(sent_entry.key) for sent_entry in sent):
            ranges = [(key, key) for key in received]
            send_window.acked(key_ack({}, {0: ranges}), 0.0)
            for key in received:
                stored_entries.pop(key, None)
            received.clear()
    assert unsent == set()


def _spend(budget: list[int], entry: OutboxEntry) -> bool:
    """Apply a byte limit as the store does; it also reads one entry of any size."""
    budget[0] -= entry.size
    return budget[0] >= 0


def test_a_burst_after_a_quiet_period_waits_for_the_window() -> None:
    """The region acknowledges quiet outboxes slowly: only a window that stays full is bypassed."""
    send_window = window()
    send_window.appended([entry(1)], next_keys(1), up=True)
    send_window.next(100.0)
    send_window.appended([entry(n) for n in range(2, 9)], next_keys(8), up=True)

    assert [sent_entry.key for sent_entry in send_window.next(109.0)[0]] == [key_of(0, n) for n in (2, 3, 4)]
    assert send_window.next(109.9)[0] == []
    assert [sent_entry.key for sent_entry in send_window.next(110.1)[0]] == [key_of(0, n) for n in (5, 6, 7, 8)], (
        "the window stayed full"
    )


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


def test_acknowledgements_and_gaps_survive_a_round_trip() -> None:
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
def test_invalid_acknowledgements_and_gaps_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - input may be invalid in many ways
        Ack.decode(payload)
    with pytest.raises(ValueError):  # noqa: PT011
        read_gap(payload)
