"""Node status at the limits, and formatted durations."""

from __future__ import annotations

import pytest

from hedgerow.region.store.liveness import Liveness, Signs, format_duration, judge

NOW, SILENT_AFTER_S = 1000.0, 35.0


def judged(
    online: bool | None = True,
    last_seen: float | None = NOW,
    health: str | None = "ok",
    reasons: str = "",
    last_reply: float | None = NOW,
    unanswered: int = 0,
    stopped: bool = False,
) -> tuple[Liveness, str]:
    return judge(Signs(online, stopped, last_seen, health, reasons, last_reply, unanswered), NOW, SILENT_AFTER_S)


def test_a_node_is_silent_after_the_longest_normal_silence() -> None:
    assert judged(last_seen=NOW - 35.0) == (Liveness.OK, "")
    assert judged(last_seen=NOW - 35.1) == (Liveness.SILENT, "nothing received for 35 s")
    assert judged(last_seen=NOW + 35.1) == (Liveness.OK, "")


def test_one_ping_may_be_lost_but_not_two() -> None:
    assert judged(unanswered=1) == (Liveness.OK, "")
    assert judged(unanswered=2, last_reply=NOW - 20) == (Liveness.ONE_WAY, "2 pings unanswered, last reply 20 s ago")
    assert judged(unanswered=3, last_reply=None) == (Liveness.ONE_WAY, "3 pings unanswered, no reply yet")


def test_a_node_is_degraded_if_its_health_report_says_so() -> None:
    assert judged(health=None) == (Liveness.OK, "")
    assert judged(health="degraded", reasons="doors: late") == (Liveness.DEGRADED, "degraded: doors: late")
    assert judged(health="failing") == (Liveness.DEGRADED, "failing")


def test_the_most_serious_status_wins() -> None:
    known = {"health": "failing", "unanswered": 2, "last_seen": None, "online": False}

    lost = "its broker lost the connection to it: it crashed, lost power, or its network failed"
    assert judged(**known) == (Liveness.OFFLINE, lost)  # type: ignore[arg-type]
    known["online"] = None
    assert judged(**known) == (Liveness.UNKNOWN, "nothing received from it since the collector started")  # type: ignore[arg-type]
    known["last_seen"] = 0.0
    assert judged(**known)[0] is Liveness.SILENT  # type: ignore[arg-type]
    known["last_seen"] = NOW
    assert judged(**known)[0] is Liveness.ONE_WAY  # type: ignore[arg-type]
    known["unanswered"] = 0
    assert judged(**known)[0] is Liveness.DEGRADED  # type: ignore[arg-type]


def test_a_planned_stop_is_told_from_a_crash_and_needs_no_help() -> None:
    assert judged(online=False, stopped=True) == (Liveness.STOPPED, "it was stopped")
    assert judged(online=True, stopped=True) == (Liveness.OK, "")
    assert [liveness for liveness in Liveness if not liveness.needs_help] == [Liveness.OK, Liveness.STOPPED]


def test_deprecated_names_stay_as_they_were() -> None:
    assert [liveness.value for liveness in Liveness] == [
        "ok",
        "degraded",
        "one-way",
        "silent",
        "offline",
        "stopped",
        "unknown",
    ]
    assert [liveness.old_name for liveness in Liveness] == [
        "ok",
        "troubled",
        "deaf",
        "silent",
        "offline",
        "offline",
        "unknown",
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
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
def test_a_duration_is_given_in_the_largest_unit_that_fits_twice(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def signs(
    online: bool | None = True,
    last_seen: float | None = 99.0,
    health: str | None = "ok",
    last_reply: float | None = None,
    unanswered: int = 0,
) -> Signs:
    return Signs(online, False, last_seen, health, "", last_reply, unanswered)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (signs(), Liveness.OK),
        (signs(online=None), Liveness.OK),
        (signs(online=False), Liveness.OFFLINE),
        (signs(last_seen=None), Liveness.UNKNOWN),
        (signs(last_seen=10.0), Liveness.SILENT),
        (signs(unanswered=1), Liveness.OK),
        (signs(unanswered=2), Liveness.ONE_WAY),
        (signs(last_seen=10.0, unanswered=5), Liveness.SILENT),
        (signs(health="failing"), Liveness.DEGRADED),
        (signs(last_seen=200.0), Liveness.OK),
    ],
)
def test_status_follows_from_what_was_received(known: Signs, expected: Liveness) -> None:
    assert judge(known, 100.0, 35.0)[0] is expected
