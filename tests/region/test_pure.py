"""Deciders of the region: when to acknowledge, and how a node is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.outbox.records import Ack
from hedgerow.region.collector.ack_pacing import A_SECOND, AFTER, LATEST_OF_ALL_S, LATEST_S, TURN_S, AckPacing
from hedgerow.region.store.liveness import Liveness, Signs, judge


def signs(
    online: bool | None = True,
    heard_at: float | None = 99.0,
    health: str | None = "ok",
    answered_at: float | None = None,
    unanswered: int = 0,
) -> Signs:
    return Signs(online, heard_at, health, "", answered_at, unanswered)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (signs(), Liveness.OK),
        (signs(online=None), Liveness.OK),
        (signs(online=False), Liveness.OFFLINE),
        (signs(heard_at=None), Liveness.UNKNOWN),
        (signs(heard_at=10.0), Liveness.SILENT),
        (signs(unanswered=1), Liveness.OK),
        (signs(unanswered=2), Liveness.DEAF),
        (signs(heard_at=10.0, unanswered=5), Liveness.SILENT),
        (signs(health="failing"), Liveness.TROUBLED),
        (signs(heard_at=200.0), Liveness.OK),
    ],
)
def test_a_node_is_judged_by_what_came_of_it(given: Signs, verdict: Liveness) -> None:
    assert judge(given, 100.0, 35.0)[0] is verdict


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100), st.floats(0, 1)), max_size=100))
def test_every_debt_is_paid_soon_and_the_newest_word_is_the_last(stored: list[tuple[int, int, float]]) -> None:
    pace: AckPacing[int] = AckPacing()
    now = 0.0
    said: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, (key, records, later) in enumerate(stored):
        now += later
        last[key] = step
        pace.owe(key, Ack("e", {0: step}), records, now)
        for due, ack in pace.due(now):
            said[due] = ack.through[0]
            pace.sent(due)
    for due, ack in pace.due(now + LATEST_OF_ALL_S + TURN_S):
        said[due] = ack.through[0]
        pace.sent(due)

    assert said == last
    assert len(pace) == 0


def test_a_busy_outbox_is_answered_four_times_a_window_and_an_idle_one_soon() -> None:
    pace: AckPacing[str] = AckPacing()
    pace.owe("a", Ack("e", {0: 1}), 1, 0.0)
    assert pace.due(0.0) == []
    pace.owe("a", Ack("e", {0: AFTER}), AFTER, 0.1)
    assert pace.due(0.1) == [("a", Ack("e", {0: AFTER}))]
    pace.owe("a", Ack("e", {0: 500}), AFTER, 0.2)
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
        pace.owe(outbox, Ack("e", {0: 1}), 1, outbox / many / 100)
    pace.owe(asking % many, Ack("e", {0: 2}), 1, 0.01, asked=True)
    assert pace.due(0.01) == [(asking % many, Ack("e", {0: 2}))]

    answered: list[int] = []
    for tick in range(2, 1 + int(100 * (LATEST_OF_ALL_S + TURN_S + 0.1))):
        due = [key for key, _ in pace.due(tick / 100)]
        for key in due:
            pace.sent(key)
        answered += due
        if many > 1 and not answered:
            assert tick / 100 <= max(LATEST_S, min(LATEST_OF_ALL_S, (many - 1) / A_SECOND)) + TURN_S + 0.02
    assert answered == [outbox for outbox in range(many) if outbox != asking % many]
