"""When to acknowledge: each number by what it does, exactly where it lies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.outbox.records import Ack
from hedgerow.region.collector.ack_pacing import DELAY_S, MAX_ACKS_PER_S, MAX_DELAY_S, MAX_RECORDS, TICK_S, AckPacing


def ack(through: int = 1) -> Ack:
    return Ack("e", {0: through})


def owing(count: int, at: float = 0.0) -> AckPacing[int]:
    """So many quiet outboxes, all heard at the same moment."""
    pace: AckPacing[int] = AckPacing()
    for outbox in range(count):
        pace.add(outbox, ack(), 1, at)
    return pace


def answered(pace: AckPacing[int], now: float) -> list[int]:
    return [key for key, _ in pace.due(now)]


def test_the_sixty_fourth_record_is_answered_at_once() -> None:
    pace: AckPacing[str] = AckPacing()
    assert pace.due(0.0) == []

    pace.add("a", ack(1), 32, 0.01)
    pace.add("a", ack(2), 31, 0.02)
    assert pace.due(0.02) == []
    pace.add("a", ack(3), 1, 0.03)

    assert pace.due(0.03) == [("a", ack(3))]


def test_who_asks_is_answered_at_once_and_who_does_not_waits() -> None:
    pace = owing(3)

    pace.add(1, ack(2), 1, 0.01, urgent=True)

    assert answered(pace, 0.01) == [1]
    assert answered(pace, 0.499) == []
    assert answered(pace, 0.749) == [0, 2]


def test_one_alone_is_answered_after_half_a_second_however_much_comes_meanwhile() -> None:
    pace = owing(1)
    pace.add(0, ack(2), 1, 0.4)

    assert pace.due(0.49) == []
    pace = owing(1)
    pace.add(0, ack(2), 1, 0.4)
    assert pace.due(0.5) == [(0, ack(2))]


def test_those_that_are_due_leave_together_four_times_a_second() -> None:
    pace = owing(1, 0.0)
    pace.add(1, ack(), 1, 0.2)
    pace.add(2, ack(), 1, 0.26)

    assert answered(pace, 0.5) == [0]
    assert answered(pace, 0.74) == []
    assert answered(pace, 0.75) == [1]
    assert answered(pace, 0.99) == []
    assert answered(pace, 1.0) == [2]


def test_a_hundred_a_second_are_answered_and_none_later_than_after_ten() -> None:
    assert [owing(count).delay_s for count in (0, 1, 50, 51, 100, 999, 1000, 5000)] == [
        0.5, 0.5, 0.5, 0.51, 1.0, 9.99, 10.0, 10.0,
    ]  # fmt: skip


def test_all_can_be_answered_now() -> None:
    pace = owing(2, 0.0)
    assert answered(pace, 0.0) == []

    assert [key for key, _ in pace.due(0.0, flush=True)] == [0, 1]


def test_nothing_more_goes_to_one_until_what_is_under_way_is_sent() -> None:
    pace = owing(1)
    assert answered(pace, 1.0) == [0]
    pace.add(0, ack(9), 64, 1.1)

    pace.add(1, ack(), 1, 1.2)

    assert (answered(pace, 9.0), len(pace)) == ([1], 3), "another one does not wait for it"
    pace.sent(1)
    pace.sent(0)
    assert len(pace) == 1
    assert pace.due(9.0) == [(0, ack(9))]
    pace.sent(0)
    pace.sent(0)
    assert len(pace) == 0


def test_those_that_ask_go_first_and_each_goes_once() -> None:
    pace = owing(3)
    pace.add(2, ack(), 1, 0.1, urgent=True)

    assert answered(pace, 5.0) == [2, 0, 1]
    for key in range(3):
        pace.sent(key)
    assert answered(pace, 10.0) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100), st.floats(0, 1)), max_size=100))
def test_every_debt_is_paid_soon_and_the_newest_word_is_the_last(stored: list[tuple[int, int, float]]) -> None:
    pace: AckPacing[int] = AckPacing()
    now = 0.0
    said: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, (key, records, later) in enumerate(stored):
        now += later
        last[key] = step
        pace.add(key, Ack("e", {0: step}), records, now)
        for due, ack in pace.due(now):
            said[due] = ack.through[0]
            pace.sent(due)
    for due, ack in pace.due(now + MAX_DELAY_S + TICK_S):
        said[due] = ack.through[0]
        pace.sent(due)

    assert said == last
    assert len(pace) == 0


def test_a_busy_outbox_is_answered_four_times_a_window_and_an_idle_one_soon() -> None:
    pace: AckPacing[str] = AckPacing()
    pace.add("a", Ack("e", {0: 1}), 1, 0.0)
    assert pace.due(0.0) == []
    pace.add("a", Ack("e", {0: MAX_RECORDS}), MAX_RECORDS, 0.1)
    assert pace.due(0.1) == [("a", Ack("e", {0: MAX_RECORDS}))]
    pace.add("a", Ack("e", {0: 500}), MAX_RECORDS, 0.2)
    assert pace.due(5.0) == [], "one at a time"
    pace.sent("a")
    assert pace.due(5.0) == [("a", Ack("e", {0: 500}))]


@given(st.integers(1, 3000), st.integers(0, 2999))
def test_quiet_outboxes_share_so_many_answers_a_second_and_one_that_asks_has_its_own_at_once(
    many: int, asking: int
) -> None:
    """What acknowledgements cost does not grow with the number of outboxes; who waited longest is answered first."""
    pace: AckPacing[int] = AckPacing()
    for outbox in range(many):
        pace.add(outbox, Ack("e", {0: 1}), 1, outbox / many / 100)
    pace.add(asking % many, Ack("e", {0: 2}), 1, 0.01, urgent=True)
    assert pace.due(0.01) == [(asking % many, Ack("e", {0: 2}))]

    answered: list[int] = []
    for tick in range(2, 1 + int(100 * (MAX_DELAY_S + TICK_S + 0.1))):
        due = [key for key, _ in pace.due(tick / 100)]
        for key in due:
            pace.sent(key)
        answered += due
        if many > 1 and not answered:
            assert tick / 100 <= max(DELAY_S, min(MAX_DELAY_S, (many - 1) / MAX_ACKS_PER_S)) + TICK_S + 0.02
    assert answered == [outbox for outbox in range(many) if outbox != asking % many]
