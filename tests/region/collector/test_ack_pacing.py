"""Acknowledgement pacing, at the limits of each constant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.outbox.records import Ack
from hedgerow.region.collector.ack_pacing import DELAY_S, MAX_ACKS_PER_S, MAX_DELAY_S, MAX_RECORDS, TICK_S, AckPacing


def ack(through: int = 1) -> Ack:
    return Ack("e", {0: through})


def pending(count: int, at: float = 0.0) -> AckPacing[int]:
    """Quiet outboxes that all sent a record at the same moment."""
    pacing: AckPacing[int] = AckPacing()
    for outbox in range(count):
        pacing.add(outbox, ack(), 1, at)
    return pacing


def keys_due(pacing: AckPacing[int], now: float) -> list[int]:
    return [key for key, _ in pacing.due(now)]


def test_the_64th_record_is_acknowledged_at_once() -> None:
    pacing: AckPacing[str] = AckPacing()
    assert pacing.due(0.0) == []

    pacing.add("a", ack(1), 32, 0.01)
    pacing.add("a", ack(2), 31, 0.02)
    assert pacing.due(0.02) == []
    pacing.add("a", ack(3), 1, 0.03)

    assert pacing.due(0.03) == [("a", ack(3))]


def test_a_requested_acknowledgement_is_due_at_once_and_others_wait() -> None:
    pacing = pending(3)

    pacing.add(1, ack(2), 1, 0.01, urgent=True)

    assert keys_due(pacing, 0.01) == [1]
    assert keys_due(pacing, 0.499) == []
    assert keys_due(pacing, 0.749) == [0, 2]


def test_a_single_outbox_is_acknowledged_after_half_a_second_even_if_more_arrives() -> None:
    pacing = pending(1)
    pacing.add(0, ack(2), 1, 0.4)

    assert pacing.due(0.49) == []
    pacing = pending(1)
    pacing.add(0, ack(2), 1, 0.4)
    assert pacing.due(0.5) == [(0, ack(2))]


def test_due_acknowledgements_leave_together_four_times_a_second() -> None:
    pacing = pending(1, 0.0)
    pacing.add(1, ack(), 1, 0.2)
    pacing.add(2, ack(), 1, 0.26)

    assert keys_due(pacing, 0.5) == [0]
    assert keys_due(pacing, 0.74) == []
    assert keys_due(pacing, 0.75) == [1]
    assert keys_due(pacing, 0.99) == []
    assert keys_due(pacing, 1.0) == [2]


def test_the_delay_grows_with_the_number_of_outboxes_up_to_ten_seconds() -> None:
    assert [pending(count).delay_s for count in (0, 1, 50, 51, 100, 999, 1000, 5000)] == [
        0.5, 0.5, 0.5, 0.51, 1.0, 9.99, 10.0, 10.0,
    ]  # fmt: skip


def test_flush_returns_all() -> None:
    pacing = pending(2, 0.0)
    assert keys_due(pacing, 0.0) == []

    assert [key for key, _ in pacing.due(0.0, flush=True)] == [0, 1]


def test_an_outbox_has_at_most_one_acknowledgement_in_flight() -> None:
    pacing = pending(1)
    assert keys_due(pacing, 1.0) == [0]
    pacing.add(0, ack(9), 64, 1.1)

    pacing.add(1, ack(), 1, 1.2)

    assert (keys_due(pacing, 9.0), len(pacing)) == ([1], 3), "other outboxes do not wait"
    pacing.sent(1)
    pacing.sent(0)
    assert len(pacing) == 1
    assert pacing.due(9.0) == [(0, ack(9))]
    pacing.sent(0)
    pacing.sent(0)
    assert len(pacing) == 0


def test_requested_acknowledgements_go_first_and_each_goes_once() -> None:
    pacing = pending(3)
    pacing.add(2, ack(), 1, 0.1, urgent=True)

    assert keys_due(pacing, 5.0) == [2, 0, 1]
    for key in range(3):
        pacing.sent(key)
    assert keys_due(pacing, 10.0) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100), st.floats(0, 1)), max_size=100))
def test_every_outbox_is_acknowledged_soon_and_last_with_its_newest_state(stored: list[tuple[int, int, float]]) -> None:
    pacing: AckPacing[int] = AckPacing()
    now = 0.0
    acknowledged: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, (key, records, later) in enumerate(stored):
        now += later
        last[key] = step
        pacing.add(key, Ack("e", {0: step}), records, now)
        for due, ack in pacing.due(now):
            acknowledged[due] = ack.through[0]
            pacing.sent(due)
    for due, ack in pacing.due(now + MAX_DELAY_S + TICK_S):
        acknowledged[due] = ack.through[0]
        pacing.sent(due)

    assert acknowledged == last
    assert len(pacing) == 0


def test_a_busy_outbox_is_acknowledged_every_64_records_and_an_idle_one_soon() -> None:
    pacing: AckPacing[str] = AckPacing()
    pacing.add("a", Ack("e", {0: 1}), 1, 0.0)
    assert pacing.due(0.0) == []
    pacing.add("a", Ack("e", {0: MAX_RECORDS}), MAX_RECORDS, 0.1)
    assert pacing.due(0.1) == [("a", Ack("e", {0: MAX_RECORDS}))]
    pacing.add("a", Ack("e", {0: 500}), MAX_RECORDS, 0.2)
    assert pacing.due(5.0) == [], "one at a time"
    pacing.sent("a")
    assert pacing.due(5.0) == [("a", Ack("e", {0: 500}))]


@given(st.integers(1, 3000), st.integers(0, 2999))
def test_quiet_outboxes_share_a_rate_and_a_requested_acknowledgement_goes_at_once(count: int, urgent: int) -> None:
    """The cost of acknowledgements does not grow with the number of outboxes; the longest wait goes first."""
    pacing: AckPacing[int] = AckPacing()
    for outbox in range(count):
        pacing.add(outbox, Ack("e", {0: 1}), 1, outbox / count / 100)
    pacing.add(urgent % count, Ack("e", {0: 2}), 1, 0.01, urgent=True)
    assert pacing.due(0.01) == [(urgent % count, Ack("e", {0: 2}))]

    keys_due: list[int] = []
    for tick in range(2, 1 + int(100 * (MAX_DELAY_S + TICK_S + 0.1))):
        due = [key for key, _ in pacing.due(tick / 100)]
        for key in due:
            pacing.sent(key)
        keys_due += due
        if count > 1 and not keys_due:
            assert tick / 100 <= max(DELAY_S, min(MAX_DELAY_S, (count - 1) / MAX_ACKS_PER_S)) + TICK_S + 0.02
    assert keys_due == [outbox for outbox in range(count) if outbox != urgent % count]
