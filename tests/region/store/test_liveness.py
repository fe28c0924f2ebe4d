"""How a node is, at the very limits; and how times are said."""

from __future__ import annotations

import pytest

from hedgerow.region.store.liveness import Liveness, Signs, judge, spell

NOW, SILENT_AFTER_S = 1000.0, 35.0


def judged(
    online: bool | None = True,
    heard_at: float | None = NOW,
    health: str | None = "ok",
    reasons: str = "",
    answered_at: float | None = NOW,
    unanswered: int = 0,
) -> tuple[Liveness, str]:
    return judge(Signs(online, heard_at, health, reasons, answered_at, unanswered), NOW, SILENT_AFTER_S)


def test_a_node_is_silent_after_longer_than_one_that_is_well_may_be() -> None:
    assert judged(heard_at=NOW - 35.0) == (Liveness.OK, "")
    assert judged(heard_at=NOW - 35.1) == (Liveness.SILENT, "nothing came for 35 s")
    assert judged(heard_at=NOW + 35.1) == (Liveness.OK, "")


def test_one_ping_may_be_lost_and_two_may_not() -> None:
    assert judged(unanswered=1) == (Liveness.OK, "")
    assert judged(unanswered=2, answered_at=NOW - 20) == (Liveness.DEAF, "2 pings unanswered, last answered 20 s ago")
    assert judged(unanswered=3, answered_at=None) == (Liveness.DEAF, "3 pings unanswered, never answered")


def test_what_a_node_says_of_its_health_is_passed_on() -> None:
    assert judged(health=None) == (Liveness.OK, "")
    assert judged(health="degraded", reasons="doors: late") == (Liveness.TROUBLED, "degraded: doors: late")
    assert judged(health="failing") == (Liveness.TROUBLED, "failing")


def test_what_weighs_most_is_said() -> None:
    known = {"health": "failing", "unanswered": 2, "heard_at": None, "online": False}

    assert judged(**known) == (Liveness.OFFLINE, "said goodbye, or its broker did for it")  # type: ignore[arg-type]
    known["online"] = None
    assert judged(**known) == (Liveness.UNKNOWN, "nothing came of it since the collector has been there")  # type: ignore[arg-type]
    known["heard_at"] = 0.0
    assert judged(**known)[0] is Liveness.SILENT  # type: ignore[arg-type]
    known["heard_at"] = NOW
    assert judged(**known)[0] is Liveness.DEAF  # type: ignore[arg-type]
    known["unanswered"] = 0
    assert judged(**known)[0] is Liveness.TROUBLED  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (172_799, "48 h"),
        (172_800, "2 d"),
        (1e6, "12 d"),
    ],
)
def test_a_time_is_said_in_the_largest_unit_that_fits_twice(seconds: float, said: str) -> None:
    assert spell(seconds) == said


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
