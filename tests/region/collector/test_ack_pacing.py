"""When to acknowledge: each number by what it does, exactly where it lies."""

from __future__ import annotations

from hedgerow.bus.outbox.records import Ack
from hedgerow.region.collector.ack_pacing import AckPacing


def ack(through: int = 1) -> Ack:
    return Ack("e", {0: through})


def owing(count: int, at: float = 0.0) -> AckPacing[int]:
    """So many quiet outboxes, all heard at the same moment."""
    pace: AckPacing[int] = AckPacing()
    for outbox in range(count):
        pace.owe(outbox, ack(), 1, at)
    return pace


def answered(pace: AckPacing[int], now: float) -> list[int]:
    return [key for key, _ in pace.due(now)]


def test_the_sixty_fourth_record_is_answered_at_once() -> None:
    pace: AckPacing[str] = AckPacing()
    assert pace.due(0.0) == []

    pace.owe("a", ack(1), 32, 0.01)
    pace.owe("a", ack(2), 31, 0.02)
    assert pace.due(0.02) == []
    pace.owe("a", ack(3), 1, 0.03)

    assert pace.due(0.03) == [("a", ack(3))]


def test_who_asks_is_answered_at_once_and_who_does_not_waits() -> None:
    pace = owing(3)

    pace.owe(1, ack(2), 1, 0.01, asked=True)

    assert answered(pace, 0.01) == [1]
    assert answered(pace, 0.499) == []
    assert answered(pace, 0.749) == [0, 2]


def test_one_alone_is_answered_after_half_a_second_however_much_comes_meanwhile() -> None:
    pace = owing(1)
    pace.owe(0, ack(2), 1, 0.4)

    assert pace.due(0.49) == []
    pace = owing(1)
    pace.owe(0, ack(2), 1, 0.4)
    assert pace.due(0.5) == [(0, ack(2))]


def test_those_that_are_due_leave_together_four_times_a_second() -> None:
    pace = owing(1, 0.0)
    pace.owe(1, ack(), 1, 0.2)
    pace.owe(2, ack(), 1, 0.26)

    assert answered(pace, 0.5) == [0]
    assert answered(pace, 0.74) == []
    assert answered(pace, 0.75) == [1]
    assert answered(pace, 0.99) == []
    assert answered(pace, 1.0) == [2]


def test_a_hundred_a_second_are_answered_and_none_later_than_after_ten() -> None:
    assert [owing(count).latest_s for count in (0, 1, 50, 51, 100, 999, 1000, 5000)] == [
        0.5, 0.5, 0.5, 0.51, 1.0, 9.99, 10.0, 10.0,
    ]  # fmt: skip


def test_all_can_be_answered_now() -> None:
    pace = owing(2, 0.0)
    assert answered(pace, 0.0) == []

    assert [key for key, _ in pace.due(0.0, all_of_them=True)] == [0, 1]


def test_nothing_more_goes_to_one_until_what_is_under_way_is_sent() -> None:
    pace = owing(1)
    assert answered(pace, 1.0) == [0]
    pace.owe(0, ack(9), 64, 1.1)

    pace.owe(1, ack(), 1, 1.2)

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
    pace.owe(2, ack(), 1, 0.1, asked=True)

    assert answered(pace, 5.0) == [2, 0, 1]
    for key in range(3):
        pace.sent(key)
    assert answered(pace, 10.0) == []
