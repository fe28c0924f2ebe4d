"""The throttle: a storm of one kind costs a report a minute, nothing is lost from the count, and memory is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.telemetry.throttle import EVERY_S, Throttle, kind_of


def test_the_first_passes_at_once_and_then_the_last_of_each_minute_with_the_number_it_stands_for() -> None:
    throttle: Throttle[str] = Throttle()

    assert throttle.admit(("refused",), "1st", 0.0) == 1
    assert [throttle.admit(("refused",), f"{n}th", 1.0) for n in range(2, 5)] == [None] * 3
    assert throttle.due(EVERY_S - 0.1) == []
    assert throttle.due(EVERY_S) == [("4th", 3)]
    assert throttle.admit(("refused",), "5th", EVERY_S + 1) is None, "the next minute has begun"
    assert throttle.due(2 * EVERY_S) == [("5th", 1)]
    assert throttle.due(3 * EVERY_S) == []
    assert throttle.admit(("refused",), "6th", 3 * EVERY_S) == 1


def test_without_a_report_the_next_one_after_a_minute_stands_for_those_before_it() -> None:
    throttle: Throttle[str] = Throttle()
    throttle.admit(("refused",), "1st", 0.0)
    throttle.admit(("refused",), "2nd", 1.0)

    assert throttle.admit(("refused",), "3rd", EVERY_S) == 2
    assert throttle.due(2 * EVERY_S) == []


def test_at_the_end_all_that_was_held_back_is_reported() -> None:
    throttle: Throttle[str] = Throttle()
    for item in ("1st", "2nd"):
        throttle.admit(("refused",), item, 0.0)

    assert throttle.due(0.0, final=True) == [("2nd", 1)]
    assert throttle.due(0.0, final=True) == []


def test_kinds_do_not_hold_each_other_back_unless_one_name_has_too_many() -> None:
    throttle: Throttle[int] = Throttle()

    admitted = [throttle.admit(("refused", f"camera {n}"), n, 0.0) for n in range(1000)]
    assert admitted == [1] * 21 + [None] * 979
    assert throttle.admit(("other",), 0, 0.0) == 1
    assert throttle.due(EVERY_S) == [(999, 979)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.floats(0, 30))))
def test_every_occurrence_is_counted_once(steps: list[tuple[str, int, float]]) -> None:
    throttle: Throttle[int] = Throttle()
    now, reported = 0.0, 0
    for name, kind, pause_s in steps:
        now += pause_s
        reported += throttle.admit((name, str(kind)), kind, now) or 0
        reported += sum(times for _, times in throttle.due(now)) if kind % 2 else 0
    reported += sum(times for _, times in throttle.due(now, final=True))

    assert reported == len(steps)
    assert not throttle._kinds
    assert not throttle._per_name


def test_numbers_and_texts_that_change_with_every_frame_make_no_kind() -> None:
    first = kind_of("result-refused", {"error": "packet 17 has 2,000 bytes", "pid": 17, "pipeline": "cam1"})

    assert first == kind_of("result-refused", {"error": "packet 18 has 3,111 bytes", "pid": 18, "pipeline": "cam1"})
    assert first != kind_of("result-refused", {"error": "packet 17 has 2,000 bytes", "pid": 17, "pipeline": "cam2"})
    assert first != kind_of("result-refused", {"error": "not authorised", "pid": 17, "pipeline": "cam1"})


def test_a_place_in_the_code_makes_the_kind_of_a_failure_not_its_text() -> None:
    assert kind_of("stage-failed", {"place": "a.py:1", "error": "x"}) == kind_of(
        "stage-failed", {"place": "a.py:1", "error": "y"}
    )
    assert kind_of("stage-failed", {"place": "a.py:1"}) != kind_of("stage-failed", {"place": "a.py:2"})
