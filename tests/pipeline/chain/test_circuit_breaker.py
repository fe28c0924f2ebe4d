"""The circuit breaker, by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.chain.circuit_breaker import Circuit


def opened(at: float = 0.0) -> Circuit:
    circuit = Circuit(threshold=3, pause_s=1.0, longest_pause_s=8.0)
    assert [circuit.failed(at) for _ in range(3)] == [False, False, True]
    return circuit


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    circuit = opened()

    assert circuit.is_open
    assert not circuit.take_try(0.9)


def test_one_success_in_between_begins_the_count_anew() -> None:
    circuit = Circuit(threshold=3)
    for _ in range(10):
        assert not circuit.failed(0)
        assert not circuit.failed(0)
        assert not circuit.succeeded()

    assert not circuit.is_open


def test_after_the_pause_a_try_that_succeeds_closes_it() -> None:
    circuit = opened()

    assert circuit.take_try(1.0)
    assert circuit.succeeded()
    assert not circuit.is_open
    assert [circuit.failed(2) for _ in range(3)] == [False, False, True], "it opens again as at first"
    assert circuit.open_until == 3.0


def test_after_the_pause_one_caller_gets_the_try_and_if_it_hangs_another_after_the_next() -> None:
    circuit = opened()

    assert [circuit.take_try(now) for now in (1.0, 1.0, 1.9, 2.0, 2.0)] == [True, False, False, True, False]


def test_a_circuit_that_is_closed_has_no_try_to_give() -> None:
    assert not Circuit().take_try(5.0)


def test_every_failed_try_doubles_the_pause_up_to_the_longest() -> None:
    circuit = opened()
    pauses = []
    for _ in range(6):
        now = circuit.open_until
        assert now is not None
        assert circuit.take_try(now)
        assert not circuit.failed(now, trying=True)
        pauses.append((circuit.open_until or 0) - now)

    assert pauses == [2, 4, 8, 8, 8, 8]


def test_ten_failures_open_it_for_a_second_and_at_most_for_a_minute() -> None:
    circuit = Circuit()
    assert [circuit.failed(0.0) for _ in range(10)] == [*[False] * 9, True]
    pauses = [circuit.open_until]
    for _ in range(7):
        circuit.open_until = 0.0
        assert not circuit.failed(0.0, trying=True)
        pauses.append(circuit.open_until)

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_rest_of_a_failing_list_does_not_lengthen_the_pause() -> None:
    """A list of 64 frames that all fail is one failed try, not 54."""
    circuit = opened()
    for _ in range(61):
        circuit.failed(1.01)

    assert circuit.open_until == 1.0


@given(st.lists(st.booleans()))
def test_it_is_open_only_if_the_last_failures_are_in_a_row(outcomes: list[bool]) -> None:
    circuit = Circuit(threshold=3)
    for success in outcomes:
        circuit.succeeded() if success else circuit.failed(0.0)

    assert circuit.is_open == (len(outcomes) >= 3 and not any(outcomes[-3:]))
